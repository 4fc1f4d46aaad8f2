"""Noise models: every kind of output stands for the same image, at every level, infinity included; configurations are read or refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from vis_accel.errors import NotApplicableError, UnknownNameError, UsageError
from vis_accel.samplers import SIGMA_CAP, Evaluation, NoiseModel, create, sample, schedules
from vis_accel.samplers.betas import SCHEDULES
from vis_accel.samplers.noise import dynamic_threshold, split_variance

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # diffusers' own


def model(prediction: str = "epsilon", **config: Any) -> NoiseModel:
    name = "FlowMatchEulerDiscreteScheduler" if prediction == "flow_prediction" else "DDIMScheduler"
    return NoiseModel.from_config({"_class_name": name, "beta_schedule": "linear", "prediction_type": prediction, **config})


def seeded(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def outputs(noise: NoiseModel, image: Tensor, eps: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """What a perfect network of this kind would get and answer."""
    a = noise.alpha(sigma)
    n = a * sigma
    answer = {"epsilon": eps, "sample": image, "v_prediction": a * eps - n * image, "flow_prediction": eps - image}
    return answer[noise.prediction], (a if sigma < SIGMA_CAP else 0.0) * image + n * eps


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample", "flow_prediction"])
@pytest.mark.parametrize("sigma", [0.01, 0.3, 1.0, 12.0, 150.0])
def test_every_prediction_stands_for_the_image(prediction: str, sigma: float) -> None:
    noise, image, eps = model(prediction), seeded(2, 3, 4, 4), seeded(2, 3, 4, 4).flip(0)
    output, x_t = outputs(noise, image, eps, sigma)
    torch.testing.assert_close(noise.denoised(output, x_t, sigma), image, rtol=0, atol=1e-11)


@pytest.mark.parametrize("prediction", ["v_prediction", "sample", "flow_prediction"])
def test_the_image_is_found_at_infinity_in_single_precision(prediction: str) -> None:
    noise, image, eps = model(prediction, rescale_betas_zero_snr=True), seeded(2, 3), seeded(2, 3).flip(0)
    output, x_t = outputs(noise, image, eps, SIGMA_CAP)
    denoised = noise.denoised(output.float(), x_t.float(), SIGMA_CAP)
    torch.testing.assert_close(denoised.double(), image, rtol=0, atol=1e-5)
    assert noise.time_at(SIGMA_CAP) == (1000 if noise.kind == "flow" else 999)
    assert noise.sigma_max == SIGMA_CAP
    assert noise.alpha(SIGMA_CAP) * SIGMA_CAP == 1.0


def test_alpha_is_the_scale_of_the_image() -> None:
    assert model().alpha(3.0) == pytest.approx(1 / math.sqrt(10))
    assert model("flow_prediction").alpha(3.0) == pytest.approx(0.25)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_tables_are_those_of_diffusers(schedule: str) -> None:
    from diffusers import DDPMScheduler

    stock = DDPMScheduler(beta_schedule=schedule, num_train_timesteps=400)
    noise = NoiseModel.from_config(stock.config)
    abar = stock.alphas_cumprod.double()
    torch.testing.assert_close(1 / (1 + torch.tensor(noise.table, dtype=torch.float64) ** 2), abar, rtol=1e-4, atol=1e-7)


def test_trained_betas_and_zero_terminal_snr_are_read() -> None:
    from diffusers import DDIMScheduler

    trained = NoiseModel.from_config(DDIMScheduler(trained_betas=[0.1, 0.2, 0.3]).config)
    assert trained.table == pytest.approx([math.sqrt(1 / a - 1) for a in (0.9, 0.72, 0.504)], rel=1e-6)
    assert trained.times == 3
    stock = DDIMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    zero = NoiseModel.from_config(stock.config)
    assert zero.table[-1] == SIGMA_CAP
    abar = stock.alphas_cumprod.double()[:-1]
    torch.testing.assert_close(1 / (1 + torch.tensor(zero.table[:-1], dtype=torch.float64) ** 2), abar, rtol=2e-4, atol=1e-8)


def test_every_common_scheduler_is_read() -> None:
    import diffusers

    for name in ("EulerDiscrete", "EulerAncestralDiscrete", "DDIM", "DDPM", "PNDM", "DPMSolverMultistep", "UniPCMultistep", "HeunDiscrete"):
        noise = NoiseModel.from_config(getattr(diffusers, f"{name}Scheduler")().config)
        assert (noise.kind, noise.prediction, noise.times) == ("vp", "epsilon", 1000), name
    flows = (
        diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        diffusers.FlowMatchHeunDiscreteScheduler(shift=3.0),
        diffusers.UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0),
        diffusers.DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0),
    )
    for stock in flows:
        noise = NoiseModel.from_config(stock.config)
        assert (noise.kind, noise.prediction, noise.shift) == ("flow", "flow_prediction", 3.0), stock


def test_noise_without_a_space_is_refused_with_the_reason() -> None:
    import diffusers

    for stock, reason in (
        (diffusers.EulerDiscreteScheduler(timestep_type="continuous", prediction_type="v_prediction"), "log"),
        (diffusers.CogVideoXDDIMScheduler(), "snr_shift_scale"),
        (diffusers.CMStochasticIterativeScheduler(), "not EDM's"),
        (diffusers.SCMScheduler(), "not EDM's"),
        (diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True), "invert_sigmas"),
        (diffusers.IPNDMScheduler(), "beta_schedule"),
    ):
        with pytest.raises(NotApplicableError, match=reason):
            NoiseModel.from_config(stock.config)
    with pytest.raises(NotApplicableError, match="predicts the noise"):
        model(rescale_betas_zero_snr=True)
    with pytest.raises(UnknownNameError, match="squaredcos"):
        model(beta_schedule="squaredcos")
    with pytest.raises(UnknownNameError, match="v_prediction"):
        model("v-prediction")


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "vp", "prediction": "epsilon"},
        {"kind": "vp", "prediction": "epsilon", "table": (1.0, 1.0), "times": 2},
        {"kind": "vp", "prediction": "epsilon", "table": (0.0, 1.0), "times": 2},
        {"kind": "vp", "prediction": "flow_prediction", "table": (0.5, 1.0), "times": 2},
        {"kind": "ve", "prediction": "epsilon"},
        {"kind": "flow", "prediction": "flow_prediction", "shift": 0.0},
        {"kind": "flow", "prediction": "epsilon"},
        {"kind": "edm", "prediction": "epsilon"},
        {"kind": "edm", "prediction": "sample", "sigmas": (0.002, 80.0)},
    ],
    ids=str,
)
def test_contradictory_fields_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        NoiseModel(**fields)


def test_times_outside_the_table_are_refused() -> None:
    for time in (-0.1, 999.5):
        with pytest.raises(UsageError, match=r"0 \.\. 999"):
            model().sigma_at(time)


# Clipping.


def test_clip_and_threshold_come_from_the_configuration() -> None:
    assert model(clip_sample=True, clip_sample_range=2.0).clip == 2.0
    assert model(clip_sample=False).clip is None
    thresholded = model("sample", clip_sample=True, thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=3.0)
    assert (thresholded.clip, thresholded.threshold) == (None, (0.9, 3.0))
    image = 4 * seeded(2, 3, 8, 8)
    torch.testing.assert_close(thresholded.denoised(image, image, 1.0), dynamic_threshold(image, 0.9, 3.0))
    assert float(model("sample", clip_sample=True).denoised(image, image, 1.0).abs().max()) == 1.0


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 16, 5), (2, 3, 2, 4, 4), (3, 40), (4,)], ids=str)
def test_dynamic_threshold_works_on_any_rank_and_each_image_alone(shape: tuple[int, ...]) -> None:
    image = 2 * seeded(*shape)
    image[0] *= 5
    got = dynamic_threshold(image, 0.995, 1e3)
    for k, row in enumerate(image):
        s = max(1.0, float(torch.quantile(row.abs().flatten(), 0.995)))
        torch.testing.assert_close(got[k], row.clamp(-s, s) / s, rtol=1e-6, atol=1e-6)
    assert float(got.abs().max()) <= 1.0


def test_dynamic_threshold_is_that_of_diffusers() -> None:
    from diffusers import DDIMScheduler

    stock = DDIMScheduler(thresholding=True, dynamic_thresholding_ratio=0.8, sample_max_value=2.5)
    image = 3 * seeded(3, 3, 6, 6).float()
    torch.testing.assert_close(dynamic_threshold(image, 0.8, 2.5), stock._threshold_sample(image))


# Learned variance.


def test_learned_variance_runs_between_its_two_bounds() -> None:
    from diffusers import DDPMScheduler

    from vis_accel.samplers.ddpm import variance_bounds

    stock = DDPMScheduler(variance_type="learned_range", clip_sample=False)
    noise = NoiseModel.from_config(stock.config)
    for t in (1, 2, 40, 999):
        v = torch.tensor([-1.0, 0.3, 1.0]).reshape(1, 1, 3)
        mean, share = split_variance(torch.cat([2 + v, v], dim=1))
        assert torch.equal(mean, 2 + v)
        s, below = noise.sigma_at(t), noise.sigma_at(t - 1)
        small, large = (2 * math.log(noise.alpha(below)) + math.log(bound) for bound in variance_bounds(s, below))
        expected = stock._get_variance(t, predicted_variance=v)
        torch.testing.assert_close((1 - share) * small + share * large, expected, rtol=2e-3, atol=1e-4)


def test_a_learned_variance_needs_two_channels_for_each_of_the_image() -> None:
    with pytest.raises(UsageError, match="even number"):
        split_variance(torch.zeros(1, 3, 4))


# The denoiser.


def test_denoiser_asks_in_the_networks_own_scale_and_time() -> None:
    noise, seen = model(), []

    def network(x_t: Tensor, time: float) -> Tensor:
        seen.append((x_t, time))
        return torch.zeros_like(x_t)

    x, sigma = seeded(2, 3), math.sqrt(noise.sigma_at(40) * noise.sigma_at(41))
    assert isinstance(noise.denoiser(network)(x, sigma), Evaluation)
    noise.denoiser(network, round_times=True)(x, sigma * 1.0001)
    assert seen[0][1] == pytest.approx(40.5)
    assert seen[1][1] == 41
    torch.testing.assert_close(seen[0][0], x / math.sqrt(1 + sigma**2))


def test_denoiser_cuts_a_learned_variance_off_and_keeps_it() -> None:
    noise, x = model(), seeded(2, 3, 4)
    answer = noise.denoiser(lambda x_t, time: torch.cat([0.5 * x_t, torch.ones_like(x_t)], dim=1))(x, 2.0)
    torch.testing.assert_close(answer.denoised, noise.denoiser(lambda x_t, time: 0.5 * x_t)(x, 2.0).denoised)
    assert answer.share is not None
    assert torch.equal(answer.share, torch.ones_like(x))


@pytest.mark.parametrize("prediction", ["v_prediction", "flow_prediction"])
def test_a_perfect_network_gives_the_image_from_pure_noise(prediction: str) -> None:
    """Data at one point: from infinity, in single precision, every solver must land on it."""
    noise, image = model(prediction, rescale_betas_zero_snr=True), torch.tensor([[0.3, -0.8]])

    def network(x_t: Tensor, time: float) -> Tensor:
        sigma = noise.sigma_at(time)
        a = noise.alpha(sigma) if sigma < SIGMA_CAP else 0.0
        eps = (x_t - a * image) / (noise.alpha(sigma) * sigma)
        return eps - image if prediction == "flow_prediction" else a * eps - noise.alpha(sigma) * sigma * image

    for name in ("ddim", "ddpm", "euler", "heun", "dpm", "unipc"):
        sigmas = schedules.create("auto", 8, noise)
        x = torch.tensor([[1.1, -0.4]]) / noise.alpha(sigmas[0])
        torch.testing.assert_close(sample(noise.denoiser(network), create(name), x, sigmas), image, rtol=0, atol=2e-5)
