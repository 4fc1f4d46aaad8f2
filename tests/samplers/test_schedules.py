"""Law 8: schedules fall, meet their ends, and lie where their definitions put them."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from diffusers.schedulers.scheduling_utils import AysSchedules

from vis_accel.errors import NotApplicableError, UnknownNameError, UsageError
from vis_accel.samplers import SIGMA_CAP, NoiseModel, schedules

LINEAR = NoiseModel.from_config({"beta_schedule": "linear"})
OFFSET = NoiseModel.from_config({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1})
COSINE = NoiseModel.from_config({"beta_schedule": "squaredcos_cap_v2"})
ZERO_SNR = NoiseModel.from_config({"beta_schedule": "linear", "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"})
SHORT = NoiseModel.from_config({"beta_schedule": "linear", "num_train_timesteps": 17, "beta_end": 0.5})
FLOW = NoiseModel.from_config({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0})
EDM = NoiseModel(kind="edm", prediction="epsilon", sigmas=(0.002, 80.0))
SD = replace(OFFSET, family="sd")
MODELS = {"sd": SD, "edm": EDM, "linear": LINEAR, "offset": OFFSET, "cosine": COSINE, "zero-snr": ZERO_SNR, "short": SHORT, "flow": FLOW}


def fits(name: str, model: NoiseModel) -> bool:
    if model.kind == "flow":
        return name in ("auto", "flow", "trailing")
    if model.kind == "edm":
        return name in ("auto", "karras", "logsnr", "exponential")
    if name == "searched":
        return False
    if name == "ays":
        return model.family != ""
    return name != "flow" and (model.sigma_max < SIGMA_CAP or name not in ("logsnr", "exponential", "karras"))


@pytest.mark.parametrize("name", schedules.NAMES)
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_every_schedule_falls_strictly_and_meets_its_ends(name: str, model: NoiseModel) -> None:
    if not fits(name, model):
        with pytest.raises(NotApplicableError, match=name):
            schedules.create(name, 5, model)
        return
    for n in [k for k in (*range(1, 31), 50, 333, 999, 1000) if k <= model.times]:
        knots = schedules.create(name, n, model)
        assert len(knots) == n + 1
        assert knots[-1] == 0.0
        assert all(s > t for s, t in pairwise(knots))
        assert knots[0] <= model.sigma_max
        if schedules.resolve(name, model) not in ("leading", "quadratic"):
            assert knots[0] == model.sigma_max
    for n in [k for k in (*range(1, 31), 333) if k < model.times]:
        knots = schedules.create(name, n, model, end="sigma_min")
        assert len(knots) == n + 1
        assert knots[-1] == model.sigma_min
        assert all(s > t for s, t in pairwise(knots))


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_time_and_sigma_are_inverse(model: NoiseModel) -> None:
    if model.kind == "edm":
        for sigma in (0.002, 0.3, 1.0, 80.0):
            assert model.sigma_at(model.time_at(sigma)) == pytest.approx(sigma)
        return
    last = model.times if model.kind == "flow" else model.times - 1
    for k in range(0, 10 * last + 1, 7):
        time = k / 10
        sigma = model.sigma_at(time)
        if sigma > 0:
            assert model.time_at(sigma) == pytest.approx(time, abs=1e-9 * last)
    if model.kind == "vp":
        for t in range(model.times):
            assert model.sigma_at(t) == model.table[t]
            assert model.time_at(model.table[t]) == t
    assert model.time_at(model.sigma_max) == last


def times(name: str, n: int, model: NoiseModel, **options: Any) -> list[float]:
    return [model.time_at(s) for s in schedules.create(name, n, model, **options) if s > 0]


@pytest.mark.parametrize("n", [1, 2, 3, 5, 7, 10, 12, 15, 20, 24, 30, 50, 100, 250, 999, 1000])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_times_are_those_of_diffusers(spacing: str, n: int) -> None:
    from diffusers import DDPMScheduler

    if spacing == "linspace" and n == 1:
        assert times(spacing, 1, LINEAR) == [999]  # diffusers asks at time 0 only, with pure noise
        return
    stock = DDPMScheduler(timestep_spacing=spacing, steps_offset=OFFSET.steps_offset)
    stock.set_timesteps(n)
    expected = stock.timesteps.tolist()
    if spacing == "leading" and n == 1000:
        expected = list(range(999, -1, -1))  # diffusers' offset leaves the table here
    assert times(spacing, n, OFFSET) == expected


@pytest.mark.parametrize("n", [1, 5, 10, 28])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_schedule_is_that_of_diffusers(n: int, shift: float) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    stock = FlowMatchEulerDiscreteScheduler(shift=shift)
    stock.set_timesteps(n)
    assert times("flow", n, NoiseModel.from_config(stock.config)) == pytest.approx(stock.timesteps.tolist(), rel=1e-5)


def test_dynamic_shifting_is_a_shift_given_later() -> None:
    from dataclasses import replace

    from diffusers import FlowMatchEulerDiscreteScheduler

    stock = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0)
    stock.set_timesteps(9, mu=0.8)
    model = replace(NoiseModel.from_config(stock.config), shift=math.exp(0.8))
    assert times("flow", 9, model) == pytest.approx(stock.timesteps.tolist(), rel=1e-5)


def test_quadratic_is_that_of_the_ddim_paper() -> None:
    assert times("quadratic", 5, LINEAR) == [800, 450, 200, 50, 0]
    assert times("quadratic", 1000, LINEAR)[-4:] == [3, 2, 1, 0]


def test_logsnr_and_karras_are_uniform_in_their_own_measure() -> None:
    for name, measure in (("logsnr", math.log), ("karras", lambda s: s ** (1 / 7))):
        knots = [measure(s) for s in schedules.create(name, 11, LINEAR)[:-1]]
        steps = [a - b for a, b in pairwise(knots)]
        assert steps == pytest.approx([steps[0]] * 10, rel=1e-9)


def test_auto_is_documented_and_resolved() -> None:
    assert schedules.resolve("auto", FLOW) == "flow"
    assert schedules.resolve("auto", LINEAR) == "trailing"
    assert schedules.resolve("karras", LINEAR) == "karras"
    assert schedules.create("auto", 7, LINEAR) == schedules.create("trailing", 7, LINEAR)


def test_explicit_sigmas_are_taken_as_they_are() -> None:
    assert schedules.create((14.6, 3.0, 0.5), None, LINEAR) == (14.6, 3.0, 0.5, 0.0)
    assert schedules.create((14.6, 3.0, 0.5, 0.0), 3, LINEAR) == (14.6, 3.0, 0.5, 0.0)
    assert schedules.create((14.6, 3.0, 0.5), 2, LINEAR, end="sigma_min") == (14.6, 3.0, 0.5)
    assert schedules.create((math.inf, 3.0), None, FLOW) == (SIGMA_CAP, 3.0, 0.0)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("trailing", 0, LINEAR), r"1 \.\. 1000.*got 0"),
        (("trailing", -3, LINEAR), "got -3"),
        (("karras", 1001, LINEAR), r"1 \.\. 1000.*got 1001"),
        (("trailing", 18, SHORT), r"1 \.\. 17.*got 18"),
        (("flow", 1001, FLOW), r"1 \.\. 1000"),
        (("trailing", None, LINEAR), "got None"),
        (((14.6, 3.0, 0.5), 4, LINEAR), "3 steps of its own; got steps=4"),
        (((1.0, 3.0), None, LINEAR), "strictly falling"),
        (((3.0, 1.0, -1.0), None, LINEAR), "strictly falling"),
        (((), None, LINEAR), "strictly falling"),
        (((0.0,), None, LINEAR), "strictly falling"),
        (((math.nan, 1.0), None, LINEAR), "strictly falling"),
        (((math.inf, 1.0), None, LINEAR), "above the model's largest, 157"),
    ],
    ids=str,
)
def test_what_a_model_cannot_have_is_refused(arguments: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        schedules.create(*arguments)


def test_unknown_names_and_infinite_starts_say_what_is_allowed() -> None:
    with pytest.raises(UnknownNameError, match="trailing"):
        schedules.create("trailng", 5, LINEAR)
    with pytest.raises(UnknownNameError, match="sigma_min"):
        schedules.create("karras", 5, LINEAR, end="min")
    with pytest.raises(NotApplicableError, match=r"pure noise[\s\S]*hint: .*trailing"):
        schedules.create("karras", 5, ZERO_SNR)
    with pytest.raises(UsageError, match="room for 999"):
        schedules.create("linspace", 1000, LINEAR, end="sigma_min")


def test_auto_is_the_solvers_choice() -> None:
    """dpm steps evenly in log sigma, where the first sigma is finite; the rest start at the last whole time."""
    from vis_accel.samplers import create as solver

    finite = NoiseModel(kind="vp", prediction="epsilon", table=(0.1, 1.0, 10.0), times=3)
    flow = NoiseModel(kind="flow", prediction="flow_prediction")
    assert solver("dpm").knots(2, finite) == schedules.create("logsnr", 2, finite)
    assert solver("dpmpp").knots(2, flow) == schedules.create("flow", 2, flow)
    assert solver("ddim").knots(2, finite) == schedules.create("trailing", 2, finite)


def test_beta_takes_the_quantiles_of_its_distribution() -> None:
    from scipy.stats import beta

    for u in (0.001, 0.05, 0.3, 0.5, 0.9, 1.0):
        assert schedules.beta_quantile(u) == pytest.approx(beta.ppf(u, 0.6, 0.6), abs=2e-5)
    assert times("beta", 10, LINEAR) == [round(beta.ppf(1 - i / 10, 0.6, 0.6) * 999) for i in range(10)]


def test_time_power_is_linear_in_the_root_of_the_time() -> None:
    roots = [math.sqrt(t) for t in times("time-power", 8, LINEAR)]
    assert roots == pytest.approx([math.sqrt(999) * (1 - i / 7) for i in range(8)], abs=1e-6)


def test_exponential_is_the_name_others_have_for_logsnr() -> None:
    assert schedules.create("exponential", 9, LINEAR) == schedules.create("logsnr", 9, LINEAR)


def test_align_your_steps_is_the_published_table_and_is_interpolated_in_log_sigma() -> None:
    knots = schedules.create("ays", 10, SD)
    assert knots == pytest.approx(AysSchedules["StableDiffusionSigmas"], abs=1e-3)
    assert schedules.create("ays", 10, replace(SD, family="sdxl")) == pytest.approx(AysSchedules["StableDiffusionXLSigmas"], abs=1e-3)
    halved = schedules.create("ays", 20, SD)
    assert halved[::2] == pytest.approx(knots)
    assert halved[1] == pytest.approx(math.sqrt(14.615 * 6.475), rel=1e-4)


def test_align_your_steps_is_refused_for_a_model_it_was_not_found_for() -> None:
    with pytest.raises(NotApplicableError, match="Stable Diffusion 1 and SDXL") as caught:
        schedules.create("ays", 10, OFFSET)
    for other in (replace(EDM, family="sdxl"), replace(SD, prediction="v_prediction"), replace(LINEAR, family="sd")):
        with pytest.raises(NotApplicableError, match="Stable Diffusion 1 and SDXL"):
            schedules.create("ays", 10, other)
    assert "vis-accel schedule" in str(caught.value)
