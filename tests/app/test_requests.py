"""What is refused before anything runs, and in which words."""

from __future__ import annotations

import time
from typing import Any

import pytest

pytest.importorskip("gradio", reason="needs the extra app")

from vis_accel.app.catalog import Catalog
from vis_accel.app.requests import ClassifyRequest, CompareRequest, GenerateRequest, read
from vis_accel.errors import UsageError

NAN, INFINITE = float("nan"), float("inf")
BAD: list[tuple[dict[str, Any], str]] = [
    ({"count": 0}, "count: input should be greater than or equal to 1; got 0"),
    ({"count": 9}, "count must be at most 8; got 9"),
    ({"count": True}, "count: must be a finite number; got True"),
    ({"count": NAN}, "count: must be a finite number; got nan"),
    ({"count": 2.5}, "count: must be a whole number; got 2.5"),
    ({"count": "4"}, "count: must be a finite number; got '4'"),
    ({"count": 10**400}, "count: must be a finite number; got "),
    ({"seed": -1}, "seed"),
    ({"seed": 2**40}, "seed"),
    ({"seed": None}, "seed"),
    ({"guidance": NAN}, "guidance: must be a finite number; got nan"),
    ({"guidance": -(10**400)}, "guidance: must be a finite number"),
    ({"guidance": INFINITE}, "guidance: must be a finite number; got inf"),
    ({"guidance": 101}, "guidance"),
    ({"steps": 61}, "steps must be at most 60; got 61"),
    ({"steps": 0}, "steps"),
    ({"size": 7}, "size"),
    ({"size": 100_000}, "size must be at most 2000"),
    ({"size": 64}, "DiTPipeline takes no height"),
    ({"classes": [10]}, "no class 10; its classes are 0 to 9"),
    ({"classes": [NAN]}, "classes.0"),
    ({"classes": "cat"}, "classes"),
    ({"prompt": "a cat"}, "takes no prompt"),
    ({"prompt": "x" * 501}, "prompt"),
    ({"model": "cifar10-vit"}, "classifies pictures; it makes none"),
    ({"model": "../../etc/passwd"}, "there is no model"),
    ({"model": "owner/name"}, "there is no model"),
    ({"model": 3}, "model"),
    ({"recipe": "dmp(steps=10)"}, "did you mean dpm"),
    ({"recipe": "dpm(steps=61)"}, "at most 60 steps"),
    ({"recipe": "dpm + heun"}, "both replace the scheduler"),
    ({"recipe": "tome(r=8)"}, "for vision transformers"),
    ({"recipe": "compile"}, "--slow-methods"),
    ({"recipe": "restart(inner=100000000, times=2)"}, "too many calls"),
    ({"recipe": "restart(inner=20, times=20, steps=60)"}, "at most 400 are allowed here"),
    ({"recipe": "x" * 2000}, "at most 1000 characters"),
    ({"recipe": f"dpm(schedule=({', '.join(str(90 - i) for i in range(70))}))"}, "at most 60 steps"),
    ({"recipe": None}, "recipe"),
    ({"unknown": 1}, "unknown: extra inputs are not permitted"),
]


@pytest.mark.parametrize(("change", "words"), BAD, ids=[str(change)[:60] for change, _ in BAD])
def test_a_bad_request_is_refused_at_once_with_the_reason(catalog: Catalog, change: dict[str, Any], words: str) -> None:
    read(GenerateRequest, catalog, model="cifar10-dit")  # the model is there: what is timed is the refusal
    start = time.perf_counter()
    with pytest.raises(UsageError) as refused:
        read(GenerateRequest, catalog, **{"model": "cifar10-dit", **change})
    assert words in str(refused.value)
    assert len(str(refused.value)) < 1200
    assert time.perf_counter() - start < 5


def test_what_a_browser_sends_is_read(catalog: Catalog) -> None:
    found = read(GenerateRequest, catalog, model="cifar10-dit", seed=7.0, count=2.0, classes=[3.0], guidance=2, recipe=" dpm( steps=10 ) ")
    assert (found.seed, found.count, found.classes, found.recipe) == (7, 2, (3,), "dpm(steps=10)")
    assert type(found.count) is int
    job = found.job(catalog)
    assert (job.guidance_scale, job.steps, job.class_labels) == (2.0, 50, (3,))


@pytest.mark.parametrize(
    "recipe", ["early-exit(weights='/etc/passwd')", "early-exit(weights='../early-exit')", "avit(weights='x.safetensors')"]
)
def test_a_recipe_cannot_name_a_file(catalog: Catalog, recipe: str) -> None:
    with pytest.raises(UsageError, match="files cannot be named here"):
        read(ClassifyRequest, catalog, model="cifar10-vit", recipe=recipe)


def test_parameters_that_ship_can_be_named(catalog: Catalog) -> None:
    found = read(ClassifyRequest, catalog, model="cifar10-vit", recipe="tuned(weights='evit-70') + evit")
    assert found.recipe == "tuned(weights='evit-70') + evit"


def test_both_recipes_of_a_comparison_are_checked(catalog: Catalog) -> None:
    with pytest.raises(UsageError, match="second: There is no method named 'foo'"):
        read(CompareRequest, catalog, model="cifar10-dit", first="dpm", second="foo")
    with pytest.raises(UsageError, match="for vision transformers"):
        read(CompareRequest, catalog, model="cifar10-dit", first="tome(r=2)", second="dpm")
