"""The command line: each command parses, builds what the library takes, calls one public function, and prints what it returns.

Data goes to stdout, everything else to stderr. Exit codes: 0 done, 1 a run that failed, 2 a request that is not allowed, 130 interrupted.
Nothing heavy is imported here: `--help` answers in a fraction of a second.
"""

from __future__ import annotations

import enum
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vis_accel.cli_app import app as serve
from vis_accel.cli_distill import distill
from vis_accel.cli_finetune import finetune
from vis_accel.cli_quantize import quantize
from vis_accel.errors import UsageError, VisAccelError

if TYPE_CHECKING:
    from vis_accel.generation import Job

__all__ = ["app", "main"]

app = typer.Typer(
    name="vis-accel", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]}, rich_markup_mode=None,
    help="Make a diffusion pipeline fast by a recipe of reversible methods, and see in the same row what it cost in quality.",
)  # fmt: skip


class Format(str, enum.Enum):
    """How results are printed."""

    auto = "auto"
    human = "human"
    json = "json"
    quiet = "quiet"


class Listed(str, enum.Enum):
    """What `list` lists."""

    methods = "methods"
    models = "models"


Model = Annotated[str, typer.Option("--model", "-m", help="Bundled model, hub id, or local diffusers folder.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Folder for the results.")]
Formatted = Annotated[Format, typer.Option("--format", help="auto is human on a terminal and plain text elsewhere.")]
Guidance = Annotated[float | None, typer.Option("--guidance-scale", help="Default: what the model's card pins.")]
Prompts = Annotated[list[str] | None, typer.Option("--prompt", help="For models that take text; may be repeated.")]
Labels = Annotated[str | None, typer.Option("--class-labels", help="Comma-separated numbers, for models that take classes.")]
Seed = Annotated[int, typer.Option("--seed", help="Of the first image; image i has seed + i.")]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1 ... Default: a GPU if there is one.")]
Dtype = Annotated[str | None, typer.Option("--dtype", help="float32, bfloat16 or float16.")]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads.")]
AllowPickle = Annotated[bool, typer.Option("--allow-pickle", help="Load weights that can run code. Only for files you made yourself.")]


