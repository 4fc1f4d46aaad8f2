"""`compile`: the same numbers, the way back, and several recipes on one model."""

from __future__ import annotations

import pytest
import torch
from vit_models.families import images, state, tiny

from vis_accel.apply import accelerate
from vis_accel.errors import MissingDependencyError, NoEffectError, UsageError
from vis_accel.runtime import compile as module

needs_compiler = pytest.mark.skipif(module.find_compiler() is None, reason="no C++ compiler")


@needs_compiler
def test_recipes_on_one_model_each_keep_their_graph() -> None:
    model, pictures = tiny("plain", depth=2), images()
    before = state(model)
    with torch.inference_mode():
        wanted = {"compile": model(pictures)}
        with accelerate(model, "tome(r=3)"):
            wanted["tome(r=3) + compile"] = model(pictures)
        handles = {}
        for recipe in wanted:
            handles[recipe] = accelerate(model, recipe)
            model(pictures)
            handles[recipe].suspend()
        with torch.compiler.set_stance("fail_on_recompile"):
            for recipe in (*wanted, *wanted):
                with _on(handles[recipe]):
                    torch.testing.assert_close(model(pictures), wanted[recipe], rtol=1e-4, atol=1e-5)
    for recipe in reversed(wanted):
        handles[recipe].remove()
    assert state(model) == before
    torch._dynamo.reset()


@needs_compiler
def test_blocks_of_one_kind_share_a_graph() -> None:
    model, pictures = tiny("plain", depth=3), images()
    before = state(model)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with torch.inference_mode():
        wanted = model(pictures)
        with accelerate(model, "compile(regional=True)"):
            torch.testing.assert_close(model(pictures), wanted, rtol=1e-4, atol=1e-5)
            assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
            with torch.compiler.set_stance("fail_on_recompile"):
                model(pictures)
    assert state(model) == before
    assert torch.equal(model(pictures), wanted)
    torch._dynamo.reset()


def test_which_blocks_repeat() -> None:
    model = tiny("plain", depth=3)
    assert list(module.repeated(model).values()) == [list(model.blocks)]  # not what lies within them
    with pytest.raises(NoEffectError, match="no blocks repeat"):
        accelerate(tiny("plain", depth=1), "compile(regional=True)")
    with pytest.raises(UsageError, match="as a whole"):
        accelerate(model, "compile(backend='openvino', regional=True)")


class _on:
    def __init__(self, handle: object) -> None:
        self.handle = handle

    def __enter__(self) -> None:
        self.handle.resume()  # type: ignore[attr-defined]

    def __exit__(self, *error: object) -> None:
        self.handle.suspend()  # type: ignore[attr-defined]


def test_no_compiler_is_said_beforehand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"C\+\+ compiler"):
        accelerate(tiny("plain"), "compile")
