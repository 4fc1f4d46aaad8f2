"""The methods there are: one literal table, name -> where it lives, its family, its paper and one line.

Nothing is imported until a method is asked for. Other packages add methods by an entry point; the name is the one recipes use:

    [project.entry-points."vis_accel.methods"]
    mymethod = "mypackage.module:MyMethod"
"""

from __future__ import annotations

from dataclasses import dataclass, is_dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from vis_accel.errors import RunError, UnknownNameError, UsageError
from vis_accel.method import FAMILIES, Method

GROUP = "vis_accel.methods"


@dataclass(frozen=True)
class Entry:
    """One row of the table.

    Attributes:
        target: "module:Class" of a `Method`.
        family: one of `method.FAMILIES`; empty for another package's method, whose class says it.
        paper: author, year and arXiv id.
        summary: what it does, in one line.
        package: the distribution it comes from.
    """

    target: str
    family: str
    paper: str
    summary: str
    package: str = "vis-accel"


# fmt: off
METHODS: dict[str, Entry] = {
    "adams": Entry("vis_accel.samplers.adams:Adams", "sampler", "Zhang and Chen 2022, arXiv:2204.13902",
                   "Adams-Bashforth in sigma with exact weights, orders 1 to 4: one call a step"),
    "adavit": Entry("vis_accel.token_pruning.adavit:Adavit", "tokens", "Meng et al. 2022, arXiv:2111.15668",
                    "sub-layers, heads and patches that trained heads find needless are left out, image by image"),
    "ats":   Entry("vis_accel.token_pruning.ats:Ats", "tokens", "Fayyaz et al. 2022, arXiv:2111.15667",
                   "patches are sampled by what the class token looks at; how many, depends on the image"),
    "attention": Entry("vis_accel.runtime.attention:Attention", "attention", "Dao et al. 2022, arXiv:2205.14135",
                       "one kernel for every attention: flash, efficient, cudnn, math, xformers"),
    "avit":  Entry("vis_accel.token_pruning.avit:Avit", "tokens", "Yin et al. 2022, arXiv:2112.07658",
                   "each token halts when it has said enough, after a training for it"),
    "bf16":  Entry("vis_accel.precision.bf16:Bf16", "precision", "Kalamkar et al. 2019, arXiv:1905.12322",
                   "matrix products and convolutions in bfloat16"),
    "channels-last": Entry("vis_accel.precision.channels_last:ChannelsLast", "weights", "no paper",
                           "convolution weights in the order in which kernels read them"),
    "cls-only-last": Entry("vis_accel.token_pruning.cls_only_last:ClsOnlyLast", "depth", "no paper",
                           "the last block computes only the tokens the head reads: exact"),
    "compile": Entry("vis_accel.runtime.compile:Compile", "compile", "Ansel et al. 2024, ASPLOS",
                     "the same computation in fused kernels: 20 to 60 s at the first call"),
    "ddim":  Entry("vis_accel.samplers.ddim:Ddim", "sampler", "Song et al. 2020, arXiv:2010.02502",
                   "the deterministic first-order step, with eta for its stochastic relatives"),
    "ddpm":  Entry("vis_accel.samplers.ddpm:Ddpm", "sampler", "Ho et al. 2020, arXiv:2006.11239",
                   "ancestral sampling: every step adds fresh noise"),
    "deepcache": Entry("vis_accel.caching.deepcache:Deepcache", "cache", "Ma et al. 2023, arXiv:2312.00858",
                       "U-Nets: the deep features of an earlier call are reused, the shallow layers computed"),
    "deis":  Entry("vis_accel.samplers.deis:Deis", "sampler", "Zhang and Chen 2022, arXiv:2204.13902",
                   "exponential integrator with extrapolated noise, orders 1 to 4: one call a step"),
    "distilled": Entry("vis_accel.students.distilled:Distilled", "weights", "Luo et al. 2023, arXiv:2310.04378",
                       "a few-step student with guidance in its weights and its own sampler: one row a call"),
    "dpm":   Entry("vis_accel.samplers.dpm:Dpm", "sampler", "Lu et al. 2022, arXiv:2206.00927",
                   "DPM-Solver, multistep, orders 1 to 3: one call a step"),
    "dpm-sde": Entry("vis_accel.samplers.sde:DpmSde", "sampler", "Lu et al. 2022, arXiv:2211.01095",
                     "SDE-DPM-Solver++, multistep: every step adds fresh noise"),
    "dpmpp": Entry("vis_accel.samplers.dpm:Dpmpp", "sampler", "Lu et al. 2022, arXiv:2211.01095",
                   "DPM-Solver++: dpm with data prediction"),
    "dynamicvit": Entry("vis_accel.token_pruning.dynamicvit:Dynamicvit", "tokens", "Rao et al. 2021, arXiv:2106.02034",
                        "patches that trained predictors find needless are dropped, before a few blocks"),
    "early-exit": Entry("vis_accel.early_exit.method:EarlyExit", "depth", "Teerapittayanon et al. 2016, arXiv:1709.01686",
                        "images that a classifier in the middle is sure of leave there; thresholds by risk control"),
    "efficientdm": Entry("vis_accel.precision.efficientdm:EfficientDm", "precision", "He et al. 2023, arXiv:2310.03270",
                         "a denoiser in 4 or 6 bits, tuned on its own run by low-rank matrices that vanish in the rounding"),
    "euler": Entry("vis_accel.samplers.euler:Euler", "sampler", "Karras et al. 2022, arXiv:2206.00364",
                   "the first-order step on the probability-flow equation in sigma"),
    "euler-ancestral": Entry("vis_accel.samplers.ancestral:EulerAncestral", "sampler", "Karras et al. 2022, arXiv:2206.00364",
                             "Euler with fresh noise in every step: ddim with eta = 1"),
    "evit":  Entry("vis_accel.token_pruning.evit:Evit", "tokens", "Liang et al. 2022, arXiv:2202.07800",
                   "patches the class token does not look at are fused into one, at a few stages"),
    "firstblock": Entry("vis_accel.caching.firstblock:Firstblock", "cache", "Liu et al. 2024, arXiv:2411.19108",
                        "transformers: while the first block changes little, what the others add is reused"),
    "guidance-cutoff": Entry("vis_accel.guidance.cutoff:GuidanceCutoff", "guidance", "Castillo et al. 2023, arXiv:2312.12487",
                             "guidance in the first calls only; the rest evaluates the conditional half alone"),
    "guidance-distilled": Entry("vis_accel.students.guidance_distilled:GuidanceDistilled", "weights", "Meng et al. 2023, arXiv:2210.03142",
                                "a student that takes the guidance scale: one row a call where there were two"),
    "guidance-reuse": Entry("vis_accel.guidance.reuse:GuidanceReuse", "guidance", "Lv et al. 2024, arXiv:2410.19355",
                            "the unconditional half is evaluated in every k-th call, its difference kept in between"),
    "guidance-window": Entry("vis_accel.guidance.window:GuidanceWindow", "guidance", "Kynkäänniemi et al. 2024, arXiv:2404.07724",
                             "guidance at middle noise levels only; the conditional half alone at all others"),
    "heun":  Entry("vis_accel.samplers.heun:Heun", "sampler", "Karras et al. 2022, arXiv:2206.00364",
                   "the second-order step with a corrector: two calls a step"),
    "int8":  Entry("vis_accel.precision.int8:Int8", "precision", "Jacob et al. 2018, arXiv:1712.05877",
                   "Linear and Conv2d in 8-bit whole numbers, on integer kernels"),
    "ipndm": Entry("vis_accel.samplers.adams:Ipndm", "sampler", "Liu et al. 2022, arXiv:2202.09778",
                   "pseudo-numerical multistep with the weights of equal steps: one call a step"),
    "package": Entry("vis_accel.token_pruning.package:Package", "tokens", "Kong et al. 2022, arXiv:2112.13890",
                     "patches that matter least are packed into one token, their weighted mean"),
    "pitome": Entry("vis_accel.token_pruning.pitome:Pitome", "tokens", "Tran et al. 2024, arXiv:2405.16148",
                    "similar patches are merged, those of a kind of their own protected"),
    "plms":  Entry("vis_accel.samplers.pndm:Plms", "sampler", "Liu et al. 2022, arXiv:2202.09778",
                   "ipndm whose first step takes two calls: latent diffusion's own sampler"),
    "pndm":  Entry("vis_accel.samplers.pndm:Pndm", "sampler", "Liu et al. 2022, arXiv:2202.09778",
                   "ipndm behind three Runge-Kutta steps: nine calls more"),
    "q-diffusion": Entry("vis_accel.precision.q_diffusion:QDiffusion", "precision", "Li et al. 2023, arXiv:2302.04304",
                         "a denoiser in 8 or fewer bits, with ranges for each step of its run"),
    "repq":  Entry("vis_accel.precision.repq:Repq", "precision", "Li et al. 2022, arXiv:2212.08254",
                   "ranges of channels made equal behind norms, by factors and shifts in the weights: exact, for int8 to start from"),
    "restart": Entry("vis_accel.samplers.restart:Restart", "sampler", "Xu et al. 2023, arXiv:2306.14878",
                     "Heun that goes back up with fresh noise and down again: for 40 calls and more"),
    "singlestep": Entry("vis_accel.samplers.singlestep:Singlestep", "sampler", "Lu et al. 2022, arXiv:2206.00927",
                        "DPM-Solver, singlestep, orders 2 and 3: as many calls a step"),
    "smooth": Entry("vis_accel.precision.smooth:Smooth", "precision", "Xiao et al. 2022, arXiv:2211.10438",
                    "large channels behind norms made smaller, the weights that read them larger: exact, for int8 to start from"),
    "taylor": Entry("vis_accel.caching.taylor:Taylor", "cache", "Liu et al. 2025, arXiv:2503.06923",
                    "transformers: what the blocks add is forecast from the last full calls"),
    "tome":  Entry("vis_accel.token_pruning.tome:Tome", "tokens", "Bolya et al. 2023, arXiv:2210.09461",
                   "the most similar patches are merged in every block"),
    "topk":  Entry("vis_accel.token_pruning.topk:Topk", "tokens", "Haurum et al. 2023, arXiv:2308.04657",
                   "patches the class token does not look at are dropped, at a few stages"),
    "tuned": Entry("vis_accel.token_pruning.tuned:Tuned", "weights", "Liang et al. 2022, arXiv:2202.07800",
                   "weights fine-tuned for a method on tokens"),
    "unipc": Entry("vis_accel.samplers.unipc:Unipc", "sampler", "Zhao et al. 2023, arXiv:2302.04867",
                   "predictor and corrector of one order: the corrector costs no extra call"),
    "weight-only": Entry("vis_accel.precision.weight_only:WeightOnly", "precision", "Frantar et al. 2022, arXiv:2210.17323",
                         "weights in 8 or 4 bits, floats again in each call: for memory, not for speed"),
}
# fmt: on

