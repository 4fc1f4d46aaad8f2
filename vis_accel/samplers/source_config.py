"""What a diffusers scheduler's configuration says of the network behind it: betas, prediction, clipping, flow shift.

How the source spaced its own steps (Karras flags, timestep_spacing, final_sigmas_type) is a schedule's business and is not read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vis_accel.errors import NotApplicableError, UnknownNameError
from vis_accel.samplers.betas import SCHEDULES, sigma_table


def read(config: Mapping[str, Any], *, infinity: float) -> dict[str, Any]:
    """The fields of a `NoiseModel`.

    Args:
        config: a scheduler's configuration, complete as diffusers gives it.
        infinity: the sigma that stands for no signal.

    Raises:
        NotApplicableError: noise the samplers have no space for, with the reason.
    """
    _refuse(config)
    times = int(config.get("num_train_timesteps", 1000))
    if _is_edm(config):
        prediction, levels = config.get("prediction_type", "epsilon"), (float(config["sigma_min"]), float(config["sigma_max"]))
        return {
            "kind": "edm",
            "prediction": prediction,
            "times": times,
            "sigmas": levels,
            "data_std": float(config["sigma_data"]),
        } | _guard(config)
    if _is_flow(config):
        # FlowMatch schedulers ramp s down to 1/T shifted once, then shift the ramp; with dynamic shifting only the latter, later.
        shift = 1.0 if config.get("use_dynamic_shifting") else float(config.get("shift", config.get("flow_shift", 1.0)))
        ramp_end = shift / times / (1 + (shift - 1) / times)
        flow = {"kind": "flow", "prediction": "flow_prediction", "times": times, "shift": shift, "ramp_end": ramp_end}
        return flow | _guard(config)
    table = sigma_table(_betas(config, times), zero_terminal_snr=bool(config.get("rescale_betas_zero_snr")), infinity=infinity)
    prediction, offset = config.get("prediction_type", "epsilon"), int(config.get("steps_offset", 0))
    return {"kind": "vp", "prediction": prediction, "table": table, "times": len(table), "steps_offset": offset} | _guard(config)


def _is_edm(config: Mapping[str, Any]) -> bool:
    """Whether these are the keys of EDMEulerScheduler or EDMDPMSolverMultistepScheduler: others with a sigma_data mean something else."""
    wanted = {"sigma_data", "sigma_min", "sigma_max", "sigma_schedule"} | ({"algorithm_type"} if "solver_order" in config else set())
    return wanted <= set(config) and "clip_denoised" not in config


def _is_flow(config: Mapping[str, Any]) -> bool:
    # A scheduler that was built rather than loaded has no _class_name in its config: flow-matching ones are known by their keys.
    named = str(config.get("_class_name", "")).startswith("FlowMatch") or ("shift" in config and "beta_schedule" not in config)
    return named or bool(config.get("use_flow_sigmas")) or config.get("prediction_type") == "flow_prediction"


def _refuse(config: Mapping[str, Any]) -> None:
    reasons = (
        ("sigma_data" in config and not _is_edm(config), "a preconditioning (sigma_data) that is not EDM's"),
        (config.get("timestep_type") == "continuous", "a network that takes log(sigma) / 4 for its time"),
        (config.get("snr_shift_scale") not in (None, 1), "a table rescaled by snr_shift_scale"),
        (bool(config.get("invert_sigmas")), "a flow that runs from 0 to 1 (invert_sigmas)"),
    )
    for found, reason in reasons:
        if found:
            raise NotApplicableError(f"{_name(config)} describes {reason}; the samplers know variance-preserving, flow and EDM models.")


def _betas(config: Mapping[str, Any], times: int) -> Sequence[float]:
    if config.get("trained_betas") is not None:
        return [float(b) for b in config["trained_betas"]]
    name = config.get("beta_schedule")
    if name is None:
        raise NotApplicableError(f"{_name(config)} has no beta_schedule: its noise levels are unknown.")
    if name not in SCHEDULES:
        raise UnknownNameError.of("beta schedule", str(name), SCHEDULES)
    return SCHEDULES[name](float(config.get("beta_start", 0.0001)), float(config.get("beta_end", 0.02)), times)


def _guard(config: Mapping[str, Any]) -> dict[str, Any]:
    """Thresholding excludes clipping, as in diffusers."""
    if config.get("thresholding"):
        return {"threshold": (float(config.get("dynamic_thresholding_ratio", 0.995)), float(config.get("sample_max_value", 1.0)))}
    return {"clip": float(config.get("clip_sample_range", 1.0))} if config.get("clip_sample") else {}


def _name(config: Mapping[str, Any]) -> str:
    return str(config.get("_class_name", "This scheduler"))
