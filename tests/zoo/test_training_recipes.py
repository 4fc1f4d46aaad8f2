"""The recipes of the bundled models: split, augmentation, targets, and a short training of each up to a folder that loads."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from vis_accel.errors import DataError, UnknownNameError, UsageError
from vis_accel.zoo import bundled, cifar10, load, train_autoencoder, train_dit, train_features, train_unet, train_vit
from vis_accel.zoo.feature_net import whitening_filters
from vis_accel.zoo.recipes import train
from vis_accel.zoo.vit import build_vit


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight noise images a class and split; image k of a class has k in its first pixel."""
    folder = tmp_path_factory.mktemp("cifar")
    source = numpy.random.default_rng(0)
    for part in ("train", "test"):
        for name in cifar10.CLASSES:
            place = folder / part / name
            place.mkdir(parents=True)
            for index in range(8):
                pixels = source.integers(0, 256, (32, 32, 3), dtype=numpy.uint8)
                pixels[0, 0] = index
                Image.fromarray(pixels).save(place / f"{index:04d}.png")
    return folder


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar10, "_CALIBRATION_PER_CLASS", 3)


def test_the_calibration_images_are_the_last_of_each_class_and_never_in_train(data: Path) -> None:
    splits = {name: cifar10.load_split(data, name) for name in cifar10.SPLITS}
    assert {name: len(images) for name, images in splits.items()} == {"train": 50, "calibration": 30, "test": 80}
    assert set(splits["calibration"].pixels[:, 0, 0, 0].tolist()) == {5, 6, 7}
    assert set(splits["train"].pixels[:, 0, 0, 0].tolist()) == {0, 1, 2, 3, 4}
    assert len({images.sha256 for images in splits.values()}) == 3
    assert splits["train"].labels.bincount().tolist() == [5] * 10