@app.callback(invoke_without_command=True)
def _top(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    if version:
        from vis_accel import __version__

        typer.echo(f"vis-accel {__version__}")
        raise typer.Exit
    context.obj = {"debug": debug}


@app.command("list")
def list_methods(
    what: Annotated[Listed, typer.Argument(help="methods or models.")] = Listed.methods,
    format: Formatted = Format.auto,
) -> None:
    """The methods there are, with family, paper and one line each; or the models."""
    if what is Listed.models:
        from vis_accel.cli_export import list_models

        list_models(format.value)
        return
    import json
    from dataclasses import asdict

    from vis_accel import registry

    table = registry.entries()
    if format is Format.json:
        typer.echo(json.dumps({name: asdict(entry) for name, entry in table.items()}, indent=1))
        return
    width = max(map(len, table))
    for name, entry in table.items():
        typer.echo(name if format is Format.quiet else f"{name:{width}} {entry.family:10} {entry.summary}  [{entry.paper}]")


@app.command()
def bench(
    model: Model = "cifar10-dit",
    sampler: Annotated[list[str] | None, typer.Option("--sampler", help="Name of a sampler; may be repeated.")] = None,
    steps: Annotated[str | None, typer.Option("--steps", help="For each --sampler; comma-separated, one row each. Default: 10.")] = None,
    schedule: Annotated[str | None, typer.Option("--schedule", help="For each --sampler: where its knots lie.")] = None,
    recipe: Annotated[list[str] | None, typer.Option("--recipe", help="A whole recipe: 'dpm(steps=10, order=3)'; may be repeated.")] = None,
    samples: Annotated[int | None, typer.Option("--samples", "-n", help="Images a row. Default: what the budget allows.")] = None,
    budget: Annotated[str | None, typer.Option("--budget", help="Time for everything: 90s, 5m, 2h. Default: 5m.")] = None,
    guidance_scale: Guidance = None,
    prompt: Prompts = None,
    prompts: Annotated[Path | None, typer.Option("--prompts", help="File with a prompt a line.")] = None,
    class_labels: Labels = None,
    height: Annotated[int | None, typer.Option("--height")] = None,
    width: Annotated[int | None, typer.Option("--width")] = None,
    device: Device = None,
    dtype: Dtype = None,
    threads: Threads = None,
    reference: Annotated[str | None, typer.Option("--reference", help="Folder of real images, or file of 'vis-accel reference'.")] = None,
    seed: Seed = 0,
    batch: Annotated[int | None, typer.Option("--batch", help="Images a call. Default: 50; classifiers: as in the timing.")] = None,
    timing_batch: Annotated[list[int] | None, typer.Option("--timing-batch", help="Images a timed call; classifiers take several.")] = None,
    data: Annotated[Path | None, typer.Option("--data", help="For classifiers: folder of class folders. Default: what ships.")] = None,
    calibration: Annotated[Path | None, typer.Option("--calibration", help="For classifiers: such a folder to calibrate int8 on.")] = None,
    skip_broken: Annotated[bool, typer.Option("--skip-broken", help="Leave out images that do not open.")] = False,
    size: Annotated[int | None, typer.Option("--size", help="For classifiers: height and width of the images.")] = None,
    random_weights: Annotated[bool, typer.Option("--random-weights", help="For timm/NAME: speed rows without weights.")] = False,
    output: Output = None,
    format: Formatted = Format.auto,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the rows in the output folder.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be measured, and stop.")] = False,
    allow_pickle: AllowPickle = False,
) -> None:
    """Measure recipes against the stock pipeline or classifier: quality, speed, calls and memory in one row each."""
    from vis_accel.cli_bench import run

    run(
        model=model, recipes=_recipes(sampler, steps, schedule, recipe) or None, samples=samples, budget=budget, reference=reference,
        batch=batch, job=_job(seed, class_labels, prompt, prompts, guidance_scale, height, width), device=device, dtype=dtype,
        threads=threads, output=output, format=format.value, resume=resume, dry_run=dry_run, allow_pickle=allow_pickle, data=data,
        timing_batch=timing_batch or (), size=size, random_weights=random_weights, skip_broken=skip_broken,
        calibration=calibration,
    )  # fmt: skip


@app.command()
def generate(
    model: Model = "cifar10-dit",
    recipe: Annotated[str | None, typer.Option("--recipe", help="How; default: the stock pipeline.")] = None,
    count: Annotated[int, typer.Option("--count", min=1, max=10_000, help="How many images.")] = 10,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="The call's number of steps; a recipe's own wins.")] = None,
    guidance_scale: Guidance = None,
    prompt: Prompts = None,
    class_labels: Labels = None,
    height: Annotated[int | None, typer.Option("--height")] = None,
    width: Annotated[int | None, typer.Option("--width")] = None,
    seed: Seed = 0,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Images a call.")] = 50,
    device: Device = None,
    dtype: Dtype = None,
    threads: Threads = None,
    output: Output = None,
    format: Formatted = Format.auto,
    allow_pickle: AllowPickle = False,
) -> None:
    """Make images, one PNG each, with a recipe or without."""
    from vis_accel.cli_generate import run

    run(
        model=model, recipe=recipe, count=count, batch=batch, output=output or Path("generated"), format=format.value,
        job=_job(seed, class_labels, prompt, None, guidance_scale, height, width, steps), device=device, dtype=dtype, threads=threads,
        allow_pickle=allow_pickle,
    )  # fmt: skip


@app.command()
def reference(
    folder: Annotated[Path, typer.Argument(help="Folder of real images.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write, ending in .safetensors.")],
) -> None:
    """Make the reference statistics of a folder of images, for bench --reference."""
    from vis_accel.eval.reference import make_reference, save_reference
    from vis_accel.zoo.measured import feature_net, image_folder_features

    net = feature_net()
    made = make_reference(image_folder_features(folder, net), net, images=folder.resolve().name, split="all")
    save_reference(output, made)
    typer.echo(f"{output}: {made.statistics.n} images, {made.name}")


