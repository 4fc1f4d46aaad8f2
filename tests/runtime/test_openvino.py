"""compile(backend='openvino'): the same numbers, each shape its own graph, and integers where layers are rounded."""

from __future__ import annotations

import pytest
import torch
from precision.targets import answer, build, state
from vit_models.families import images, tiny

from vis_accel import MissingDependencyError, RunError
from vis_accel.apply import accelerate
from vis_accel.precision import kernels
from vis_accel.runtime import openvino
from vis_accel.runtime.openvino import OpenVinoForward


def test_without_openvino_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(MissingDependencyError, match=r"openvino"):
        accelerate(tiny("plain"), "compile(backend='openvino')")


@pytest.mark.parametrize("name", ["dit", "unet", "vit"])
def test_the_same_numbers_and_the_way_back(name: str) -> None:
    pytest.importorskip("openvino")
    target = build(name)
    plain, before = answer(target), state(target)
    with accelerate(target, "compile(backend='openvino')"):
        torch.testing.assert_close(answer(target), plain, rtol=1e-3, atol=1e-3)
    assert state(target) == before
    assert torch.equal(answer(target), plain)


@pytest.mark.skipif(kernels.supported() is not None, reason=str(kernels.supported()))
@torch.no_grad()
def test_rounded_layers_become_integer_kernels() -> None:
    pytest.importorskip("openvino")
    model = tiny("plain")
    with accelerate(model, "int8(probe=False)", calibration=images()):
        wanted = model(images())
        forward = OpenVinoForward(model, model.forward, "f32")
        found = forward(images())
        assert forward(images(2)).shape == (2, 10)  # another shape, another graph
        kinds = " ".join(node.get_rt_info()["runtimePrecision"].astype(str) for graph in forward._graphs.values() for node in graph.nodes())
    assert float((found - wanted).pow(2).mean().sqrt() / wanted.std()) < 0.05
    assert "u8" in kinds or "i8" in kinds


def test_a_graph_that_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    honest = openvino._Graph.run
    monkeypatch.setattr(openvino._Graph, "run", lambda graph, tensors: honest(graph, tensors) * 1.2)
    model = tiny("plain")
    with accelerate(model, "compile(backend='openvino')"), pytest.raises(RunError, match="something else"):
        model(images())
