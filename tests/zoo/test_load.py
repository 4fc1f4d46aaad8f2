"""What loads: every way in, whole, in the dtype asked for, offline, and without unpickling anything."""

from __future__ import annotations

import json
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vis_accel.errors import ModelError, UnknownNameError, UsageError
from vis_accel.zoo import MODELS, bundled, describe, load


def on_disk(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def same(network: torch.nn.Module, folder: Path) -> bool:
    state, stored = network.state_dict(), on_disk(folder)
    return state.keys() == stored.keys() and all(torch.equal(state[name], stored[name].to(state[name].dtype)) for name in state)


def bomb(*_: Any, **__: Any) -> NoReturn:
    raise AssertionError("this must never be called")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, bomb)
    monkeypatch.setattr(socket, "getaddrinfo", bomb)
    monkeypatch.setattr(socket, "create_connection", bomb)


@pytest.fixture
def no_pickle(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm  # noqa: F401 (a module of it derives from Unpickler, which has to be a class then)

    for owner, name in ((pickle, "Unpickler"), (pickle, "load"), (pickle, "loads"), (torch, "load"), (torch.serialization, "load")):
        monkeypatch.setattr(owner, name, bomb)


@pytest.mark.usefixtures("no_network", "no_pickle")
def test_everything_good_loads_without_network_or_pickle(model: Path, models: Path) -> None:
    assert same(load(model).transformer, model / "transformer")
    assert type(load("cifar10-dit")).__name__ == "DiTPipeline"
    assert load("cifar10-features")(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    assert load(models / "cifar10-vit")(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    assert load("timm/test_vit", random_weights=True)(torch.rand(1, 3, 160, 160)).shape[0] == 1


def test_the_bundled_pipeline_is_whole_float32_and_callable(models: Path) -> None:
    pipeline = load("cifar10-dit")
    for part in ("transformer", "vae"):
        network = getattr(pipeline, part)
        assert same(network, models / "cifar10-dit" / part)
        assert {p.dtype for p in network.parameters()} == {torch.float32}
        assert not network.training
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(class_labels=[1], num_inference_steps=2, guidance_scale=2.0, generator=torch.Generator().manual_seed(0)).images
    assert images[0].size == (32, 32)
    assert pipeline.labels == {"airplane": 0, "automobile": 1}


def test_dtype_is_as_asked(models: Path) -> None:
    for dtype in (torch.bfloat16, "bfloat16"):
        assert load("cifar10-dit", dtype=dtype).transformer.dtype == torch.bfloat16
        assert next(load("cifar10-features", dtype=dtype).parameters()).dtype == torch.bfloat16


def test_the_bundled_classifier_is_the_saved_one(models: Path) -> None:
    network = load("cifar10-features")
    assert same(network, models / "cifar10-features")
    assert not network.training
    assert all(p.dtype == torch.float32 and p.requires_grad for p in network.parameters())
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    path = models / "cifar10-features" / "model.safetensors"
    with path.open("r+b") as file:  # the network must not be tied to the file
        file.seek(-64, 2)
        file.write(bytes(64))
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_a_sealed_transformer_is_a_stock_timm_model_that_says_how_to_normalise(models: Path) -> None:
    from timm.data import resolve_model_data_config
    from timm.models.vision_transformer import VisionTransformer

    network = load(models / "cifar10-vit")
    assert type(network) is VisionTransformer
    assert same(network, models / "cifar10-vit")
    assert network.patch_embed.num_patches == 64
    assert network.num_prefix_tokens == 1
    found = resolve_model_data_config(network)
    assert (found["input_size"], found["mean"]) == ((3, 32, 32), (0.4914, 0.4822, 0.4465))


def test_a_sharded_folder_loads(make_pipeline: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_pipeline(tmp_path / "sharded", dtype=torch.float32, shard="20KB")
    assert len(list((folder / "transformer").glob("*.safetensors"))) > 1
    assert same(load(folder).transformer, folder / "transformer")


def test_attention_saved_under_its_old_names_loads(tmp_path: Path) -> None:
    from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    folder = tmp_path / "old"
    transformer = DiTTransformer2DModel(num_attention_heads=1, attention_head_dim=4, num_layers=1, sample_size=4, num_embeds_ada_norm=2)
    vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=2)
    DiTPipeline(transformer=transformer, vae=vae, scheduler=DDIMScheduler()).save_pretrained(folder)
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def renamed(name: str) -> str:
        for new, was in old.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{was}.")
        return name

    tensors = load_file(path)
    save_file({renamed(name): tensor.clone() for name, tensor in tensors.items()}, path, {"format": "pt"})
    loaded = load(folder).vae.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


def test_infinities_in_a_scheduler_are_fine(model: Path) -> None:
    path = model / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"lambda_min_clipped": float("-inf")}))
    load(model)


