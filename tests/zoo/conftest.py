"""Stand-ins for the bundled models: the same formats and classes, a few kilobytes each."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vis_accel.zoo import bundled

TINY = {"widths": [4, 8, 8], "num_features": 6}
TINY_VIT = {"width": 8, "depth": 1, "heads": 2, "stem": [4, 4, 8]}


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def _make(folder: Path, *, dtype: torch.dtype = torch.bfloat16, shard: str | None = None) -> Path:
    """A DiTPipeline with 1001 class rows and an autoencoder, saved as the bundled one is."""
    from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        transformer = DiTTransformer2DModel(
            num_attention_heads=1, attention_head_dim=8, in_channels=4, out_channels=4, num_layers=1, sample_size=8, patch_size=2,
            num_embeds_ada_norm=1000,
        )  # fmt: skip
        vae = AutoencoderKL(
            sample_size=32, latent_channels=4, norm_num_groups=4, block_out_channels=(4, 4, 8), layers_per_block=1,
            mid_block_add_attention=False, down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        )  # fmt: skip
    scheduler = DDIMScheduler(prediction_type="v_prediction", clip_sample=False, timestep_spacing="trailing")
    pipeline: Any = DiTPipeline(transformer=transformer, vae=vae, scheduler=scheduler)
    pipeline.to(dtype).save_pretrained(folder)
    if shard:
        (folder / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
        transformer.to(dtype).save_pretrained(folder / "transformer", max_shard_size=shard)
    index = folder / "model_index.json"  # diffusers takes id2label from there, but does not write it
    index.write_text(json.dumps(json.loads(index.read_text()) | {"id2label": {"0": "airplane", "1": "automobile"}}))
    return folder


@pytest.fixture(scope="session")
def make_pipeline() -> Callable[..., Path]:
    """`make_pipeline(folder, dtype=..., shard="20KB")` writes the tiny pipeline."""
    return _make


def write_card(folder: Path, **facts: Any) -> None:
    (folder / bundled.CARD).write_text(json.dumps(facts))


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pipeline, made once; tests copy it."""
    return _make(tmp_path_factory.mktemp("saved") / "pipeline")


@pytest.fixture
def model(saved: Path, tmp_path: Path) -> Path:
    """A copy of the tiny pipeline that a test may break."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


@pytest.fixture
def models(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of sealed stand-ins for bundled models, put in the place of the real one."""
    from vis_accel.zoo.export import save_module
    from vis_accel.zoo.feature_net import ConvClassifier
    from vis_accel.zoo.vit import build_vit

    root = tmp_path / "models"
    shutil.copytree(saved, root / "cifar10-dit")
    job = {"seed": 0, "class_labels": [0, 1], "guidance_scale": 2.0, "steps": 4}
    classes = ["airplane", "automobile"]
    write_card(root / "cifar10-dit", name="cifar10-dit", kind="pipeline", job=job, classes=classes, baseline_features=100)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(8)
        save_module(ConvClassifier(widths=(4, 8, 8), num_features=6), root / "cifar10-features" / "model.safetensors")
    write_card(root / "cifar10-features", name="cifar10-features", kind="features", config=TINY)
    save_module(build_vit(**TINY_VIT), root / "cifar10-vit" / "model.safetensors")
    write_card(root / "cifar10-vit", name="cifar10-vit", kind="classifier", config=TINY_VIT)
    for name in ("cifar10-dit", "cifar10-features", "cifar10-vit"):
        bundled.seal(root / name)
    monkeypatch.setattr(bundled, "FOLDER", root)
    return root