def test_folders_that_are_not_laid_out_so_are_named(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"airplane holds 0 images"):
        cifar10.load_split(tmp_path, "train")
    with pytest.raises(UnknownNameError, match="validation"):
        cifar10.load_split(data, "validation")
    place = tmp_path / "train" / "airplane"
    place.mkdir(parents=True)
    for index in range(4):
        (place / f"{index}.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"0\.png does not open"):
        cifar10.load_split(tmp_path, "train")


def test_augmentation_crops_flips_and_cuts_within_the_image() -> None:
    images = torch.rand(64, 3, 32, 32)
    same = train_features.augment(images, torch.Generator().manual_seed(0), cutout=0)
    again = train_features.augment(images, torch.Generator().manual_seed(0), cutout=0)
    assert torch.equal(same, again)
    assert set(same[0].flatten().tolist()) <= set(images[0].flatten().tolist())
    padded = torch.nn.functional.pad(images, (4, 4, 4, 4), mode="reflect")
    for image, source in zip(same[:8], padded[:8], strict=True):
        crops = [source[:, y : y + 32, x : x + 32] for y in range(9) for x in range(9)]
        assert any(torch.equal(image, crop) or torch.equal(image, crop.flip(-1)) for crop in crops)
    cut = train_features.augment(images, torch.Generator().manual_seed(0), cutout=8)
    assert (cut == 0.47).all(dim=1).sum(dim=(1, 2)).max() == 49  # 7 x 7 where the border does not cut it short


def test_the_target_of_the_dit_is_v_and_gives_back_image_and_noise() -> None:
    task = train_dit.DiTTask.__new__(train_dit.DiTTask)
    task.alphas_cumprod = train_dit.scheduler().alphas_cumprod
    latents = torch.randn(16, 4, 8, 8)
    noised, times, target, weight = task._noised(latents, torch.Generator().manual_seed(0))
    signal = task.alphas_cumprod[times][:, None, None, None]
    assert torch.allclose(signal.sqrt() * noised - (1 - signal).sqrt() * target, latents, atol=1e-5)
    snr = (signal / (1 - signal)).flatten()
    assert torch.allclose(weight * (snr + 1), snr.clamp(max=5.0))


def test_label_dropout_is_one_draw_an_image_and_not_the_networks_own() -> None:
    model = train_dit.build(width=64, depth=2).train()
    tables = [block.norm1.emb.class_embedder for block in model.transformer_blocks]
    assert all(table.dropout_prob == 0 for table in tables)
    assert all(table.embedding_table.num_embeddings == 1001 for table in tables)
    assert not any(table.embedding_table.weight[10:1000].any() for table in tables)
    x, times, labels = torch.randn(2, 4, 8, 8), torch.tensor([3, 900]), torch.tensor([1, 2])
    first = model(x, timestep=times, class_labels=labels).sample
    assert torch.equal(first, model(x, timestep=times, class_labels=labels).sample)  # in training mode


def test_whitened_patches_have_unit_covariance_in_both_signs() -> None:
    mixed = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    mixed = torch.einsum("ij,njhw->nihw", torch.tensor([[1.0, 0.8, 0.0], [0.0, 1.0, -0.5], [0.3, 0.0, 2.0]]), mixed)
    images = mixed + 0.7 * mixed.roll(1, -1)  # neighbours depend on each other too
    filters = whitening_filters(images, eps=0.0)
    assert torch.equal(filters[:12], -filters[12:])
    seen = torch.nn.functional.conv2d(images, filters[:12]).transpose(0, 1).flatten(1)
    assert torch.allclose(seen @ seen.T / seen.shape[1], torch.eye(12), atol=1e-3)


def test_features_train_into_a_file_that_the_package_loads(data: Path, tmp_path: Path) -> None:
    result = train("cifar10-features", data, tmp_path, compile=False, options={"steps": 2, "batch_size": 10})
    assert 0 <= result.scores["top1"] <= 1
    (tmp_path / "card.json").write_text(json.dumps({"name": "cifar10-features", "kind": "features"}))
    (tmp_path / "checkpoint.safetensors").unlink()
    bundled.seal(tmp_path)
    network = load(str(tmp_path))
    assert network(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    facts = json.loads((tmp_path / "history.json").read_text())
    assert facts["processes"] == 1
    assert facts["machine"]["torch"] == torch.__version__


def test_the_vit_learns_from_the_bundled_features(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_vit, "build_vit", lambda: build_vit(width=8, depth=1, heads=2, stem=(4, 4, 8)))
    stand_in = train_features.ConvClassifier(widths=(4, 8, 8), num_features=6)
    monkeypatch.setattr("vis_accel.zoo.load", lambda name: stand_in)
    result = train("cifar10-vit", data, tmp_path, compile=False, options={"steps": 2, "batch_size": 10})
    assert 0 <= result.scores["top1"] <= 1
    task = train_vit.ViTTask(cifar10.load_split(data, "train"), cifar10.load_split(data, "test"), stand_in)
    images, labels = task.batch(torch.arange(4), torch.Generator().manual_seed(0))
    soft, guide = task.taught(images)
    assert torch.allclose(soft, stand_in(images).softmax(1), atol=1e-6)  # of the very same crop
    assert guide.shape == (4, 64, 8)
    assert torch.allclose(guide.mean(-1), torch.zeros(4, 64), atol=1e-5)  # each place by itself
    generator = torch.Generator().manual_seed(1)
    logits, imitation = torch.randn(4, 10, generator=generator), torch.randn(4, 64, 8, generator=generator)
    likely = logits.log_softmax(1)
    crossed = -likely[torch.arange(4), labels].mean()
    apart = (soft * (soft.log() - likely)).sum(1).mean()
    expected = 0.5 * crossed + 0.5 * apart + (imitation - guide).square().mean()
    assert torch.allclose(task.loss(lambda _: (logits, imitation), images, labels), expected, atol=1e-5)


def test_the_target_of_the_unet_is_the_noise_that_was_added() -> None:
    task = train_unet.UNetTask.__new__(train_unet.UNetTask)
    task.alphas_cumprod = train_unet.scheduler().alphas_cumprod
    pixels = torch.randint(0, 256, (16, 3, 8, 8), dtype=torch.uint8)
    noised, times, noise, weight = task._noised(pixels, torch.Generator().manual_seed(0))
    signal = task.alphas_cumprod[times][:, None, None, None]
    assert torch.allclose(noised - (1 - signal).sqrt() * noise, signal.sqrt() * (pixels.float() / 127.5 - 1), atol=1e-5)
    snr = (signal / (1 - signal)).flatten()
    assert torch.allclose(weight * snr, snr.clamp(max=5.0))
    assert task.loss(lambda *_, **__: (noise,), noised, times, noise, weight).item() == 0.0


def test_the_unet_trains_into_a_stock_pipeline_that_generates(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = train_unet.build
    monkeypatch.setattr(train_unet, "build", lambda: small(widths=(8, 16)))
    train("cifar10-unet", data, tmp_path, compile=False, options={"steps": 2, "batch_size": 10})
    assert (tmp_path / "grid.png").stat().st_size > 1000
    pipeline = load(str(tmp_path / "pipeline"))
    assert type(pipeline).__name__ == "DDPMPipeline"
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline(batch_size=2, num_inference_steps=2, output_type="np").images.shape == (2, 32, 32, 3)


def test_resume_of_the_autoencoder_takes_the_vae_of_the_pipeline(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = train_autoencoder.build()
    monkeypatch.setattr("vis_accel.zoo.load", lambda name: SimpleNamespace(vae=shipped))
    options = {"steps": 1, "batch_size": 10, "learning_rate": 1e-9}
    train("cifar10-autoencoder", data, tmp_path, compile=False, options=options, resume=True)
    kept = load_file(tmp_path / "vae" / "diffusion_pytorch_model.safetensors")
    assert torch.allclose(kept["decoder.conv_in.weight"], shipped.decoder.conv_in.weight, atol=1e-6)


def test_resume_of_the_vit_takes_the_network_without_its_guide(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = {"width": 8, "depth": 1, "heads": 2, "stem": (4, 4, 8)}
    shipped, teacher = build_vit(**tiny), train_features.ConvClassifier(widths=(4, 8, 8), num_features=6)
    monkeypatch.setattr(train_vit, "build_vit", lambda: build_vit(**tiny))
    monkeypatch.setattr("vis_accel.zoo.load", lambda name: teacher if name == "cifar10-features" else shipped)
    options = {"steps": 1, "batch_size": 10, "learning_rate": 1e-9}
    train("cifar10-vit", data, tmp_path, compile=False, options=options, resume=True)
    kept = load_file(tmp_path / "model.safetensors")
    assert set(kept) == set(shipped.state_dict())
    assert torch.allclose(kept["blocks.0.attn.qkv.weight"].float(), shipped.state_dict()["blocks.0.attn.qkv.weight"], atol=1e-2)


def test_resume_without_a_checkpoint_starts_from_the_bundled_weights(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = train_features.ConvClassifier()
    monkeypatch.setattr("vis_accel.zoo.load", lambda name: shipped)
    told: list[str] = []
    options = {"steps": 1, "batch_size": 10, "learning_rate": 1e-9, "weight_decay": 0.0}
    train("cifar10-features", data, tmp_path, compile=False, options=options, resume=True, report=told.append)
    assert any("starting from the weights of the bundled cifar10-features" in line for line in told)
    kept = load_file(tmp_path / "model.safetensors")
    assert torch.allclose(kept["head.weight"].float(), shipped.head.weight, atol=1e-2)
    with pytest.raises(UsageError, match="nothing to resume"):
        train("cifar10-features", data, tmp_path, compile=False, options=options, resume=True)


def test_autoencoder_then_dit_train_into_a_pipeline_that_generates(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = train_dit.build
    monkeypatch.setattr(train_dit, "build", lambda: small(width=64, depth=1))
    options = {"steps": 2, "batch_size": 10}
    result = train("cifar10-autoencoder", data, tmp_path / "ae", compile=False, options=options)
    assert result.scores["psnr"] > 0
    train("cifar10-dit", data, tmp_path / "dit", autoencoder=tmp_path / "ae" / "vae", compile=False, options=options)
    assert (tmp_path / "dit" / "grid.png").stat().st_size > 1000
    pipeline = load(str(tmp_path / "dit" / "pipeline"))
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(class_labels=[1], guidance_scale=2.0, num_inference_steps=2, output_type="pt").images
    assert images.shape == (1, 3, 32, 32)


def test_what_a_recipe_does_not_take_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="cifar10-dot"):
        train("cifar10-dot", data, tmp_path)
    with pytest.raises(UsageError, match="belongs to cifar10-dit"):
        train("cifar10-features", data, tmp_path, autoencoder=tmp_path)
    with pytest.raises(UsageError, match=r"no config\.json"):
        train("cifar10-dit", data, tmp_path, autoencoder=tmp_path)


def test_the_round_trip_keeps_pixels_on_the_eight_bit_grid() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(train_autoencoder.to_pixels(train_autoencoder.to_network(pixels)), pixels)