def test_links_inside_the_hubs_cache_are_followed(saved: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models--a--b"
    snapshot, blobs = repository / "snapshots" / ("0" * 40), repository / "blobs"
    blobs.mkdir(parents=True)
    for index, path in enumerate(p for p in saved.rglob("*") if p.is_file()):
        link = snapshot / path.relative_to(saved)
        link.parent.mkdir(parents=True, exist_ok=True)
        (blobs / str(index)).write_bytes(path.read_bytes())
        link.symlink_to(blobs / str(index))
    assert same(load(snapshot).transformer, saved / "transformer")


def test_the_card_says_what_is_pinned(models: Path) -> None:
    card = describe("cifar10-dit")
    assert card.job == {"seed": 0, "class_labels": (0, 1), "guidance_scale": 2.0, "steps": 4}
    assert set(card.weights) == {"transformer/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"}
    before = card.sha256
    (models / "cifar10-dit" / "baselines.safetensors").write_bytes(b"measured later")
    bundled.seal(models / "cifar10-dit")
    assert describe("cifar10-dit").sha256 == before  # what was measured with a model does not make it another
    assert "baselines.safetensors" in describe("cifar10-dit").files


def test_random_weights_are_the_same_each_time_and_move_no_generator() -> None:
    state = torch.random.get_rng_state()
    first, second = (load("timm/test_vit", random_weights=True).state_dict() for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_loading_moves_no_generator(models: Path) -> None:
    state = torch.random.get_rng_state()
    load("cifar10-dit")
    load("cifar10-features")
    assert torch.equal(torch.random.get_rng_state(), state)


def fetched(monkeypatch: pytest.MonkeyPatch, answer: Any) -> list[tuple[str, str]]:
    """Puts `answer`, a path or an exception, in the place of the hub's download; returns what is asked."""
    import huggingface_hub

    asked: list[tuple[str, str]] = []

    def download(repository: str, filename: str, **_: Any) -> str:
        asked.append((repository, filename))
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return asked


@pytest.mark.usefixtures("no_network", "no_pickle")
def test_timm_weights_come_from_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    source = timm.create_model("test_vit.r160_in1k")
    save_file(source.state_dict(), tmp_path / "model.safetensors", {"format": "pt"})
    asked = fetched(monkeypatch, tmp_path / "model.safetensors")
    loaded = load("timm/test_vit.r160_in1k")
    assert asked == [("timm/test_vit.r160_in1k", "model.safetensors")]
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in source.state_dict().items())
    assert not loaded.training


def test_timm_weights_that_are_not_finite_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    state = timm.create_model("test_vit.r160_in1k").state_dict()
    state["norm.weight"][0] = float("nan")
    save_file(state, tmp_path / "model.safetensors")
    fetched(monkeypatch, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"'norm\.weight' holds NaN"):
        load("timm/test_vit.r160_in1k")


def test_a_hub_repository_is_fetched_by_its_list_at_one_commit(saved: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import shutil

    import huggingface_hub

    snapshot = Path(shutil.copytree(saved, tmp_path / "snapshots" / ("a" * 40)))
    fetched(monkeypatch, snapshot / "model_index.json")
    asked: dict[str, Any] = {}

    def download(repository: str, **options: Any) -> str:
        asked.update(options, repository=repository)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert same(load("owner/name", revision="main").vae, saved / "vae")
    assert asked["revision"] == "a" * 40
    assert asked["local_files_only"] is True
    assert "vae/diffusion_pytorch_model.safetensors" in asked["allow_patterns"]
    assert not any(pattern.endswith((".py", ".bin", "*")) for pattern in asked["allow_patterns"])


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(("name", "said"), [("owner/name", "HF_HUB_OFFLINE"), ("timm/test_vit.r160_in1k", "--random-weights")])
def test_offline_is_said(name: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=r"not on this machine, and the hub is switched off") as caught:
        load(name)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("cifar10-dti", UnknownNameError, "did you mean cifar10-dit"),
        ("nothing", UnknownNameError, "bundled: cifar10-dit"),
        ("", UnknownNameError, "bundled"),
        ("\0", UnknownNameError, "bundled"),
        ("x" * 10_000, UnknownNameError, "bundled"),
        ("./nowhere", ModelError, "There is no folder"),
        ("timm/vit_tini_patch16_224", UnknownNameError, "vit_tiny_patch16_224"),
        ("timm/test_vit.r160_in2k", UnknownNameError, "test_vit.r160_in1k"),
        ("timm/hf-hub:someone/model", UnknownNameError, "no model of timm"),
        ("timm/local-dir:/tmp", UnknownNameError, "no model of timm"),
    ],
)
def test_a_name_nobody_offers(name: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        load(name)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("cifar10-dit", {"dtype": "int8"}, "no dtype 'int8'"),
        ("cifar10-dit", {"dtype": torch.int64}, "no dtype"),
        ("cifar10-dit", {"device": "abacus"}, "abacus"),
        ("cifar10-dit", {"device": "meta"}, "holds no data"),
        ("cifar10-dit", {"revision": "main"}, "--revision"),
        ("cifar10-dit", {"random_weights": True}, "--random-weights"),
        ("timm/test_vit", {"random_weights": True, "revision": "main"}, "leave out one"),
    ],
)
def test_an_argument_that_does_not_fit(name: str, options: dict[str, Any], said: str, models: Path) -> None:
    with pytest.raises(UsageError, match=said):
        load(name, **options)


def test_importing_the_face_loads_nothing_heavy_and_load_is_a_function() -> None:
    code = (
        "import sys, vis_accel.zoo.load, vis_accel.zoo as z; from vis_accel.zoo import load; import vis_accel\n"
        "assert callable(z.load) and callable(load)\n"
        "assert vis_accel.load is load\n"
        "assert not {'torch', 'diffusers', 'timm', 'transformers', 'huggingface_hub', 'accelerate'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_table_names_what_there_is() -> None:
    assert set(MODELS) == {path.parent.name for path in bundled.FOLDER.glob("*/card.json")}
