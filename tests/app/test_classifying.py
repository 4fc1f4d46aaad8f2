"""A picture through a vision transformer, plainly and under recipes: answers, tokens, exits; and pictures that are none."""

from __future__ import annotations

import io
import struct
import zlib

import pytest

pytest.importorskip("gradio", reason="needs the extra app")

import torch
from PIL import Image

from vis_accel.app.catalog import Catalog
from vis_accel.app.classifying import Classified, start_classify
from vis_accel.app.requests import ClassifyRequest, read
from vis_accel.app.settings import Settings
from vis_accel.app.tokens import groups
from vis_accel.app.uploads import decoded, from_path, from_text
from vis_accel.apply import accelerate
from vis_accel.early_exit.explain import explain
from vis_accel.errors import DataError, NoEffectError, UsageError
from vis_accel.token_pruning.trace import trace, trace_blocks
from vis_accel.zoo.labelled import Preparation, bundled_images


def sample(index: int = 7) -> Image.Image:
    images = bundled_images("cifar10-vit")
    assert images is not None
    return decoded(images.read(index), Settings())


def classified(catalog: Catalog, recipe: str, index: int = 7) -> Classified:
    task = start_classify(read(ClassifyRequest, catalog, model="cifar10-vit", recipe=recipe), sample(index), catalog)
    for _ in task.follow():
        pass
    found: Classified = task.result
    return found


def inputs(catalog: Catalog, index: int = 7) -> torch.Tensor:
    network = catalog.get("cifar10-vit").target
    preparation = Preparation.of(network)
    return preparation.normalised(preparation.transform(sample(index))[None], next(network.parameters()))


@torch.no_grad()
def test_answers_are_the_models_own(catalog: Catalog) -> None:
    found = classified(catalog, "tome(r=5)")
    model = catalog.get("cifar10-vit")
    shares = model.target(inputs(catalog))[0].softmax(0)
    assert [name for name, _ in found.plain.top] == [model.classes[index] for index in shares.topk(5).indices]
    assert found.plain.top[0][1] == pytest.approx(float(shares.max()), rel=1e-5)
    with accelerate(model.target, "tome(r=5)"):
        fast = model.target(inputs(catalog))[0].softmax(0)
    assert found.fast.top[0][1] == pytest.approx(float(fast.max()), rel=1e-5)
    assert found.plain.seconds > 0
    assert found.fast.seconds > 0


def test_each_stage_shows_what_became_of_the_tokens(catalog: Catalog) -> None:
    found = classified(catalog, "topk(keep=0.5)")
    assert [stage.block for stage in found.stages] == [2, 4, 6]
    assert [stage.tokens for stage in found.stages] == [33, 17, 9]
    assert [stage.dropped for stage in found.stages] == [32, 48, 56]
    picture = found.stages[-1].picture
    dark = float((picture.float().mean(dim=0) < 60).float().mean())
    assert dark > 0.7  # seven of eight patches are gone


def test_merged_patches_get_one_colour(catalog: Catalog) -> None:
    found = classified(catalog, "tome(r=5)")
    assert [stage.tokens for stage in found.stages] == [60, 50, 45, 35, 30, 20]
    assert {stage.dropped for stage in found.stages} == {0}
    source = torch.zeros(3, 5)
    source[0, 0] = source[1, 1] = source[1, 2] = source[2, 4] = 1
    assert groups(source, prefix=1).tolist() == [1, 1, -1, 2]


def test_the_blocks_of_a_trace_end_in_the_trace(catalog: Catalog) -> None:
    network, x = catalog.get("cifar10-vit").target, inputs(catalog)
    with accelerate(network, "topk(keep=0.5)"):
        blocks, end = trace_blocks(network, x), trace(network, x)
        assert torch.equal(blocks[max(blocks)].source, end.source)
        assert [int(found.number[0]) for found in blocks.values()] == [33, 33, 17, 17, 9, 9, 9]
    with accelerate(network, "topk + cls-only-last"):
        assert max(trace_blocks(network, x)) == 7
        with pytest.raises(NoEffectError, match="does not follow"):
            trace(network, x)


