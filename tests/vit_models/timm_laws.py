"""What holds of every classifier registered with timm; each function asserts one law of a small model with random weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.models import group_parameters
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode


def counted(name: str) -> tuple[float, float, Any]:
    """Millions of parameters, 10^9 multiply-adds of one 224 x 224 image (the counter counts two each), and the model."""
    model = timm.create_model(name).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.randn(1, 3, 224, 224))
    return sum(parameter.numel() for parameter in model.parameters()) / 1e6, counter.get_total_flops() / 2e9, model


def built(name: str, **sizes: Any) -> Any:
    """A small model in evaluation mode, the same each time, whose every part matters: no bias or gain is left at its start."""
    torch.manual_seed(3)
    model = timm.create_model(name, **sizes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.1 if parameter.ndim < 2 else 0.5 / parameter[0].numel() ** 0.5))
    return model.eval()


def images(count: int, size: int, width: int | None = None) -> Tensor:
    """Random images (count x 3 x size x width), the same each time."""
    return torch.randn(count, 3, size, width or size, generator=torch.Generator().manual_seed(7))


def logits_by_steps(model: Any, x: Tensor) -> None:
    with torch.no_grad():
        whole, features = model(x), model.forward_features(x)
        before = model.forward_head(features, pre_logits=True)
        assert whole.shape == (len(x), model.num_classes)
        assert before.shape == (len(x), model.head_hidden_size)
        assert torch.equal(model.forward_head(features), whole)
        assert torch.equal(model.get_classifier()(before), whole)
        assert torch.equal(model(x), whole), "evaluation is not deterministic"


def batch_is_one_by_one(model: Any, x: Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(model(x), torch.cat([model(image[None]) for image in x]), rtol=1e-4, atol=1e-5)


def intermediates(model: Any, x: Tensor, features_only: Any) -> None:
    """Stages hand out their maps; features_only hands out the same."""
    with torch.no_grad():
        last, maps = model.forward_intermediates(x)
        assert torch.equal(last, model.forward_features(x))
        (second,) = model.forward_intermediates(x, indices=[1], stop_early=True, intermediates_only=True)
        assert torch.equal(second, maps[1])
        features_only.load_state_dict({f"model.{key}": value for key, value in model.state_dict().items()}, strict=False)
        for ours, theirs, told in zip(maps, features_only.eval()(x), model.feature_info, strict=True):
            assert torch.equal(ours, theirs)
            assert ours.shape == (len(x), told["num_chs"], x.shape[2] // told["reduction"], x.shape[3] // told["reduction"])


def head_can_be_changed(model: Any, x: Tensor) -> None:
    with torch.no_grad():
        features = model.forward_features(x)
        pooled = model.forward_head(features, pre_logits=True)
        model.reset_classifier(3)
        assert model(x).shape == (len(x), 3)
        assert model.num_classes == 3
        model.reset_classifier(0)
        assert torch.equal(model(x), pooled)
        model.reset_classifier(0, "")
        assert model(x).ndim > 2, "nothing is pooled"
        model.reset_classifier(5, "avg")
        assert model(x).shape == (len(x), 5)


def state_comes_back(model: Any, fresh: Any, x: Tensor) -> None:
    with torch.no_grad():
        assert not torch.equal(fresh(x), model(x))
        fresh.load_state_dict(model.state_dict())
        assert torch.equal(fresh(x), model(x))


def learns(model: Any, x: Tensor) -> None:
    """Every parameter has a gradient, the same with recomputation, and one step against it lowers the loss."""
    labels = torch.arange(len(x)) % model.num_classes
    model.train()
    parameters = dict(model.named_parameters())
    found = []
    for recomputed in (False, True):
        model.set_grad_checkpointing(recomputed)
        loss = F.cross_entropy(model(x), labels)
        found.append(torch.autograd.grad(loss, list(parameters.values())))
    assert [name for name, slope in zip(parameters, found[0], strict=True) if not slope.abs().sum() > 0] == []
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        for parameter, slope in zip(parameters.values(), found[0], strict=True):
            parameter -= 1e-3 * slope
        assert F.cross_entropy(model(x), labels) < loss


def layers_for_decay(model: Any, blocks: int) -> None:
    """Stem 0, blocks rising by one each in their order, the norm with the last of them as in timm's ViTs, then the head."""
    layers = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    assert set(layers) == {name for name, _ in model.named_parameters()}
    assert {layer for name, layer in layers.items() if name.startswith("patch_embed")} == {0}
    of_blocks = [layers[name] for name, _ in model.named_parameters() if ".blocks." in name]
    assert of_blocks == sorted(of_blocks)
    assert set(of_blocks) == set(range(1, blocks + 1))
    assert layers["norm.weight"] == blocks
    assert {layer for name, layer in layers.items() if name.startswith(("neck", "head"))} == {blocks + 1}
    coarse = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    assert len({coarse[name] for name in coarse if name.startswith("stages")}) == len(model.feature_info)


def exported(model: Any, x: Tensor) -> None:
    """torch.export with a dynamic batch, run at another batch."""
    program = torch.export.export(model, (x,), dynamic_shapes={"x": {0: torch.export.Dim("batch", min=2, max=64)}}).module()
    more = torch.cat((x, x[:1] * 0.5))
    with torch.no_grad():
        torch.testing.assert_close(program(more), model(more), rtol=1e-4, atol=1e-5)


def in_onnx(model: Any, x: Tensor, folder: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    import onnxruntime

    path = folder / "model.onnx"
    with torch.no_grad():  # with gradients torch 2.15 takes attention under a mask apart and forgets its strides
        torch.onnx.export(model, (x,), str(path), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(found, model(x).numpy(), rtol=1e-3, atol=1e-4)


def refuses(make: Callable[[], Any], error: type[Exception], *words: str) -> None:
    with pytest.raises(error) as caught:
        make()
    assert [word for word in words if word not in str(caught.value)] == []
