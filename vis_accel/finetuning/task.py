"""A fine-tuning as the one trainer takes it: batches, loss, scores, and what is kept at the end.

Loss     (1 - w) cross entropy with the labels + w distance from the teacher; without a teacher, the cross entropy alone.
Tokens   a recipe of token methods is on during training and off when the network is scored and saved; it is scored with the recipe as well.
         PatchDropout is on during training only, and off for the last tenth of it, so that the network meets full grids again.
Kept     the average of the weights at the end; with patience, that of the best evaluation.

Random numbers of dropout, drop path and PatchDropout come from PyTorch's global generator, which each batch seeds anew from its own: a
resumed run draws what an uninterrupted one does.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vis_accel.apply import accelerate
from vis_accel.errors import RunError
from vis_accel.eval.accuracy import wilson
from vis_accel.eval.interval import Interval
from vis_accel.files import write_atomic
from vis_accel.finetuning import distill
from vis_accel.finetuning.adapters import merged
from vis_accel.finetuning.augment import augmented, mixed, scaled
from vis_accel.finetuning.student import Student
from vis_accel.handle import Handle
from vis_accel.training import batch_indices
from vis_accel.zoo import timm_folder

if TYPE_CHECKING:
    from vis_accel.finetuning.opening import Opened
    from vis_accel.finetuning.options import FinetuneOptions
    from vis_accel.finetuning.pixels import Pixels

__all__ = ["BEST", "FinetuneTask"]

BEST = "best.safetensors"
_BATCH = 256  # images scored together
_ROUNDING = 1e-4  # of the largest logit
_FULL_TOKENS = 0.1  # share of the steps, at the end, without PatchDropout


class FinetuneTask:
    """What is trained.

    Args:
        options: what was asked for.
        opened: the network as it was opened.
        student: the network as it is trained.
        classes: names, in the order of the labels.
        parts: images by part: "train", "validation" and, where there is one, "test".
        steps, batch_size: of the whole run.
        teacher: None without distillation.
        lr_scales: by name of parameter, see `training.Task`.
        patch_drop: the layer that leaves out patches; None without.
        handle: of the recipe on the network, suspended; None without.
    """

    def __init__(
        self, options: FinetuneOptions, opened: Opened, student: Student, *, classes: tuple[str, ...], parts: dict[str, Pixels], steps: int,
        batch_size: int, teacher: distill.Teacher | None = None, lr_scales: dict[str, float] | None = None, patch_drop: Any = None,
        handle: Handle | None = None,
    ) -> None:  # fmt: skip
        self.name = f"{options.model}, {options.mode}"
        self.options, self.opened, self.student, self.classes = options, opened, student, classes
        self.model: nn.Module = student
        self.parts, self.teacher, self.patch_drop = parts, teacher, patch_drop
        self.examples = len(parts["train"])
        self.lr_scales = lr_scales or {}
        self.steps, self.batch_size = steps, batch_size
        self.mean, self.std = (torch.tensor(opened.network.pretrained_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
        self.result: dict[str, Any] = {}
        self.best = -1.0
        self.handle = handle

    def begin_step(self, step: int) -> None:
        """Puts the recipe on before the first step, after the trainer has made its average's copy, which stays plain; fetches ahead."""
        if self.handle is not None:
            self.handle.resume()
        if self.patch_drop is not None:
            left = self.steps - step
            self.patch_drop.prob = 0.0 if left <= _FULL_TOKENS * self.steps else self.options.patch_dropout
        if step + 1 < self.steps:
            from accelerate import PartialState

            state = PartialState()
            following = batch_indices(step + 1, examples=self.examples, batch_size=self.batch_size, seed=self.options.seed)
            self.parts["train"].prefetch(following.chunk(state.num_processes)[state.process_index])

    def batch(self, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        pixels = self.parts["train"]
        images = augmented(pixels.batch(indices), self.opened.size, self.options.augment, generator)
        targets = functional.one_hot(pixels.labels[indices], len(self.classes)).float()
        if self.options.mixup is not None:
            images, targets = mixed(images, targets, self.options.mixup, generator)
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))  # of dropout and its like, see above
        return images.contiguous(memory_format=torch.channels_last), targets

    def loss(self, model: Callable[..., Any], /, *batch: Any) -> Tensor:
        images, targets = batch
        found = model(self._normalised(images))
        labelled = functional.cross_entropy(found.logits.float(), targets)
        if self.teacher is None:
            return labelled
        weight = 0.5 if self.options.distill_weight is None else self.options.distill_weight
        return (1 - weight) * labelled + weight * self._distance(self.teacher, found, images)

    def _distance(self, teacher: distill.Teacher, found: Any, images: Tensor) -> Tensor:
        kind, temperature = self.options.distillation, self.options.temperature
        if kind == "feature":
            return distill.feature_distance(found.features.float(), teacher.features(images))
        if kind == "token":
            return distill.token_distance(found.token.float(), teacher.logits(images), temperature)
        return distill.softened_distance(found.logits.float(), teacher.logits(images), 1.0 if temperature is None else temperature)

    def evaluate(self, model: Any) -> dict[str, float]:
        """Top-1 of the validation images, plain and under the recipe; with patience, keeps the best weights on the disk."""
        scores = {"top1": self.score(model.network, "validation").value}
        if self.handle is not None:
            scores["top1_recipe"] = self.score(model.network, "validation", recipe=True).value
        if self.options.patience is not None:
            self._keep_best(model, scores[self.judged_by])
        return scores

    @property
    def judged_by(self) -> str:
        """The score that decides which weights are best: under the recipe, where there is one, since they will live with it."""
        return "top1" if self.handle is None else "top1_recipe"

    def stop(self, history: list[dict[str, float]]) -> bool:
        """Whether the last `patience` evaluations brought nothing better."""
        scores = [row[self.judged_by] for row in history if self.judged_by in row]
        if self.options.patience is None or not scores:
            return False
        return len(scores) - 1 - scores.index(max(scores)) >= self.options.patience

    def score(self, network: Any, part: str, *, recipe: bool = False) -> Interval:
        """Share of the images of a part that `network` puts into the right class; with `recipe`, while that is on it."""
        if recipe:
            with accelerate(network, str(self.options.recipe)):
                return self.score(network, part)
        pixels, right = self.parts[part], 0
        device = next(network.parameters()).device
        with torch.no_grad():
            for indices in torch.arange(len(pixels)).split(_BATCH):
                images = scaled(pixels.batch(indices), self.opened.size).to(device)
                right += int((network(self._normalised(images)).argmax(1).cpu() == pixels.labels[indices]).sum())
        return wilson(right, len(pixels))

    def scores(self, network: Any, parts: list[str]) -> dict[str, Interval]:
        """Top-1 of `parts` by name, plain and, where there is a recipe, under it."""
        found = {}
        for part in parts:
            found[part] = self.score(network, part)
            if self.handle is not None:
                found[f"{part} under the recipe"] = self.score(network, part, recipe=True)
        return found

    def export(self, model: Any, folder: Path) -> None:
        """Merges, saves, reads back and scores."""
        self._restore_best(model)
        sample = self._sample()
        network, difference = merged(model.holder, sample) if self.adapters else (copy.deepcopy(model.holder), 0.0)
        if hasattr(network, "set_distilled_training"):
            network.set_distilled_training(False)
        network.to(memory_format=torch.contiguous_format).eval()
        timm_folder.save(network, folder, size=self.opened.size, classes=self.classes, arguments=self.opened.arguments)
        self._read_back(network, folder, sample)
        self.result = {"merge_difference": difference, "parameters": sum(p.numel() for p in network.parameters())}
        network.to(next(self.student.parameters()).device)  # where it was trained: the CPU may be slow
        self.result |= self.scores(network, [part for part in self.parts if part != "train"])

    @torch.no_grad()
    def _read_back(self, network: nn.Module, folder: Path, sample: Tensor) -> None:
        """Raises RunError if what was written is not what was trained."""
        again = timm_folder.load(folder)
        theirs = again.state_dict()
        wrong = [name for name, tensor in network.state_dict().items() if not torch.equal(tensor, theirs[name])]
        ours = network(sample)
        away = float((again(sample) - ours).abs().max())
        if wrong or not away <= _ROUNDING * float(ours.abs().max()):
            raise RunError(
                f"The network in {folder} is not the one that was saved: its logits are {away:.2g} away; differing: {wrong[:3]}."
            )

    @property
    def adapters(self) -> bool:
        """Whether the network holds adapters."""
        return self.student.holder is not self.student.network

    def _sample(self) -> Tensor:
        count = min(16, len(self.parts["validation"]))
        return self._normalised(scaled(self.parts["validation"].batch(torch.arange(count)), self.opened.size))

    def _keep_best(self, model: nn.Module, score: float) -> None:
        from accelerate import PartialState
        from safetensors.torch import save

        if score <= max(self.best, self._best_on_disk()) or not PartialState().is_main_process:
            return
        self.best = score
        state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
        write_atomic(self.options.output / BEST, save(state, {"score": repr(score)}))

    def _best_on_disk(self) -> float:
        from safetensors import safe_open

        if not self.options.resume or not (self.options.output / BEST).exists():
            return -1.0
        with safe_open(self.options.output / BEST, "pt") as file:
            return float(file.metadata()["score"])

    def _restore_best(self, model: nn.Module) -> None:
        from safetensors.torch import load_file

        if self.options.patience is not None:
            model.load_state_dict(load_file(self.options.output / BEST))
            model.eval()

    def _normalised(self, images: Tensor) -> Tensor:
        return (images - self.mean.to(images.device)) / self.std.to(images.device)