@app.command()
def schedule(
    model: Model = "cifar10-dit",
    sampler: Annotated[str, typer.Option("--sampler", help="The sampler the knots are for, options and all: 'unipc(order=3)'.")] = "dpm",
    calls: Annotated[int, typer.Option("--calls", min=2, help="Network evaluations a run.")] = 6,
    images: Annotated[int, typer.Option("--images", min=16, help="Images of the teacher.")] = 256,
    guidance_scale: Guidance = None,
    prompt: Prompts = None,
    class_labels: Labels = None,
    seed: Seed = 0,
    device: Device = None,
    threads: Threads = None,
    recipe: Annotated[str | None, typer.Option("--recipe", help="For classifiers: merging method whose work is kept.")] = None,
    data: Annotated[Path | None, typer.Option("--data", help="With --recipe: folder of class folders.")] = None,
    by: Annotated[str, typer.Option("--by", help="With --recipe: work in flops, or in latency measured here.")] = "flops",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File for everything that was tried, as JSON.")] = None,
    format: Formatted = Format.auto,
) -> None:
    """Search the knots that suit a model, a sampler and a number of calls (or, with --recipe, how many tokens to merge in which block)."""
    if recipe is not None:
        from vis_accel.cli_token_schedule import run as run_tokens

        if data is None:
            raise UsageError("A search of token schedules looks at images.", hint="--data DIR, a folder of class folders")
        model = "cifar10-vit" if model == "cifar10-dit" else model
        run_tokens(model=model, recipe=recipe, data=data, images=images, by=by, threads=threads, output=output, format=format.value)
        return
    from vis_accel.cli_schedule import run

    run(
        model=model, sampler=sampler, calls=calls, images=images, job=_job(seed, class_labels, prompt, None, guidance_scale, None, None),
        device=device, threads=threads, output=output, format=format.value,
    )  # fmt: skip


@app.command()
def train(
    name: Annotated[str, typer.Argument(help="The recipe; a wrong name lists them.")],
    data: Annotated[Path, typer.Option("--data", help="Folder with train/CLASS/*.jpg and test/CLASS/*.jpg.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Default: runs/NAME.")] = None,
    autoencoder: Annotated[Path | None, typer.Option("--autoencoder", help="For cifar10-dit: a vae folder. Default: the bundled.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Optimiser steps; default: the recipe's.")] = None,
    batch: Annotated[int | None, typer.Option("--batch", min=1)] = None,
    seed: Annotated[int | None, typer.Option("--seed")] = None,
    mixed_precision: Annotated[str | None, typer.Option("--mixed-precision", help="bf16 or no.")] = None,
    threads: Threads = None,
    compile: Annotated[bool, typer.Option("--compile/--no-compile", help="Compile the step.")] = True,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the checkpoint in the output folder; without one, from the bundled weights.")
    ] = False,
) -> None:
    """Train a bundled model again, by the recipe that made it."""
    from vis_accel.zoo.recipes import train as run

    options = {"steps": steps, "batch_size": batch, "seed": seed, "mixed_precision": mixed_precision}
    result = run(
        name, data, output or Path("runs") / name, autoencoder=autoencoder, resume=resume, threads=threads, compile=compile,
        options={key: value for key, value in options.items() if value is not None}, report=lambda line: typer.echo(line, err=True),
    )  # fmt: skip
    typer.echo(" ".join(f"{key}={value:.5g}" for key, value in result.scores.items()))


