"""The trainer: order of batches, resumption to the bit, refusals, two processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from vis_accel.errors import RunError, UsageError
from vis_accel.training import TrainingConfig, batch_indices, learning_rate, train


class Line:
    """Fits y = 2 x + noise of the step; small enough to train in a second."""

    name = "line"

    def __init__(self, *, poison_at: int | None = None) -> None:
        torch.manual_seed(0)
        self.model: nn.Module = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        self.x = torch.randn(40, 4, generator=torch.Generator().manual_seed(1))
        self.examples = len(self.x)
        self.seen: list[list[int]] = []
        self.poison_at = poison_at

    def batch(self, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        self.seen.append(indices.tolist())
        x = self.x[indices] + 0.01 * torch.randn(len(indices), 4, generator=generator)
        if self.poison_at is not None and len(self.seen) > self.poison_at:
            x = x * float("nan")
        return x, 2 * x.sum(dim=1, keepdim=True)

    def loss(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return (model(x) - y).square().mean()

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        with torch.no_grad():
            return {"error": float((model(self.x) - 2 * self.x.sum(dim=1, keepdim=True)).square().mean())}

    def export(self, model: nn.Module, folder: Path) -> None:
        (folder / "exported").write_text("yes")


def config(**changes: object) -> TrainingConfig:
    plain: dict[str, object] = {"steps": 20, "batch_size": 8, "learning_rate": 1e-2, "compile": False, "mixed_precision": "no"}
    return TrainingConfig(**{**plain, **changes})  # type: ignore[arg-type]


def test_every_epoch_visits_every_example_once() -> None:
    epoch = [batch_indices(step, examples=40, batch_size=8, seed=3).tolist() for step in range(5)]
    assert sorted(index for batch in epoch for index in batch) == list(range(40))
    following = [batch_indices(step, examples=40, batch_size=8, seed=3).tolist() for step in range(5, 10)]
    assert following != epoch


def test_learning_rate_rises_stays_and_falls_to_zero() -> None:
    rates = [learning_rate(step, config(steps=100, warmup=0.1, decay=0.5)) for step in range(100)]
    assert rates[0] == pytest.approx(1e-3)
    assert rates[10:50] == [1e-2] * 40
    assert rates[-1] == pytest.approx(2e-4)
    assert all(a >= b for a, b in pairwise(rates[50:]))


def test_training_lowers_the_loss_and_exports(tmp_path: Path) -> None:
    task = Line()
    before = task.evaluate(task.model)["error"]
    result = train(task, config(steps=200), output=tmp_path)
    assert result.scores["error"] < before / 2
    assert result.images == 1600
    assert (tmp_path / "exported").exists()
    assert (tmp_path / "curve.png").stat().st_size > 1000
    assert json.loads((tmp_path / "history.json").read_text())["config"]["steps"] == 200


class Killed(Exception):
    pass


class Pictures(Line):
    """The same, through a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(
            nn.Unflatten(1, (4, 1, 1)), nn.Upsample(4), nn.Conv2d(4, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(32, 1)
        )


@pytest.mark.parametrize("kind", [Line, Pictures])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
def test_killed_and_resumed_sees_the_same_next_batch_and_ends_with_the_same_bits(tmp_path: Path, optimizer: str, kind: type[Line]) -> None:
    """Found by a review: moments of a channels-last kernel came back in another layout, which the fused AdamW does not look at."""
    options = {"optimizer": optimizer, "channels_last": kind is Pictures}
    whole = kind()
    train(whole, config(**options), output=tmp_path / "whole")

    first = kind()
    plain = first.batch

    def dies(indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        if len(first.seen) == 12:
            raise Killed
        return plain(indices, generator)

    first.batch = dies  # type: ignore[method-assign]
    with pytest.raises(Killed):
        train(first, config(checkpoint_seconds=0.0, **options), output=tmp_path / "parts")
    second = kind()
    train(second, config(**options), output=tmp_path / "parts", resume=True)
    assert first.seen + second.seen == whole.seen
    for ours, theirs in zip(second.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_checkpoint_is_not_overwritten_and_not_mixed_with_another_configuration(tmp_path: Path) -> None:
    train(Line(), config(), output=tmp_path)
    with pytest.raises(UsageError, match="exists already"):
        train(Line(), config(), output=tmp_path)
    with pytest.raises(UsageError, match=r"learning_rate: 0\.01 there, 0\.5 here"):
        train(Line(), config(learning_rate=0.5), output=tmp_path, resume=True)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="at step"):
        train(Line(poison_at=10), config(checkpoint_seconds=0.0), output=tmp_path)
    from safetensors.torch import load_file

    kept = load_file(tmp_path / "checkpoint.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in kept.values())


def test_a_broken_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.safetensors").write_bytes(b"not a checkpoint")
    with pytest.raises(RunError, match=r"checkpoint\.safetensors is not a checkpoint"):
        train(Line(), config(), output=tmp_path, resume=True)


@pytest.mark.parametrize("bad", [{"steps": 0}, {"batch_size": 0}, {"optimizer": "lion"}, {"mixed_precision": "fp8"}])
def test_impossible_configurations_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        config(**bad)


TWO = """
import json, sys, torch
sys.path.insert(0, {here!r})
from pathlib import Path
from accelerate import Accelerator
from test_training import Line, config
from vis_accel.training import train
torch.set_num_threads(1)
accelerator = Accelerator(cpu=True)
task = Line()
train(task, config(steps=10), output=Path(sys.argv[1]))
facts = dict(world=accelerator.num_processes, seen=task.seen, weights=[p.tolist() for p in task.model.parameters()])
Path(sys.argv[1], f"{{accelerator.process_index}}.json").write_text(json.dumps(facts))
accelerator.end_training()
"""


def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    """Half a batch each, gradients averaged: together they see what one process sees, and end with equal weights.

    They are started by torch's launcher: with `--cpu`, accelerate 1.15 starts one process only.
    """
    (tmp_path / "two.py").write_text(TWO.format(here=str(Path(__file__).parent)))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    run = [*launch, str(tmp_path / "two.py"), str(tmp_path / "two")]
    done = subprocess.run(run, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    ranks = [json.loads((tmp_path / "two" / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert [rank["world"] for rank in ranks] == [2, 2]
    one = Line()
    train(one, config(steps=10), output=tmp_path / "one")
    assert [a + b for a, b in zip(ranks[0]["seen"], ranks[1]["seen"], strict=True)] == one.seen
    assert ranks[0]["weights"] == ranks[1]["weights"]
    losses = [json.loads((tmp_path / name / "history.json").read_text())["history"][-1]["loss"] for name in ("one", "two")]
    assert losses[1] == pytest.approx(losses[0], rel=0.25)  # the augmentation draws other numbers; each process reports its half
