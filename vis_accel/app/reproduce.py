"""How to have the same again: the command, the lines of Python, and the link that brings the settings back."""

from __future__ import annotations

import shlex
from urllib.parse import urlencode

from vis_accel.app.requests import ClassifyRequest, CompareRequest, GenerateRequest, Request

__all__ = ["command", "link", "python"]


def command(request: GenerateRequest | CompareRequest) -> str:
    """The line that writes the very pictures of this request; two for a comparison."""
    if isinstance(request, CompareRequest):
        return " && \\\n".join((_generate(request, request.first, "first"), _generate(request, request.second, "second")))
    return _generate(request, request.recipe, "pictures")


def _generate(request: GenerateRequest | CompareRequest, recipe: str, output: str) -> str:
    words = ["vis-accel", "generate", "--model", request.model]
    words += [] if recipe == "none" else ["--recipe", recipe]
    words += ["--count", str(request.count), "--batch", str(request.count), "--seed", str(request.seed)]
    optional = {
        "--class-labels": ",".join(map(str, request.classes)),
        "--prompt": request.prompt,
        "--guidance-scale": request.guidance,
        "--steps": request.steps,
        "--height": request.size,
        "--width": request.size,
    }
    for name, value in optional.items():
        words += [] if value in (None, "") else [name, str(value)]
    return shlex.join([*words, "--output", output])


def python(request: GenerateRequest | CompareRequest) -> str:
    """The lines that make the very pictures of this request, as tensors."""
    job: dict[str, object] = {
        "seed": request.seed,
        "class_labels": request.classes or None,
        "prompts": (request.prompt,) if request.prompt else None,
    }
    job |= {"guidance_scale": request.guidance, "steps": request.steps, "height": request.size, "width": request.size}
    given = ", ".join(f"{name}={value!r}" for name, value in job.items() if value is not None)
    lines = [
        "import vis_accel",
        "from vis_accel.generation import Job, generate",
        "from vis_accel.zoo.opened import Placement, open_pipeline",
        "",
        f"opened = open_pipeline({request.model!r}, Job({given}), Placement())",
        "pipe, job = opened.pipeline, opened.job",
    ]
    if isinstance(request, CompareRequest):
        lines += _run(request.first, "first", request.count) + _run(request.second, "second", request.count)
    else:
        lines += _run(request.recipe, "pictures", request.count)
    return "\n".join(lines)


def _run(recipe: str, name: str, count: int) -> list[str]:
    made = f"{name} = generate(pipe, job, range({count}))  # uint8, {count} x 3 x height x width"
    return [made] if recipe == "none" else [f"with vis_accel.accelerate(pipe, {recipe!r}):", f"    {made}"]


def link(request: Request) -> str:
    """The part of the page's address that brings these settings back: `?tab=compare&...`."""
    tab = {GenerateRequest: "generate", CompareRequest: "compare", ClassifyRequest: "classify"}[type(request)]
    values = {"tab": tab}
    for name, value in request.model_dump(exclude_defaults=True).items():
        values[name] = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return "?" + urlencode(values)
