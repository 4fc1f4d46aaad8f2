"""Early exit on tiny models: laws E1 to E9 of the vision half, and what it refuses."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from vit_models.families import images, state, tiny

from vis_accel import addons
from vis_accel.apply import accelerate
from vis_accel.early_exit.heads import build_head
from vis_accel.errors import ConflictError, DataError, NotApplicableError, UsageError
from vis_accel.recipe import Recipe
from vis_accel.vit_models.view import view

EXITS = ((0, "mlp"), (1, "local"), (2, "vit"))


def with_heads(path: Path, family: str = "plain", exits: Any = EXITS, classes: int = 10) -> Path:
    """An add-on with random heads and a calibration in which exits and model often agree."""
    model = tiny(family)
    found = view(model)
    torch.manual_seed(1)
    tensors: dict[str, torch.Tensor] = {}
    for block, design in exits:
        head = build_head(design, width=found.width, classes=classes, grid=found.grid, prefix=found.prefix)
        with torch.no_grad():
            head.classify.weight.mul_(4)
        tensors |= {f"head.{block}.{name}": value for name, value in head.state_dict().items()}
    generator = torch.Generator().manual_seed(2)
    labels = torch.randint(0, 10, (400,), generator=generator)
    logits = torch.randn(len(exits) + 1, 400, 10, generator=generator)
    logits[:, torch.arange(400), labels] += torch.linspace(1, 5, len(exits) + 1)[:, None]
    tensors |= {"calibration.logits": logits, "calibration.labels": labels.to(torch.uint8)}
    addons.save(path, tensors, method="early-exit", model=model, facts={"exits": [list(one) for one in exits]})
    return path


@pytest.fixture
def heads(tmp_path: Path) -> Path:
    return with_heads(tmp_path / "heads.safetensors")


def recipe(heads: Path, **options: object) -> str:
    inner = ", ".join(f"{name}={value!r}" for name, value in options.items())
    return f"early-exit(weights='{heads}'{', ' + inner if inner else ''})"


@torch.no_grad()
def logits(model: Any, pictures: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = model(pictures)
    return found


def test_never_is_bit_identical(heads: Path) -> None:
    model, pictures = tiny("plain"), images(5)
    plain = logits(model, pictures)
    with accelerate(model, recipe(heads, threshold="never")):
        assert torch.equal(logits(model, pictures), plain)
    handle = accelerate(model, recipe(heads, threshold=1.5))  # no probability is that large
    assert torch.equal(logits(model, pictures), plain)
    assert handle.report()["exits"] == (0, 0, 0, 5)
    handle.remove()


def test_always_is_the_truncated_model(heads: Path) -> None:
    model, pictures = tiny("plain"), images(5)
    addon = addons.find("early-exit", model, str(heads))
    head = build_head("mlp", width=32, classes=10, grid=(4, 4), prefix=1).eval()
    head.load_state_dict({name.removeprefix("head.0."): value for name, value in addon.tensors.items() if name.startswith("head.0.")})
    seen: list[torch.Tensor] = []
    hook = model.blocks[0].register_forward_hook(lambda module, args, out: seen.append(out))
    logits(model, pictures)
    hook.remove()
    handle = accelerate(model, recipe(heads, threshold=0.0))
    visited: list[int] = []
    hooks = [model.blocks[index].attn.register_forward_hook(lambda *args, index=index: visited.append(index)) for index in range(4)]
    with torch.no_grad():
        torch.testing.assert_close(logits(model, pictures), head(seen[0]))
    assert visited == [0]  # later blocks were not run
    assert handle.report()["exits"] == (5, 0, 0, 0)
    for one in hooks:
        one.remove()
    handle.remove()


@pytest.mark.parametrize("criterion", ["confidence", "margin", "entropy", "patience", "budget"])
@pytest.mark.parametrize("family", ["plain", "distilled", "dinov2", "average", "eva"])
def test_a_batch_is_its_images_one_by_one_in_their_order(tmp_path: Path, family: str, criterion: str) -> None:
    path = with_heads(tmp_path / "heads.safetensors", family, exits=((0, "mlp"), (1, "cnn-ignore"), (2, "mlp")))
    model, pictures = tiny(family), images(24)
    before = state(model)
    options: dict[str, object] = {"criterion": criterion}
    if criterion in ("confidence", "margin", "entropy"):
        options["threshold"] = {"confidence": 0.35, "margin": 0.15, "entropy": -1.7}[criterion]
    handle = accelerate(model, recipe(path, **options))
    together = logits(model, pictures)
    counts = handle.report()["exits"]
    assert sum(counts) == 24
    alone = torch.cat([logits(model, picture[None]) for picture in pictures])
    near = ~torch.isclose(together, alone, rtol=1e-4, atol=1e-4).all(dim=1)
    assert int(near.sum()) <= 1  # an image within rounding of a threshold may leave elsewhere
    turned = logits(model, pictures.flip(0)).flip(0)
    assert int((~torch.isclose(together, turned, rtol=1e-4, atol=1e-4).all(dim=1)).sum()) <= 1
    assert sum(handle.report()["exits"]) == 72
    handle.remove()
    assert state(model) == before
    if criterion == "confidence":
        assert sum(count > 0 for count in counts) >= 2  # the case is worth something: not all in one place


def test_a_lower_threshold_never_goes_deeper(heads: Path) -> None:
    model, pictures = tiny("plain"), images(16)
    before = None
    for threshold in (0.9, 0.5, 0.4, 0.3, 0.2):
        exits = []
        handle = accelerate(model, recipe(heads, threshold=threshold))
        last = handle.report()["exits"]
        for picture in pictures:
            logits(model, picture[None])
            now = handle.report()["exits"]
            exits.append(next(i for i in range(4) if now[i] != last[i]))
            last = now
        handle.remove()
        assert before is None or all(new <= old for new, old in zip(exits, before, strict=True))
        before = exits


def test_who_cannot_be_judged_goes_all_the_way(heads: Path) -> None:
    model, pictures = tiny("plain"), images(3)
    pictures[1] = torch.nan
    with accelerate(model, recipe(heads, threshold=0.0)) as handle:
        found = logits(model, pictures)
        assert handle.report()["exits"] == (2, 0, 0, 1)
    assert found[1].isnan().all()
    assert found[[0, 2]].isfinite().all()


def test_under_merged_tokens(tmp_path: Path) -> None:
    model, pictures = tiny("plain"), images(12)
    path = with_heads(tmp_path / "mlp.safetensors", exits=((0, "mlp"), (2, "mlp")))
    with accelerate(model, f"tome(r=3) + {recipe(path, threshold=0.35)}") as handle:
        together = logits(model, pictures)
        alone = torch.cat([logits(model, picture[None]) for picture in pictures])
        assert sum(handle.report()["exits"]) == 24
    assert int((~torch.isclose(together, alone, rtol=1e-4, atol=1e-4).all(dim=1)).sum()) <= 1
    with accelerate(model, "tome(r=3)"):
        merged = logits(model, pictures)
    with accelerate(model, f"tome(r=3) + cls-only-last + {recipe(path, threshold=1.5)}"):
        torch.testing.assert_close(logits(model, pictures), merged, rtol=1e-4, atol=1e-5)


def test_heads_on_the_grid_exclude_dropped_tokens(heads: Path) -> None:
    with pytest.raises(NotApplicableError, match="local"):
        accelerate(tiny("plain"), f"tome(r=3) + {recipe(heads)}")


def test_risk_controlled_thresholds_are_described(heads: Path) -> None:
    model = tiny("plain")
    method = Recipe.parse(recipe(heads, epsilon=0.05)).methods[0]
    lines = method.describe(view(model))
    assert "400 calibration images" in lines[1]
    assert "95%" in lines[1]
    assert "of 4 blocks" in lines[1]
    with accelerate(model, recipe(heads, epsilon=0.05)) as handle:
        logits(model, images(8))
        assert sum(handle.report()["exits"]) == 8


def test_exits_unlike_the_calibration_are_noticed(heads: Path) -> None:
    model = tiny("plain")
    with accelerate(model, recipe(heads, epsilon=0.3)) as handle:
        logits(model, images(1).expand(50, -1, -1, -1))
        assert "calibration" in handle.report()["warning"]


def test_a_copy_runs_its_own_blocks_and_counts_for_itself(heads: Path) -> None:
    model, pictures = tiny("plain"), images(6)
    with accelerate(model, recipe(heads, threshold=0.35)) as handle:
        wanted, counts = logits(model, pictures), handle.report()["exits"]
        twin = copy.deepcopy(model)
        with torch.no_grad():
            for block in model.blocks:
                block.mlp.fc2.weight.zero_()
        assert torch.equal(logits(twin, pictures), wanted)
        assert handle.report()["exits"] == counts
        assert not torch.allclose(logits(model, pictures), wanted)


def test_training_sees_the_plain_model(heads: Path) -> None:
    model = tiny("plain").train()
    pictures = images(3)
    plain = model(pictures)
    with accelerate(model, recipe(heads, threshold=0.0)):
        assert torch.equal(model(pictures), plain)


def test_backbone_weights_come_and_go(tmp_path: Path) -> None:
    model = tiny("plain")
    path = with_heads(tmp_path / "heads.safetensors")
    addon = addons.find("early-exit", model, str(path))
    tuned = {name: value + 0.01 * torch.randn_like(value) for name, value in model.state_dict().items()}
    tensors = addon.tensors | addons.differences(model, tuned, "model.")
    addons.save(path, tensors, method="early-exit", model=model, facts=addon.facts)
    plain = model.blocks[1].mlp.fc1.weight.clone()
    with accelerate(model, recipe(path)):
        now = model.blocks[1].mlp.fc1.weight
        rows = (tuned["blocks.1.mlp.fc1.weight"] - plain).abs().amax(dim=1, keepdim=True)
        assert ((now - tuned["blocks.1.mlp.fc1.weight"]).abs() <= rows / 127 * 0.51 + 1e-7).all()
        assert not torch.equal(now, plain)
    assert torch.equal(model.blocks[1].mlp.fc1.weight, plain)


def test_segments_compile_into_buckets(heads: Path) -> None:
    from vis_accel.runtime.compile import find_compiler

    if find_compiler() is None:
        pytest.skip("no C++ compiler")
    path = with_heads(heads.with_name("two.safetensors"), exits=((1, "mlp"),))
    model, pictures = tiny("plain"), images(16)
    addon = addons.find("early-exit", model, str(path))  # the threshold at which half of these images leave
    head = build_head("mlp", width=32, classes=10, grid=(4, 4), prefix=1).eval()
    head.load_state_dict({n.removeprefix("head.1."): v for n, v in addon.tensors.items() if n.startswith("head.1.")})
    with torch.no_grad():
        tokens = model.forward_intermediates(pictures, indices=[1], output_fmt="NLC", return_prefix_tokens=True)[1][0]
        scores = head(torch.cat((tokens[1], tokens[0]), dim=1)).softmax(1).amax(1).sort().values
    threshold = float((scores[9] + scores[10]) / 2)
    with accelerate(model, recipe(path, threshold=threshold)) as handle:
        wanted = logits(model, pictures)
        assert handle.report()["exits"] == (6, 10)
    with accelerate(model, recipe(path, threshold=threshold, compile=True)) as handle:
        found = logits(model, pictures)  # ten survivors are filled up to twelve
        assert handle.report()["exits"] == (6, 10)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
    torch._dynamo.reset()


def test_whole_compilation_is_refused_with_exits() -> None:
    with pytest.raises(ConflictError, match="static forward"):
        Recipe.parse("early-exit + compile")


def test_without_heads_it_says_how_to_get_them() -> None:
    with pytest.raises(NotApplicableError, match="trained parameters") as caught:
        accelerate(tiny("plain"), "early-exit")
    assert "vit_models/early_exit.py train" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"threshold": (0.5, 0.5)}, "3, one for each exit"),
        ({"threshold": "nver"}, "never"),
        ({"criterion": "patience", "patience": 4}, "at most 3"),
        ({"criterion": "patience", "threshold": 0.5}, "has none"),
        ({"criterion": "entrpy"}, "entropy"),
        ({"epsilon": 0.0}, "> 0"),
    ],
)
def test_what_does_not_fit_is_said(heads: Path, options: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        accelerate(tiny("plain"), recipe(heads, **options))


@pytest.mark.parametrize("exits", [((3, "mlp"),), ((1, "mlp"), (0, "mlp")), ()])
def test_exits_in_impossible_places(tmp_path: Path, exits: Any) -> None:
    path = with_heads(tmp_path / "a.safetensors", exits=exits)
    with pytest.raises(DataError, match="exits after the blocks"):
        accelerate(tiny("plain"), recipe(path))


def test_heads_for_other_classes(tmp_path: Path) -> None:
    path = with_heads(tmp_path / "a.safetensors", classes=7)
    with pytest.raises(DataError, match="another model"):
        accelerate(tiny("plain"), recipe(path))


def test_features_are_refused(heads: Path) -> None:
    model = tiny("plain")
    with accelerate(model, recipe(heads)), pytest.raises(NotApplicableError, match="left early"):
        model.forward_intermediates(images())
