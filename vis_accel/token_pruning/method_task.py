"""What the trainings of dynamicvit, package, avit and adavit on cifar10-vit share: images, teacher, scores, and the add-on they write.

Loss     half cross entropy with the labels, half Kullback-Leibler divergence from the bundled feature network, as all trainings of this
         model have it, plus what the method asks for.
Scores   are of the add-on as a user runs it: written to a file, put on the bundled model, tokens really dropped.
"""

from __future__ import annotations

import tempfile
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vis_accel import addons
from vis_accel.apply import accelerate
from vis_accel.eval.counters import macs
from vis_accel.method import Method
from vis_accel.training import TrainingConfig
from vis_accel.zoo.cifar10 import Images
from vis_accel.zoo.feature_net import ConvClassifier
from vis_accel.zoo.train_tokens import Crops, FineTuning

__all__ = ["MethodTask", "config"]

_BATCH = 150
_COUNTED = 200  # images whose multiply-adds are averaged


def config(epochs: int, learning_rate: float) -> TrainingConfig:
    """How all of them are trained. Not compiled: their forwards hand out what happened in the blocks."""
    return TrainingConfig(
        steps=epochs * (45_000 // _BATCH), batch_size=_BATCH, learning_rate=learning_rate, optimizer="muon", weight_decay=0.05,
        warmup=0.1, decay=0.9, ema_decay=0.99, compile=False,
    )  # fmt: skip


class MethodTask(FineTuning):
    """Trains the parameters of one method.

    Args:
        method: what is trained, as it will be used; its `weights` is filled in.
        model: the training form.
        train, calibration, test: the images; calibration for the scores along the way.
        teacher: the bundled feature network.
    """

    def __init__(self, method: Method, model: nn.Module, train: Images, calibration: Images, test: Images, teacher: ConvClassifier) -> None:
        crops = Crops(train, teacher, _plain().pretrained_cfg)
        super().__init__(f"cifar10-vit for {method}", model, crops, test)
        self.method, self.calibration = method, calibration

    @abstractmethod
    def tensors(self, model: nn.Module) -> dict[str, Tensor]:
        """What the add-on holds, of the trained `model`."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What the add-on says of itself besides its scores."""

    def batch(self, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """The crops; and the noise of this step's forward is fixed, so that a resumed run draws the same."""
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        return super().batch(indices, generator)

    def supervised(self, logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """The part of the loss that the images' classes give."""
        distance = functional.kl_div(logits.float().log_softmax(1), self.crops.soft_labels(images), reduction="batchmean")
        return 0.5 * functional.cross_entropy(logits.float(), labels) + 0.5 * distance

    @abstractmethod
    def loss(self, model: Callable[..., Any], /, *batch: Any) -> Tensor:
        """As `Task` has it."""

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "addon.safetensors"
            addons.save(path, self.tensors(model), method=self.method.name, model=_plain(), facts=self.facts())
            network: Any = _plain().to(next(model.parameters()).device)
            with accelerate(network, self._with(path)):
                return {"top1": self.crops.top1(network, self.calibration)}

    @torch.no_grad()
    def export(self, model: nn.Module, folder: Path) -> None:
        path, tensors, plain = folder / "addon.safetensors", self.tensors(model), _plain()
        addons.save(path, tensors, method=self.method.name, model=plain, facts=self.facts())
        facts: dict[str, Any] = self.facts() | {"recipe": str(self.method), "n": len(self.test), "n_calibration": len(self.calibration)}
        facts |= {f"{name}_before": value for name, value in self._scores(plain).items()}
        network = _plain()
        with accelerate(network, self._with(path)) as handle:
            facts |= self._scores(network) | {"report": _plainly(handle.report())}
        addons.save(path, tensors, method=self.method.name, model=plain, facts=facts)

    def _scores(self, network: Any) -> dict[str, float]:
        """Top-1, and multiply-adds (10^9) of an image by itself."""
        few = self.crops.normalised(self.test.pixels[:: max(1, len(self.test) // _COUNTED)].float() / 255)
        work = sum(macs(network, image[None]) for image in few) / len(few) / 1e9
        calibration, test = (self.crops.top1(network, images) for images in (self.calibration, self.test))
        return {"top1_calibration": calibration, "top1": test, "gmacs": round(work, 5)}

    def _with(self, path: Path) -> Method:
        return replace(self.method, weights=str(path))  # type: ignore[call-arg]


def _plain() -> Any:
    from vis_accel.zoo import load

    return load("cifar10-vit")


def _plainly(report: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in report.items()}
