"""Package: the patches that go are packed into one token, their mean weighted by what they were worth, which is carried on.

Paper    Kong et al. 2022, "SPViT: Enabling Faster Vision Transformers via Soft Token Pruning", arXiv:2112.13890. Package token:
         sum_i s_i x_i / sum_i s_i over the dropped patches. selector="trained" is the paper's attention-based multi-head selector, before a
         stage's block; selector="class-attention" ranks and weighs by the class token's attention, between attention and MLP, untrained.
Cost     that of topk or of the selector, and a weighted sum.
Departs  ceil(keep x patches) stay in every image (the paper's code samples while it evaluates, and masks); a package is a patch like others
         at the next stage, so that at the end one token stands for all that went; stages and shares are options, not a latency table's.
Not      evit, whose fused token is not divided by the sum of the scores: there it is short where little attention went.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from vis_accel.errors import NotApplicableError
from vis_accel.method import option
from vis_accel.token_pruning import schedule
from vis_accel.token_pruning.base import vit_view
from vis_accel.token_pruning.selection import SelectingMethod, packaged
from vis_accel.vit_models.view import ViTView

__all__ = ["Package"]


@dataclass(frozen=True, kw_only=True)
class Package(SelectingMethod):
    """Drops the patches that matter least, and carries on their weighted mean."""

    name: ClassVar[str] = "package"
    extra: ClassVar[int] = 1

    selector: str = option(
        "class-attention", "what says which patches matter: the class token, or trained selectors", choices=("class-attention", "trained")
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weights is not None and self.selector != "trained":
            raise self.refused("weights", "goes with selector='trained'")

    @property
    def selects(self) -> bool:
        return self.keep < 1 and self.selector == "trained"

    def check_target(self, view: Any) -> None:
        if vit_view(self, view).rotary:
            raise NotApplicableError(
                f"{self.name} adds a token that has no place for the rotary embedding.", hint=f"topk(keep={self.keep:g})"
            )
        super().check_target(view)

    def kept(self, view: ViTView) -> dict[int, int]:
        patches, found = view.patches, {}
        for stage in self.blocks(view):
            after = self.after(patches)
            found[stage] = patches if after == patches else schedule.kept(patches, self.keep)
            patches = after
        return found

    def rest(self, tokens: Tensor, scores: Tensor) -> Tensor | None:
        return packaged(tokens, scores)
