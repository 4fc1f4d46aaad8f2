"""Laws 4, 5 and 9: solvers are finite, equal where theory says so, restartable, and say no in words."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from vis_accel.errors import NotApplicableError, UnknownNameError, UsageError
from vis_accel.method import Context
from vis_accel.samplers import SIGMA_CAP, AdaptiveError, Evaluation, NoiseModel, Solver, create, plan, sample, schedules
from vis_accel.samplers.solver import Solve

VP = NoiseModel.from_config({"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02})
FLOW = NoiseModel.from_config({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0})
EVERY: list[tuple[str, dict[str, Any]]] = [
    ("ddim", {}),
    ("ddim", {"eta": 0.6}),
    ("ddpm", {}),
    ("ddpm", {"variance": "fixed-large"}),
    ("euler", {}),
    ("heun", {}),
    *[("dpm", {"order": p, "prediction": m, "lower_order_final": low}) for p in (2, 3) for m in ("data", "noise") for low in (True, False)],
    *[("unipc", {"order": p, "variant": b, "lower_order_final": low}) for p in (1, 2, 3) for b in ("bh1", "bh2") for low in (True, False)],
    ("unipc", {"order": 3, "corrector": False}),
    *[(name, {"order": p}) for name in ("ipndm", "adams") for p in (2, 4)],
    *[("deis", {"order": p, "lower_order_final": low}) for p in (2, 4) for low in (True, False)],
    *[("deis", {"order": 3, "variable": "t", "lower_order_final": low}) for low in (True, False)],
    *[("singlestep", {"order": p}) for p in (2, 3)],
    *[("dpm-sde", {"order": p}) for p in (1, 2, 3)],
    ("euler-ancestral", {}),
    ("dpm", {"order": 3, "third": "published"}),
    ("pndm", {}),
    ("plms", {}),
    ("heun", {"churn": 0.2}),
    ("restart", {"low": 0.6, "high": 3.0}),
]
STOCHASTIC = ("ddpm", "dpm-sde", "euler-ancestral")  # whose first step from infinity keeps less of x than DDIM's
IDS = [f"{name}-{'-'.join(map(str, options.values()))}" for name, options in EVERY]
GRID = (9.0, 5.5, 4.9, 2.0, 1.1, 0.7, 0.2, 0.11)


def start(n: int = 5) -> Tensor:
    return 9 * torch.linspace(-1.5, 1.5, n, dtype=torch.float64).reshape(n, 1)


@pytest.mark.parametrize(("name", "options"), EVERY, ids=IDS)
def test_finite_for_every_number_of_steps_and_both_ends(name: str, options: dict[str, Any]) -> None:
    solver = create(name, **options)

    def denoise(x: Tensor, sigma: float) -> Tensor:
        return x / (1 + sigma * sigma) + 0.3

    for n in range(1, 31):
        for end in ("zero", "sigma_min"):
            for noise, which in ((VP, "auto"), (VP, "karras"), (FLOW, "auto")):
                sigmas = schedules.create(which, n, noise, end=end)
                x = torch.tensor([[0.4], [-1.1]]) / noise.alpha(sigmas[0])
                image = sample(denoise, solver, x, sigmas)
                assert image.dtype == torch.float32
                assert bool(image.isfinite().all()), (n, end, which)
                if n >= 10 and (name, options) != ("dpm-sde", {"order": 3}):  # fewer steps of Heun are finite and no more; so is this
                    assert float(image.abs().max()) < 10, (n, end, which)


def run(mixture: Any, sigmas: tuple[float, ...], name: str, noise: Any = None, **options: Any) -> Tensor:
    return sample(mixture.denoise, create(name, **options), start(), sigmas, noise=noise)


@pytest.mark.parametrize("last", [(), (0.0,)], ids=["stopping", "to zero"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dpm", {"order": 1}),
        ("dpm", {"order": 1, "prediction": "noise"}),
        ("dpmpp", {"order": 1}),
        ("euler", {}),
        ("unipc", {"order": 1, "corrector": False}),
        ("unipc", {"order": 1, "corrector": False, "variant": "bh1"}),
        ("ipndm", {"order": 1}),
        ("adams", {"order": 1}),
        ("deis", {"order": 1}),
        ("deis", {"order": 1, "variable": "t"}),
        ("euler-ancestral", {"eta": 0.0}),
    ],
    ids=str,
)
def test_all_first_order_solvers_are_ddim(mixture: Any, name: str, options: dict[str, Any], last: tuple[float, ...]) -> None:
    torch.testing.assert_close(run(mixture, GRID + last, name, **options), run(mixture, GRID + last, "ddim"), rtol=0, atol=1e-10)


@pytest.mark.parametrize("last", [(), (0.0,)], ids=["stopping", "to zero"])
def test_ddim_with_eta_1_is_ddpm_fixed_small(mixture: Any, last: tuple[float, ...]) -> None:
    def noise(like: Tensor) -> Tensor:
        return torch.full_like(like, next(draws))

    draws = iter([0.3, -1.2, 0.8, 0.1, -0.5, 2.0, 0.9] * 2)
    ddim = run(mixture, GRID + last, "ddim", noise, eta=1.0)
    draws = iter([0.3, -1.2, 0.8, 0.1, -0.5, 2.0, 0.9] * 2)
    torch.testing.assert_close(run(mixture, GRID + last, "ddpm", noise), ddim, rtol=0, atol=1e-10)


@pytest.mark.parametrize("last", [(), (0.0,)], ids=["stopping", "to zero"])
@pytest.mark.parametrize(("name", "options"), [("euler-ancestral", {}), ("dpm-sde", {"order": 1})], ids=str)
def test_ancestral_euler_and_the_first_order_of_the_sde_are_ddpm(
    mixture: Any, name: str, options: dict[str, Any], last: tuple[float, ...]
) -> None:
    def noise(like: Tensor) -> Tensor:
        return torch.full_like(like, next(draws))

    draws = iter([0.3, -1.2, 0.8, 0.1, -0.5, 2.0, 0.9] * 2)
    found = run(mixture, GRID + last, name, noise, **options)
    draws = iter([0.3, -1.2, 0.8, 0.1, -0.5, 2.0, 0.9] * 2)
    torch.testing.assert_close(found, run(mixture, GRID + last, "ddpm", noise), rtol=0, atol=1e-10)


def test_deis_of_order_3_is_dpm_in_noise_prediction(mixture: Any) -> None:
    history = [(s, start(), mixture.denoise(start(), s)) for s in GRID[:2]]
    for sigmas in (GRID[2:], (*GRID[2:], 0.0)):
        a = sample(mixture.denoise, create("deis", lower_order_final=False), start(), sigmas, history=history)
        b = sample(mixture.denoise, create("dpm", order=3, prediction="noise", lower_order_final=False), start(), sigmas, history=history)
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("order", "variant"), [(2, "bh2"), (3, "bh1"), (3, "bh2")])
@pytest.mark.parametrize("lower", [True, False])
def test_unipc_without_corrector_is_dpmpp(mixture: Any, order: int, variant: str, lower: bool) -> None:
    for sigmas in (GRID, (*GRID, 0.0)):
        # bh2 for the start-up step of order 2, where the variants differ
        past = {"order": order, "lower_order_final": lower}
        if variant == "bh1":
            sigmas, past["lower_order_final"] = GRID[2:], False
        history = [(s, start(), mixture.denoise(start(), s)) for s in GRID[:2]] if variant == "bh1" else []
        a = sample(mixture.denoise, create("unipc", corrector=False, variant=variant, **past), start(), sigmas, history=history)
        b = sample(mixture.denoise, create("dpmpp", **past), start(), sigmas, history=history)
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_dpmpp_is_dpm_with_data_prediction(mixture: Any) -> None:
    for order in (1, 2, 3):
        assert torch.equal(run(mixture, GRID, "dpmpp", order=order), run(mixture, GRID, "dpm", order=order))
    assert not torch.equal(run(mixture, GRID, "dpmpp"), run(mixture, GRID, "dpm", prediction="noise"))


# Infinity.


@pytest.mark.parametrize(("name", "options"), EVERY, ids=IDS)
def test_first_step_from_infinity_is_ddim_and_leaves_no_trace(mixture: Any, name: str, options: dict[str, Any]) -> None:
    """D at infinity says nothing of the image: changing it may move the first point only as DDIM does, and enters no history."""
    if options.get("churn"):  # raises the noise wherever it does not begin
        pytest.skip("a run of it has no tail that is a run")
    first = create("ddpm") if name in STOCHASTIC else create("ddim", **(options if name == "ddim" else {}))
    solver = create(name, **options)
    sigmas = (SIGMA_CAP, 4.0, 2.0, 1.0, 0.4)
    x = torch.tensor([[0.7], [-0.2]], dtype=torch.float64) * SIGMA_CAP

    def silence(like: Tensor) -> Tensor:
        return torch.zeros_like(like)

    whole = sample(mixture.denoise, solver, x, sigmas, noise=silence)
    middle = sample(mixture.denoise, first, x, sigmas[:2], noise=silence)
    torch.testing.assert_close(sample(mixture.denoise, solver, middle, sigmas[1:], noise=silence), whole, rtol=0, atol=1e-12)


def test_float32_keeps_its_digits_from_infinity(mixture: Any) -> None:
    sigmas = (SIGMA_CAP, 40.0, 9.0, 3.0, 1.0, 0.3, 0.0)
    x = torch.tensor([[0.7], [-0.2]], dtype=torch.float64) * SIGMA_CAP
    for name, options in EVERY:
        if (name == "ddpm" and options) or (name == "ddim" and options):
            continue
        solver = create(name, **options)
        double, single = (sample(mixture.denoise, solver, x.to(dtype), sigmas) for dtype in (torch.float64, torch.float32))
        torch.testing.assert_close(single.double(), double, rtol=0, atol=2e-5)


# Calls, restarts, edits.


@pytest.mark.parametrize(
    ("name", "sigmas", "asked"),
    [
        ("ddim", (4.0, 2.0, 1.0, 0.0), [4.0, 2.0, 1.0]),
        ("unipc", (4.0, 2.0, 1.0, 0.0), [4.0, 2.0, 1.0]),
        ("dpmpp", (4.0, 2.0, 1.0, 0.5), [4.0, 2.0, 1.0]),
        ("heun", (4.0, 2.0, 1.0, 0.0), [4.0, 2.0, 2.0, 1.0, 1.0]),
        ("heun", (4.0, 2.0, 1.0, 0.5), [4.0, 2.0, 2.0, 1.0, 1.0, 0.5]),
        ("heun", (SIGMA_CAP, 2.0, 1.0, 0.0), [SIGMA_CAP, 2.0, 1.0, 1.0]),
        ("ipndm", (4.0, 2.0, 1.0, 0.0), [4.0, 2.0, 1.0]),
        ("singlestep", (SIGMA_CAP, 4.0, 1.0, 0.0), [SIGMA_CAP, 4.0, pytest.approx(2.0), 1.0]),
    ],
)
def test_plan_lists_the_calls_that_sampling_makes(mixture: Any, name: str, sigmas: tuple[float, ...], asked: list[float]) -> None:
    seen = []

    def denoise(x: Tensor, sigma: float) -> Tensor:
        seen.append(sigma)
        denoised: Tensor = mixture.denoise(x, sigma)
        return denoised

    sample(denoise, create(name), start() * sigmas[0], sigmas)
    assert plan(create(name), sigmas) == seen == asked


@pytest.mark.parametrize(("name", "options"), EVERY, ids=IDS)
def test_a_tail_of_the_knots_is_a_run_and_its_plan_is_a_tail(name: str, options: dict[str, Any]) -> None:
    solver, sigmas = create(name, **options), (8.0, 4.0, 2.0, 1.0, 0.5, 0.0)
    whole = plan(solver, sigmas)
    for i in range(5):
        if i > 0 and (options.get("churn") or name == "restart"):
            with pytest.raises(NotApplicableError, match="later knot"):
                solver.resumed()
            continue
        if name == "pndm" and i in (1, 2):  # inside its start
            continue
        tail = plan(solver.resumed() if i else solver, sigmas[i:])
        assert tail == whole[len(whole) - len(tail) :]
        assert tail[0] == sigmas[i]


@pytest.mark.parametrize(("name", "options"), EVERY, ids=IDS)
def test_an_edit_of_x_between_requests_is_kept(mixture: Any, name: str, options: dict[str, Any]) -> None:
    """The state that comes back counts, not the one that was sent: what inpainting and callbacks rely on."""

    def end(edit: float, number: int) -> Tensor:
        pulled = create(name, **options).solve(start(), (9.0, 4.0, 2.0, 1.0), noise=None)
        try:
            x, s = next(pulled)
            for k in range(99):
                # The answer is that of the unedited x, so that only the state carries the edit on.
                x, s = pulled.send((x + edit * (k == number), Evaluation(mixture.denoise(x, s))))
        except StopIteration as stop:
            result: Tensor = stop.value
            return result
        raise AssertionError("endless")

    calls = len(plan(create(name, **options), (9.0, 4.0, 2.0, 1.0)))
    for number in range(calls):
        assert not torch.allclose(end(0.5, number), end(0.0, number), rtol=0, atol=1e-3), number


def test_without_their_start_pndm_and_plms_are_ipndm(mixture: Any) -> None:
    history = [(s, start(), mixture.denoise(start(), s)) for s in GRID[:3]]
    expected = sample(mixture.denoise, create("ipndm"), start(), GRID[3:], history=history)
    for name in ("pndm", "plms"):
        assert torch.equal(sample(mixture.denoise, create(name), start(), GRID[3:], history=history), expected)


def test_the_start_of_pndm_is_the_classical_runge_kutta_method(mixture: Any) -> None:
    """Its local error is of order 5: halving the step divides it by 32."""

    def miss(h: float) -> float:
        x = torch.tensor([1.9], dtype=torch.float64)
        end = sample(mixture.denoise, create("pndm"), x, (2.0, 2.0 - h))
        return abs(float(end) - mixture.flow(1.9, 2.0, 2.0 - h))

    assert math.log2(miss(0.4) / miss(0.2)) == pytest.approx(5, abs=0.3)


@pytest.mark.parametrize(("name", "more"), [("pndm", 9), ("plms", 1), ("ipndm", 0)])
def test_what_the_start_costs(name: str, more: int) -> None:
    assert len(plan(create(name), (*GRID, 0.0))) == len(GRID) + more


def test_restart_goes_back_up_where_it_should() -> None:
    solver: Any = create("restart", low=0.6, high=3.0, inner=2, times=2)
    asked = plan(solver, (4.0, 1.0, 0.5, 0.2))
    middle = solver.way_down(3.0, 0.5)[1]
    assert asked == [4.0, 1.0, 1.0, 0.5, *[3.0, middle, middle, 0.5] * 2, 0.5, 0.2]
    assert plan(solver, (0.5, 0.2)) == [0.5, 0.2]  # begins below: nothing to go back from
    assert max(plan(solver, (2.0, 1.0, 0.5, 0.2))) == 2.0  # never above where it began
    with pytest.raises(NotApplicableError, match="later knot"):
        solver.resumed()


@pytest.mark.parametrize("schedule", ["auto", "trailing", "karras"])
@pytest.mark.parametrize("steps", [5, 20])
def test_restart_restarts_whatever_the_knots(schedule: str, steps: int) -> None:
    """Found by a review: no knot of a trailing schedule of 20 steps lies below `low`, and the run was plain Heun."""
    solver: Any = create("restart", schedule=schedule)
    knots = solver.knots(steps, VP)
    assert len(plan(solver, knots)) == len(plan(create("heun"), knots)) + 2 * solver.inner * solver.times


def test_the_interval_of_a_restart_has_two_ends() -> None:
    with pytest.raises(UsageError, match="must be above low"):
        create("restart", low=0.5, high=0.4)


def test_third_order_as_published_is_that_of_diffusers(mixture: Any) -> None:
    from diffusers import DPMSolverMultistepScheduler

    stock = DPMSolverMultistepScheduler(solver_order=3, final_sigmas_type="sigma_min", lower_order_final=False, timestep_spacing="trailing")
    stock.set_timesteps(12)
    knots = tuple(float(s) for s in stock.sigmas)
    x = start(4).float() / 9
    sample_ours = x * math.hypot(1, knots[0])
    z = x.clone()
    for t, s in zip(stock.timesteps, knots, strict=False):
        scaled = z * math.hypot(1, s)
        z = stock.step((scaled - mixture.denoise(scaled, s)) / s, t, z).prev_sample
    end = sample(mixture.denoise, create("dpm", order=3, third="published", lower_order_final=False), sample_ours.double(), knots)
    torch.testing.assert_close(end, (z * math.hypot(1, knots[-1])).double(), rtol=0, atol=2e-5)
    exact = sample(mixture.denoise, create("dpm", order=3, lower_order_final=False), sample_ours.double(), knots)
    assert float((exact - end).abs().max()) > 1e-4


def test_corrector_adds_to_an_edited_point(mixture: Any) -> None:
    """With D held constant there is nothing to correct, so an edit at the second knot must arrive scaled like the noise."""
    pulled = create("unipc", order=2).solve(start(), (8.0, 4.0, 2.0), noise=None)
    constant = Evaluation(torch.full_like(start(), 0.3))
    x, _ = next(pulled)
    x, _ = pulled.send((x, constant))
    with pytest.raises(StopIteration) as stop:
        pulled.send((x + 1.0, constant))
    plain = 0.3 + (start() - 0.3) * 2 / 8
    torch.testing.assert_close(stop.value.value, plain + 0.5, rtol=0, atol=1e-12)


@dataclass(frozen=True, kw_only=True)
class Adaptive(Solver):
    """Halves its state until it is small: how many calls that takes depends on the data."""

    name: ClassVar[str] = "adaptive"
    factor: float = 0.5

    @property
    def convergence_order(self) -> int:
        return 1

    def apply(self, target: Any, context: Context) -> Any:
        raise NotImplementedError

    def solve(self, x: Tensor, sigmas: Any, *, noise: Any = None, history: Any = ()) -> Solve:
        s = sigmas[0]
        while float(x.abs().max()) > 0.1:
            x, _ = yield x, s
            x, s = self.factor * x, s / 2
        return x


def test_plan_refuses_solvers_whose_calls_depend_on_the_data() -> None:
    with pytest.raises(AdaptiveError, match=r"samplers\.sample"):
        plan(Adaptive(), (4.0, 1.0, 0.0))
    with pytest.raises(AdaptiveError, match="without coming to an end"):
        plan(Adaptive(factor=1.0), (4.0, 1.0, 0.0))


# Words.


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("ddim", {"eta": 1.5}, r"eta is the share of fresh noise and must be >= 0 and <= 1; got 1\.5"),
        ("ddim", {"eta": float("nan")}, "eta is"),
        ("ddpm", {"variance": "large"}, "'fixed-small', 'fixed-large' or 'learned'"),
        ("dpm", {"order": 4}, "order is .* must be 1, 2 or 3"),
        ("dpm", {"prediction": "x0"}, "'data' or 'noise'"),
        ("unipc", {"variant": "bh3"}, "'bh1' or 'bh2'"),
        ("unipc", {"corrector": 1}, "True or False"),
        ("euler", {"steps": 0}, "steps is the number of solver steps and must be >= 1; got 0"),
        ("euler", {"steps": 2.5}, "an integer"),
        ("euler", {"schedule": "karas"}, "did you mean 'karras'"),
        ("euler", {"schedule": (1.0, 2.0)}, "strictly falling"),
        ("euler", {"schedule": ()}, "strictly falling"),
        ("euler", {"schedule": (0.0,)}, "strictly falling"),
        ("euler", {"schedule": (1.0, -0.5)}, "strictly falling"),
        ("euler", {"schedule": (2.0, 1.0), "steps": 3}, "must be 2"),
        ("dpmpp", {"prediction": "data"}, "no option of dpmpp named 'prediction'"),
        ("dpm", {"ordre": 2}, "did you mean order"),
    ],
    ids=str,
)
def test_bad_options_are_refused_in_words(name: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        create(name, **options)


@pytest.mark.parametrize(("typed", "meant"), [("dpmp", "dpmpp"), ("unpic", "unipc"), ("eulr", "euler")])
def test_unknown_sampler_names_offer_the_closest(typed: str, meant: str) -> None:
    with pytest.raises(UnknownNameError, match=f"no sampler named '{typed}'") as caught:
        create(typed)
    assert meant in str(caught.value)


def test_alias_and_explicit_schedules_are_read() -> None:
    assert type(create("dpm++")) is type(create("dpmpp"))
    assert create("euler", schedule=[3, 1, 0]) == create("euler", schedule=(3.0, 1.0, 0.0), steps=None)
    assert str(create("dpm", order=3, steps=12)) == "dpm(steps=12, order=3)"


@pytest.mark.parametrize("sigmas", [(1.0,), (), (1.0, 1.0), (1.0, 2.0), (1.0, -1.0), (math.inf, 1.0), (math.nan, 0.0)], ids=str)
def test_knots_that_do_not_fall_are_refused(mixture: Any, sigmas: tuple[float, ...]) -> None:
    with pytest.raises(UsageError, match="strictly falling"):
        sample(mixture.denoise, create("euler"), start(), sigmas)


def test_denoiser_of_another_shape_is_refused() -> None:
    with pytest.raises(UsageError, match=r"\(5, 1\); got \(5, 2\)"):
        sample(lambda x, s: torch.cat([x, x], 1), create("euler"), start(), GRID)
