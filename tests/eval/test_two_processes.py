"""Two processes measure what one measures.

They are started by torch's launcher, which `accelerate launch --multi_gpu` uses too: with `--cpu`, accelerate 1.15 starts one process only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vis_accel.errors import DataError
from vis_accel.eval.features import FeatureNet, extract, gather_features
from vis_accel.eval.fid import Statistics, fid_with_interval, frechet_distance, gather

WORKER = """
import json, sys
sys.path.insert(0, sys.argv[1])
import torch
from accelerate import Accelerator
from conftest import build_images, build_net
from vis_accel.eval.features import extract, gather_features
from vis_accel.eval.fid import Statistics, fid_with_interval, frechet_distance, gather

accelerator = Accelerator(cpu=True)
rank, world = accelerator.process_index, accelerator.num_processes
net, images = build_net(), build_images(700, 1)
batches = [torch.arange(700)[start : start + 100] for start in range(0, 700, 100)][rank::world]  # four and three: an uneven split
features = extract(net, (images[batch] for batch in batches))
own = Statistics.of(features)
merged = gather(own, accelerator)
together = gather_features(features, torch.cat(batches), accelerator)
reference = Statistics.of(extract(net, build_images(700, 0).split(100)))
interval = fid_with_interval(together, reference)
answer = dict(world=world, own=own.n, n=merged.n, sum=merged.sum.tolist(), outer=merged.outer.tolist(),
              fid=frechet_distance(merged, reference), value=interval.value, low=interval.low, features=together.tolist())
open(f"{sys.argv[2]}/{rank}.json", "w").write(json.dumps(answer))
accelerator.end_training()
"""


def test_two_processes_are_one(tmp_path: Path, net: FeatureNet, make_images: Callable[..., Tensor]) -> None:
    (tmp_path / "worker.py").write_text(WORKER)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(tmp_path / "worker.py"), str(Path(__file__).parent), str(tmp_path)]
    # The launcher starts in another folder: the package may be one that is only on this process's path.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    run = [sys.executable, *command]
    done = subprocess.run(run, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    answers = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]

    features = extract(net, make_images(700, 1).split(100))
    whole, reference = Statistics.of(features), Statistics.of(extract(net, make_images(700, 0).split(100)))
    alone = fid_with_interval(features, reference)
    assert [answer["own"] for answer in answers] == [400, 300]
    for answer in answers:
        assert (answer["world"], answer["n"]) == (2, 700)
        torch.testing.assert_close(torch.tensor(answer["sum"], dtype=torch.float64), whole.sum, rtol=1e-10, atol=0)
        torch.testing.assert_close(torch.tensor(answer["outer"], dtype=torch.float64), whole.outer, rtol=1e-10, atol=0)
        torch.testing.assert_close(torch.tensor(answer["features"]), features, rtol=1e-5, atol=1e-6)
        assert answer["fid"] == pytest.approx(frechet_distance(whole, reference), rel=1e-3)
        assert (answer["value"], answer["low"]) == pytest.approx((alone.value, alone.low), rel=1e-3)


def test_one_process_gathers_itself_and_a_double_image_is_refused() -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    features = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    statistics = gather(Statistics.of(features), accelerator)
    assert statistics.n == 50
    assert torch.equal(statistics.outer, Statistics.of(features).outer)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    assert torch.equal(gather_features(features[order], order, accelerator), features)
    with pytest.raises(DataError, match="twice"):
        gather_features(features, torch.zeros(50), accelerator)