@app.command()
def export(
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write, ending in .onnx, or in .pt2 for PyTorch's own form.")],
    model: Model = "cifar10-vit",
    recipe: Annotated[str | None, typer.Option("--recipe", help="Exported with the model: 'tome(r=13)'.")] = None,
    random_weights: Annotated[bool, typer.Option("--random-weights", help="timm/NAME without its weights.")] = False,
    size: Annotated[int | None, typer.Option("--size", help="Side of the images in pixels. Default: the model's.")] = None,
    batch: Annotated[int, typer.Option("--batch", help="Images a call of the file takes.")] = 1,
    dynamic_batch: Annotated[bool, typer.Option("--dynamic-batch", help="It takes any number of images.")] = False,
    reparameterize: Annotated[bool, typer.Option("--reparameterize/--no-reparameterize", help="Fold batch norms first.")] = True,
    opset: Annotated[int | None, typer.Option("--opset", help="Of ONNX. Default: PyTorch's.")] = None,
    data: Annotated[Path | None, typer.Option("--data", help="Folder of images to compare on. Default: random ones.")] = None,
    samples: Annotated[int, typer.Option("--samples", "-n", help="With --data: how many images.")] = 256,
    threads: Threads = None,
    format: Formatted = Format.auto,
    allow_pickle: AllowPickle = False,
) -> None:
    """Write a classifier as ONNX or as a PyTorch exported program, and compare the file with it."""
    from vis_accel.cli_export import run

    run(
        model=model, output=output, recipe=recipe, random_weights=random_weights, size=size, batch=batch, dynamic_batch=dynamic_batch,
        reparameterize=reparameterize, opset=opset, data=data, samples=samples, threads=threads, format=format.value,
        allow_pickle=allow_pickle,
    )  # fmt: skip


@app.command()
def doctor(format: Formatted = Format.auto) -> None:
    """What this machine has, what works on it, and the line that installs what is missing."""
    from vis_accel.doctor import examine, table

    found = examine()
    typer.echo(table(found, format.value))


app.command()(finetune)
app.command()(distill)
app.command()(quantize)
app.command("app")(serve)


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line and exits."""
    debug = "--debug" in (sys.argv[1:] if arguments is None else arguments)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        app(args=arguments, standalone_mode=True)
    except VisAccelError as error:
        if debug:
            raise
        typer.echo(f"error: {error.message}", err=True)
        if error.hint:
            typer.echo(f"\nhint: {error.hint}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # `vis-accel list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except (OSError, ValueError, RuntimeError, MemoryError) as error:  # foreseen nowhere: one sentence all the same
        if debug:
            raise
        typer.echo(f"error: {type(error).__name__}: {error}\n\nhint: vis-accel --debug ... shows where", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        typer.echo("interrupted; what was written before is kept", err=True)
        sys.exit(130)


def _recipes(samplers: list[str] | None, steps: str | None, schedule: str | None, recipes: list[str] | None) -> list[Any]:
    """One recipe for each sampler and number of steps, then the recipes given as a whole."""
    from vis_accel import registry
    from vis_accel.method import Method
    from vis_accel.recipe import Recipe

    if not samplers and (steps is not None or schedule is not None):
        raise UsageError("--steps and --schedule belong to --sampler.", hint="--sampler dpm, or put them into the recipe")
    found = []
    for name in samplers or ():
        kind: type[Method] = registry.load(registry.ALIASES.get(name, name))
        if kind.family != "sampler":
            raise UsageError(f"{name} is no sampler.", hint=f"--recipe {name}")
        options: dict[str, object] = {} if schedule is None else {"schedule": _schedule(schedule)}
        if steps is None and isinstance(options.get("schedule"), tuple):  # it has its own number of steps
            found.append(Recipe([kind.from_options(options)]))
            continue
        counts = _integers("10" if steps is None else steps, "--steps")
        found += [Recipe([kind.from_options({"steps": count, **options})]) for count in counts]
    return found + [Recipe.parse(text) for text in recipes or []]


def _schedule(text: str) -> object:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        return text


def _integers(text: str, option: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"{option} takes whole numbers separated by commas; got {text!r}.") from None


def _job(
    seed: int, labels: str | None, prompt: list[str] | None, prompts: Path | None, guidance_scale: float | None,
    height: int | None, width: int | None, steps: int | None = None,
) -> Job:  # fmt: skip
    from vis_accel.generation import Job

    texts = list(prompt or [])
    if prompts is not None:
        try:
            texts += [line.strip() for line in prompts.read_text().splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"Cannot read the prompts in {prompts}: {error}") from error
    return Job(
        seed=seed, class_labels=() if labels is None else tuple(_integers(labels, "--class-labels")), prompts=tuple(texts),
        guidance_scale=guidance_scale, steps=steps, height=height, width=width,
    )  # fmt: skip