ALIASES = {"dpm++": "dpmpp"}  # accepted where a person types; never printed


def entries() -> dict[str, Entry]:
    """All methods, those of other packages included, sorted by name.

    Raises:
        UsageError: if another package's method has the name of an existing one.
    """
    table = METHODS | _plugins()
    return {name: table[name] for name in sorted(table)}


def load(name: str) -> type[Method]:
    """The class of the method called `name`.

    Raises:
        UnknownNameError: if there is none, with the three closest names.
        RunError: if its module cannot be imported, or what lies there is no such method.
    """
    table = METHODS | _plugins()
    name = ALIASES.get(name, name)
    if name not in table:
        raise UnknownNameError.of("method", name, table)
    entry = table[name]
    try:
        module, _, attribute = entry.target.partition(":")
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise RunError(f"The method {name} of the package {entry.package} cannot be loaded: {error}.") from error
    _check(name, entry, found)
    return found  # type: ignore[no-any-return]  # _check has seen that it is a Method


def _check(name: str, entry: Entry, found: Any) -> None:
    """Raises RunError unless `found` is the frozen Method class that the table promises."""

    def wrong(reason: str) -> RunError:
        return RunError(f"{entry.target} of the package {entry.package} is not the method {name}: {reason}.")

    if not (isinstance(found, type) and issubclass(found, Method)):
        raise wrong("it is no subclass of vis_accel.method.Method")
    if not (is_dataclass(found) and found.__dataclass_params__.frozen):  # type: ignore[attr-defined]
        raise wrong("it is no frozen dataclass")
    if getattr(found, "name", None) != name:
        raise wrong(f"it is named {getattr(found, 'name', None)!r}")
    family = getattr(found, "family", None)
    if family not in FAMILIES or family != (entry.family or family):
        raise wrong(f"its family is {family!r}, not {entry.family or 'one of ' + ', '.join(FAMILIES)}")


@cache
def _plugins() -> dict[str, Entry]:
    """The methods that other installed packages declare; read once, since it walks all installed packages."""
    table: dict[str, Entry] = {}
    for point in entry_points(group=GROUP):
        package = point.dist.name if point.dist else "unknown"
        taken = METHODS.get(point.name) or table.get(point.name)
        if taken or point.name in ALIASES or point.name == "none":
            by = taken.package if taken else "vis-accel"
            raise UsageError(
                f"The package {package} declares a method named {point.name!r}, but {by} has one already.",
                hint=f"pip uninstall {package}",
            )
        table[point.name] = Entry(point.value, "", "", f"from the package {package}", package)
    return table
