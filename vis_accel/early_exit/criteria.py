"""How sure a head is: one number an image, higher is surer; an image leaves where it reaches the threshold.

    confidence   the largest probability                                Teerapittayanon et al. 2016 (BranchyNet), arXiv:1709.01686
    margin       the largest probability minus the second
    entropy      minus the entropy of the probabilities, in nats        Xin et al. 2020 (DeeBERT), arXiv:2004.12993
Entropy goes through log_softmax: p log p with p = 0 is NaN otherwise, and then the surest images never leave. A row with a NaN or an
infinity has the score NaN, which reaches no threshold. Every score is of its own row: nothing depends on the rest of the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["CRITERIA", "agreeing", "score"]

CRITERIA = ("confidence", "margin", "entropy", "patience", "budget")


def score(logits: Tensor, criterion: str) -> Tensor:
    """Of logits B x classes: B scores in float32; `budget` and `patience` look at the confidence."""
    logs = logits.float().log_softmax(dim=1)
    if criterion == "entropy":
        found = (logs.exp() * logs).nan_to_num(nan=0.0).sum(dim=1)
    elif criterion == "margin":
        top = logs.exp().topk(2, dim=1).values
        found = top[:, 0] - top[:, 1]
    else:
        found = logs.amax(dim=1).exp()
    return torch.where(logits.isfinite().all(dim=1), found, torch.nan)


def agreeing(classes: Tensor, earlier: Tensor, streak: Tensor) -> Tensor:
    """How many exits in a row have said the same class, this one included (Zhou et al. 2020, PABEE, arXiv:2006.04152): B int64."""
    return torch.where(classes == earlier, streak + 1, torch.ones_like(streak))