@torch.no_grad()
def test_it_says_where_a_picture_left_and_why(catalog: Catalog) -> None:
    network, x = catalog.get("cifar10-vit").target, inputs(catalog)
    with accelerate(network, "early-exit(threshold=0.0)"):
        (only,) = explain(network, x)
        assert (only.block, only.threshold, only.left) == (2, 0.0, True)
        sure = float(network(x)[0].softmax(0).max())
    assert only.score == pytest.approx(sure, rel=1e-4)
    with accelerate(network, "early-exit(threshold=1.1)") as handle:
        seen = explain(network, x)
        assert [(one.block, one.left) for one in seen] == [(2, False), (4, False), (6, False)]
        assert handle.report()["exits"] == (0, 0, 0, 1)
        with pytest.raises(UsageError, match="One image"):
            explain(network, x.repeat(2, 1, 1, 1))
    with pytest.raises(NoEffectError, match="no exits"):
        explain(network, x)
    with accelerate(network, "early-exit(criterion='patience', patience=2)"):
        seen = explain(network, x)
        assert [one.score for one in seen][:2] == [1.0, 2.0]
        assert seen[-1].threshold == 2.0


def test_exits_are_told_in_words(catalog: Catalog) -> None:
    found = classified(catalog, "early-exit(threshold=0.0)")
    assert found.exits[0].startswith("After block 2: left, sure to 0.")
    all_the_way = classified(catalog, "early-exit(threshold='never')")
    assert all_the_way.exits == ()
    assert classified(catalog, "early-exit(threshold=1.1)").exits[-1] == "It went all the way, through 9 blocks."


def test_the_model_is_left_as_it_was(catalog: Catalog) -> None:
    network, x = catalog.get("cifar10-vit").target, inputs(catalog)
    before = network(x)
    for recipe in ("early-exit", "tome(r=5)", "evit"):
        classified(catalog, recipe)
    assert torch.equal(network(x), before)
    assert not any("forward" in vars(module) for module in network.modules())


# Pictures from strangers


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to be huge, and would be if it was inflated."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def encoded(kind: str, size: tuple[int, int] = (40, 30)) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", size, "red").save(data, kind)
    return data.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
def test_pictures_open(kind: str) -> None:
    assert decoded(encoded(kind), Settings()).size == (40, 30)


@pytest.mark.parametrize(
    "data",
    [b"", b"x", b"<svg xmlns='http://www.w3.org/2000/svg'/>", encoded("GIF"), encoded("TIFF"), encoded("PNG")[:60],
     encoded("JPEG")[:100], bomb(0, 5)],
    ids=["empty", "text", "svg", "gif", "tiff", "half a png", "half a jpeg", "no width"],
)  # fmt: skip
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises(DataError, match="no picture that can be read"):
        decoded(data, Settings())


def test_a_bomb_is_refused_by_its_header() -> None:
    with pytest.raises(UsageError, match=r"at most 4,000,000 pixels; this one is 10000 x 10000"):
        decoded(bomb(10_000, 10_000), Settings())
    with pytest.raises(UsageError, match="this one has far more"):
        decoded(bomb(30_000, 30_000), Settings())
    with pytest.raises(UsageError, match="pixels"):
        decoded(encoded("PNG", (2001, 2000)), Settings())
    with pytest.raises(UsageError, match="bytes"):
        decoded(bytes(5_000_001), Settings())


def test_text_of_a_picture() -> None:
    import base64

    text = base64.b64encode(encoded("PNG")).decode()
    assert from_text(text, Settings()).size == (40, 30)
    assert from_text(f"data:image/png;base64,{text}", Settings()).size == (40, 30)
    for wrong in ("", "!!!!", "data:image/png;base64,", "/etc/passwd", "http://127.0.0.1/x.png", "file:///etc/passwd"):
        with pytest.raises(DataError):
            from_text(wrong, Settings())
    with pytest.raises(UsageError, match="bytes"):
        from_text("A" * 7_000_000, Settings())
    with pytest.raises(UsageError, match="no picture yet"):
        from_path(None, Settings())
