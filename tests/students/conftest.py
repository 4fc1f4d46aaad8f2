"""Tiny pipelines in folders, and options of distillations of a few steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from vis_accel.students import DistillOptions

GUIDANCE = 3.0


def tiny_dit(prediction: str = "v_prediction") -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        transformer = diffusers.DiTTransformer2DModel(
            num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=4, num_layers=2, sample_size=4, norm_num_groups=4,
            num_embeds_ada_norm=1000,
        )  # fmt: skip
        for block in transformer.transformer_blocks:  # classes far enough apart for guidance to show
            block.norm1.emb.class_embedder.embedding_table.weight.data.mul_(20)
        vae = diffusers.AutoencoderKL(latent_channels=4, norm_num_groups=4, block_out_channels=(8,))
    scheduler = diffusers.DDIMScheduler(clip_sample=False, prediction_type=prediction, timestep_spacing="trailing")
    names = {index: f"class {index}" for index in range(10)}
    pipe: Any = diffusers.DiTPipeline(transformer.eval(), vae.eval(), scheduler, id2label=names)
    pipe.register_to_config(id2label=names)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_ddpm() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        unet = diffusers.UNet2DModel(
            sample_size=8, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(8,), norm_num_groups=4,
            down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), attention_head_dim=8,
        )  # fmt: skip
    pipe: Any = diffusers.DDPMPipeline(unet.eval(), diffusers.DDPMScheduler(prediction_type="epsilon"))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Saved pipelines by kind: "dit" predicts v, "epsilon" is a DiT that predicts noise, "ddpm" is unconditional."""
    root = tmp_path_factory.mktemp("teachers")
    made = {"dit": tiny_dit(), "epsilon": tiny_dit("epsilon"), "ddpm": tiny_ddpm()}
    for name, pipe in made.items():
        pipe.save_pretrained(root / name)
    return {name: root / name for name in made}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few held-out paths, and pictures of four samples."""
    monkeypatch.setattr("vis_accel.students.run._HELD_OUT", 8)
    monkeypatch.setattr("vis_accel.students.task._ROWS", 2)


@pytest.fixture
def options(folders: dict[str, Path], tmp_path: Path) -> Callable[..., DistillOptions]:
    """Options of a run of a few steps."""

    def made(kind: str = "dit", **changes: Any) -> DistillOptions:
        plain: dict[str, Any] = {
            "model": str(folders[kind]), "output": tmp_path / "out", "guidance": None if kind == "ddpm" else GUIDANCE, "samples": 48,
            "sampler": "ddim(steps=2, schedule='trailing')", "steps": 3, "batch": 16, "precision": "no", "evaluations": 0,
            "learning_rate": 1e-3,
        }  # fmt: skip
        return DistillOptions(**{**plain, **changes})

    return made
