"""A stand-in for the bundled models: the same files in the same layout, tiny and untrained, so that the whole command runs in seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from vis_accel.zoo import bundled


@pytest.fixture(scope="session")
def standin_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Builds both models, the reference and the held-out features; no baseline features: they are made by each run."""
    from diffusers import AutoencoderKL, DiTPipeline

    from vis_accel.zoo import train_dit
    from vis_accel.zoo.export import save_module
    from vis_accel.zoo.feature_net import ConvClassifier

    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    transformer = train_dit.build(width=64, depth=1).eval()
    for parameter in transformer.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    vae = AutoencoderKL(
        latent_channels=4, sample_size=32, norm_num_groups=4, block_out_channels=(4, 4, 4), layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3, mid_block_add_attention=False,
    ).eval()  # fmt: skip
    labels = dict(enumerate(train_dit.CLASSES))
    pipeline = DiTPipeline(transformer=transformer, vae=vae, scheduler=train_dit.scheduler(), id2label=labels)
    pipeline.register_to_config(id2label=labels)
    pipeline.save_pretrained(folder / "cifar10-dit")
    job = {"seed": 0, "class_labels": list(range(10)), "guidance_scale": 2.0, "steps": 10}
    _card(folder / "cifar10-dit", {"name": "cifar10-dit", "kind": "pipeline", "classes": list(train_dit.CLASSES), "job": job})
    save_module(ConvClassifier().eval(), folder / "cifar10-features" / "model.safetensors")
    _card(folder / "cifar10-features", {"name": "cifar10-features", "kind": "features", "classes": list(train_dit.CLASSES)})
    return folder


def _card(place: Path, card: dict[str, object]) -> None:
    (place / "card.json").write_text(json.dumps(card))
    bundled.seal(place)


@pytest.fixture(scope="session")
def measured_folder(standin_folder: Path) -> Path:
    """With what is measured once: statistics and features of noise images."""
    from vis_accel.eval.reference import make_reference, save_reference
    from vis_accel.zoo.measured import feature_net, save_features

    before, bundled.FOLDER = bundled.FOLDER, standin_folder
    try:
        net = feature_net()
        features = net(torch.randint(0, 256, (1500, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)))
        place = standin_folder / "cifar10-features"
        save_reference(place / "reference.safetensors", make_reference(features, net, images="noise", split="train"))
        save_features(place / "held_out.safetensors", {"test": features}, net, {})
        bundled.seal(place)
    finally:
        bundled.FOLDER = before
    return standin_folder


@pytest.fixture
def standin(measured_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The stand-in models under the bundled names, in an empty working folder."""
    monkeypatch.setattr(bundled, "FOLDER", measured_folder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    return tmp_path
