"""Hostile and broken folders: each is refused with a sentence of its own, and none runs a line of its code."""

from __future__ import annotations

import json
import os
import pickle
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vis_accel.errors import ModelError, VisAccelError
from vis_accel.zoo import bundled, load

WEIGHTS = "diffusion_pytorch_model.safetensors"
Break = Callable[[Path, Path], object]


class Payload:
    """Creates the canary when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.canary),)


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def index(model: Path, **changes: object) -> None:
    edit(model / "model_index.json", **changes)


def code(path: Path, canary: Path) -> None:
    path.write_text(f"import os\nos.mkdir({str(canary)!r})\nclass Evil: pass\n")


def tensors(path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    found = load_file(path)
    change(found)
    save_file(found, path, {"format": "pt"})


def custom_pipeline(model: Path, canary: Path) -> None:
    code(model / "pipeline.py", canary)
    index(model, _class_name=["pipeline", "Evil"])


def foreign_code(model: Path, canary: Path) -> None:
    code(model / "transformer" / "evil.py", canary)
    index(model, transformer=["evil", "Evil"])


def stray_code(model: Path, canary: Path) -> None:
    code(model / "vae" / "diffusers.py", canary)


def pickled(model: Path, canary: Path) -> None:
    (model / "vae" / WEIGHTS).unlink()
    (model / "vae" / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Payload(canary)))


def pickled_classifier(model: Path, canary: Path) -> None:
    for path in model.rglob("*.*"):
        path.unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(canary)))


def linked(model: Path, canary: Path) -> None:
    secret = canary.with_name("secret")
    secret.write_text("{}")
    (model / "vae" / "config.json").unlink()
    (model / "vae" / "config.json").symlink_to(secret)


def linked_folder(model: Path, canary: Path) -> None:
    outside = canary.with_name("outside")
    (model / "vae").rename(outside)
    (model / "vae").symlink_to(outside)


def fifo(model: Path, _: Path) -> None:
    (model / "vae" / "config.json").unlink()
    os.mkfifo(model / "vae" / "config.json")


def traversing_shards(model: Path, _: Path) -> None:
    (model / "vae" / WEIGHTS).rename(model.parent / "outside.safetensors")
    (model / "vae" / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": {"a": "../../outside.safetensors"}}))


def absolute_shards(model: Path, _: Path) -> None:
    (model / "vae" / WEIGHTS).unlink()
    (model / "vae" / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": {"a": "/etc/x.safetensors"}}))


def wide(channels: int) -> Break:
    return lambda model, _: edit(model / "vae" / "config.json", block_out_channels=[channels] * 3)


def missing_shard(model: Path, _: Path) -> None:
    (model / "vae" / WEIGHTS).unlink()
    (model / "vae" / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": {"a": "x.safetensors"}}))


def lying_shards(model: Path, _: Path) -> None:
    (model / "vae" / WEIGHTS).rename(model / "vae" / "x.safetensors")
    (model / "vae" / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": {"a": "x.safetensors"}}))


def nan(model: Path, _: Path) -> None:
    tensors(model / "transformer" / WEIGHTS, lambda found: found["proj_out_1.bias"].__setitem__(0, float("nan")))


def infinite(model: Path, _: Path) -> None:
    tensors(model / "transformer" / WEIGHTS, lambda found: found["proj_out_1.bias"].__setitem__(-1, float("inf")))


def truncated(model: Path, _: Path) -> None:
    path = model / "vae" / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])


def empty_file(model: Path, _: Path) -> None:
    (model / "vae" / WEIGHTS).write_bytes(b"")


def tensor(change: Callable[[dict[str, Tensor]], object]) -> Break:
    return lambda model, _: tensors(model / "transformer" / WEIGHTS, change)


def no_index(model: Path, _: Path) -> None:
    for path in model.rglob("*.*"):
        path.unlink()


def deep(model: Path, _: Path) -> None:
    (model / "vae" / "config.json").write_text('{"a":' * 20_000 + "1" + "}" * 20_000)


def a_bit_deep(model: Path, _: Path) -> None:
    (model / "vae" / "config.json").write_text('{"a":' * 60 + "1" + "}" * 60)


def endless(model: Path, _: Path) -> None:
    edit(model / "scheduler" / "scheduler_config.json", num_train_timesteps=10**12)


def remove(name: str) -> Break:
    def broken(model: Path, _: Path) -> None:
        (model / name).unlink()

    return broken


ATTACKS: dict[str, tuple[Break, str]] = {
    "custom pipeline": (custom_pipeline, r"model_index\.json: _class_name is .*a custom pipeline"),
    "foreign code": (foreign_code, r"transformer comes from 'evil'; only classes of diffusers, transformers and timm"),
    "stray code": (stray_code, r"vae/diffusers\.py is code"),
    "foreign library": (lambda model, _: index(model, vae=["os", "system"]), "vae comes from 'os'"),
    "foreign class": (lambda model, _: index(model, vae=["diffusers", "DiffusionPipeline"]), "no such thing as is wanted"),
    "no such class": (lambda model, _: index(model, vae=["diffusers", "EvilModel"]), "'EvilModel', which diffusers .* does not have"),
    "private class": (lambda model, _: index(model, vae=["diffusers", "__loader__"]), "no name of a class"),
    "auto class": (lambda model, _: index(model, vae=["transformers", "AutoModel"]), "'AutoModel' of transformers"),
    "timm class": (lambda model, _: index(model, vae=["timm", "create_model"]), "'create_model' of timm"),
    "not a pipeline": (lambda model, _: index(model, _class_name="AutoencoderKL"), "'AutoencoderKL' of diffusers, which is no such thing"),
    "fetches others": (lambda model, _: index(model, _class_name="KandinskyCombinedPipeline"), "fetches other models|not installed"),
    "custom_pipeline key": (lambda model, _: index(model, custom_pipeline="owner/evil"), "'custom_pipeline': it asks for code"),
    "auto_map": (lambda model, _: edit(model / "vae" / "config.json", auto_map={"AutoModel": "evil.Evil"}), "'auto_map': it asks for code"),
    "adapter": (lambda model, _: (model / "vae" / "adapter_config.json").write_text("{}"), "makes the loader fetch another model"),
    "component outside": (lambda model, _: index(model, **{"../vae": ["diffusers", "AutoencoderKL"]}), r"'\.\./vae' is no name of"),
    "component of three": (lambda model, _: index(model, vae=["diffusers", "AutoencoderKL", "x"]), r"a component is \[library, class\]"),
    "pickled weights": (pickled, r"only diffusion_pytorch_model\.bin: reading it can run [\s\S]*--allow-pickle"),
    "pickle without index": (pickled_classifier, r"no model_index\.json: it has pytorch_model\.bin"),
    "link that leaves": (linked, r"config\.json is a link to .*secret, outside of"),
    "folder that is a link": (linked_folder, "vae is a link to .*outside"),
    "fifo": (fifo, "neither a file nor a folder"),
    "shards elsewhere": (traversing_shards, r"leads to '\.\./\.\./outside\.safetensors'"),
    "shards at the root": (absolute_shards, r"leads to '/etc/x\.safetensors'"),
    "shard missing": (missing_shard, r"x\.safetensors is missing"),
    "shards that lie": (lying_shards, "puts the tensor '.*' into .* but"),
    "wide": (wide(2**20), "does not belong to its weights"),
    "overflowing": (wide(2**62), "describes no network: RuntimeError"),
    "deep network": (lambda model, _: edit(model / "transformer" / "config.json", num_layers=10**9), "does not belong to its weights"),
    "large sample": (lambda model, _: edit(model / "transformer" / "config.json", sample_size=2**20), "does not belong to its weights"),
    "endless scheduler": (endless, "num_train_timesteps is 1000000000000"),
    "negative": (lambda model, _: edit(model / "transformer" / "config.json", num_attention_heads=-1), "describes no network"),
    "other type": (lambda model, _: edit(model / "transformer" / "config.json", num_attention_heads="many"), "describes no network"),
    "quantized": (lambda model, _: edit(model / "vae" / "config.json", quantization_config={"quant_method": "x"}), "quantized"),
    "NaN": (nan, r"transformer/.*'proj_out_1\.bias' holds NaN or infinity"),
    "infinity": (infinite, r"'proj_out_1\.bias' holds NaN or infinity"),
    "truncated": (truncated, "vae/.* is not a whole safetensors file"),
    "empty file": (empty_file, "vae/.* is not a whole safetensors file"),
    "tensor missing": (tensor(lambda found: found.pop("proj_out_2.bias")), r"The tensor 'proj_out_2\.bias' .* is missing in .*transformer"),
    "tensor too many": (tensor(lambda found: found.update(evil=torch.zeros(1))), "a tensor 'evil', which .* has no place for"),
    "tensor renamed": (tensor(lambda found: found.update(proj_out_3=found.pop("proj_out_2.bias"))), "is missing in .* It has 'proj_out_3'"),
    "tensor of integers": (tensor(lambda found: found.update({"proj_out_2.bias": found["proj_out_2.bias"].int()})), "has the dtype I32"),
    "tensor of another shape": (tensor(lambda found: found.update({"proj_out_2.bias": torch.zeros(3)})), r"has the shape \(3,\)"),
    "empty folder": (no_index, r"has no model_index\.json: it is no diffusers folder"),
    "not JSON": (lambda model, _: (model / "model_index.json").write_text("{'a': 1}"), r"model_index\.json is not JSON"),
    "not text": (lambda model, _: (model / "model_index.json").write_bytes(b"\xff\xfe\x00"), r"model_index\.json is not JSON"),
    "no object": (lambda model, _: (model / "model_index.json").write_text("[1]"), "must hold an object"),
    "no components": (lambda model, _: (model / "model_index.json").write_text('{"_class_name": "DiTPipeline"}'), "lists no components"),
    "deep JSON": (deep, "nests more than 50 deep"),
    "JSON a bit deep": (a_bit_deep, "nests more than 50 deep"),
    "no configuration": (remove("vae/config.json"), r"config\.json is not JSON|No such file"),
    "no weights": (remove(f"vae/{WEIGHTS}"), "has no weights"),
    "component less": (lambda model, _: index(model, vae=[None, None]), "diffusers cannot load"),
    "two sets": (lambda model, _: (model / "vae" / f"{WEIGHTS}.index.json").write_text("{}"), "has both"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_hostile_folder_is_refused(name: str, model: Path, tmp_path: Path) -> None:
    import diffusers  # noqa: F401 (importing it is not what is timed)

    canary = tmp_path / "canary"
    attack, said = ATTACKS[name]
    attack(model, canary)
    modules = set(sys.modules)
    start = time.process_time()  # not the clock: other programs run too
    with pytest.raises(VisAccelError, match=said) as caught:
        load(model)
    assert time.process_time() - start < 3  # refused at once: nothing is unpacked, nothing is run
    assert not canary.exists()
    assert not {found for found in set(sys.modules) - modules if "evil" in found or found == "pipeline"}
    assert str(tmp_path) in str(caught.value) or "not installed" in str(caught.value)


def test_absurd_sizes_cost_no_memory(model: Path) -> None:
    import resource

    edit(model / "vae" / "config.json", block_out_channels=[2**20] * 3)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelError):
        load(model)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # kibibytes


def test_pickled_weights_load_when_allowed_and_even_then_a_payload_does_not_run(model: Path, tmp_path: Path) -> None:
    path = model / "vae" / WEIGHTS
    state = load_file(path)
    path.unlink()
    torch.save(state, path.with_name("diffusion_pytorch_model.bin"))
    loaded = load(model, allow_pickle=True).vae.state_dict()
    assert all(torch.equal(loaded[name], tensor.float()) for name, tensor in state.items())
    path.with_name("diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Payload(tmp_path / "canary"), protocol=2))
    with pytest.raises(ModelError, match="diffusers cannot load"):
        load(model, allow_pickle=True)
    assert not (tmp_path / "canary").exists()


def test_a_tensor_missing_from_allowed_pickles_is_seen(model: Path) -> None:
    path = model / "vae" / WEIGHTS
    state = load_file(path)
    state.pop("encoder.conv_in.bias")
    path.unlink()
    torch.save(state, path.with_name("diffusion_pytorch_model.bin"))
    with pytest.raises(ModelError, match=r"'encoder\.conv_in\.bias' is missing"):
        load(model, allow_pickle=True)


def mutate(path: Path, chance: random.Random) -> str:
    """Breaks one tensor of a safetensors file; returns how."""
    found = load_file(path)
    name = chance.choice(sorted(found))
    how = chance.choice(("drop", "rename", "add", "reshape", "grow", "integer", "nan", "infinity", "truncate", "header"))
    value = found[name]
    data = path.read_bytes()
    if how in ("truncate", "header"):
        size = 8 + int.from_bytes(data[:8], "little")
        at = chance.randrange(size)
        flipped = data[:at] + bytes([data[at] ^ (1 << chance.randrange(8))]) + data[at + 1 :]
        path.write_bytes(data[: chance.randrange(len(data))] if how == "truncate" else flipped)
        return f"{how} {at}"
    if how in ("drop", "rename"):
        del found[name]
    changed = {
        "rename": {f"{name}_": value},
        "add": {f"{name}.more": torch.zeros(2)},
        "reshape": {name: value.reshape(1, *value.shape)},
        "grow": {name: torch.cat([value, value])},
        "integer": {name: value.to(chance.choice([torch.int8, torch.int64, torch.bool]))},
    }.get(how, {})
    if how in ("nan", "infinity"):
        value = value.clone()
        value.view(-1)[chance.randrange(value.numel())] = float(how)
        changed = {name: value}
    save_file({**found, **changed}, path, {"format": "pt"})
    return f"{how} {name}"


def refusal(model: Path) -> str | None:
    try:
        load(model)
    except ModelError as error:
        return str(error)
    return None


def test_a_hundred_mutations_are_refused_or_change_nothing(model: Path) -> None:
    chance = random.Random(3)
    good = {part: load_file(model / part / WEIGHTS) for part in ("transformer", "vae")}
    refused = 0
    for turn in range(100):
        part = chance.choice(sorted(good))
        path = model / part / WEIGHTS
        original = path.read_bytes()
        how = mutate(path, chance)
        message = refusal(model)
        if message is None:  # a bit of the file's own metadata, or of padding
            state = getattr(load(model), part).state_dict()
            assert state.keys() == good[part].keys(), (turn, how)
            assert all(torch.equal(state[name], tensor.float()) for name, tensor in good[part].items()), (turn, how)
        else:
            refused += 1
            assert f"/{part}" in message, (turn, how)
        path.write_bytes(original)
    assert refused >= 90
    load(model)


@pytest.mark.parametrize("name", ["cifar10-dit", "cifar10-features"])
def test_any_flipped_bit_of_a_bundled_model_is_seen(name: str, models: Path) -> None:
    chance = random.Random(4)
    files = sorted(path for path in (models / name).rglob("*") if path.is_file() and path.name != bundled.CARD)
    for _ in range(30):
        path = chance.choice(files)
        original = path.read_bytes()
        at = chance.randrange(len(original))
        path.write_bytes(original[:at] + bytes([original[at] ^ (1 << chance.randrange(8))]) + original[at + 1 :])
        with pytest.raises(ModelError, match=f"{path.name} was changed or damaged"):
            load(name)
        path.write_bytes(original)
    load(name)


def unsealed(folder: Path) -> None:
    edit(folder / bundled.CARD, files={})


def absent(folder: Path) -> None:
    (folder / "vae" / WEIGHTS).unlink()


def added(folder: Path) -> None:
    (folder / "vae" / "more.safetensors").write_bytes(b"")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (unsealed, "lists no files"),
        (absent, "is missing; card.json lists it"),
        (added, "is not in card.json"),
        (lambda folder: (folder / bundled.CARD).unlink(), "lacks the bundled model"),
        (lambda folder: (folder / bundled.CARD).write_text("{"), "Cannot read"),
        (lambda folder: (folder / bundled.CARD).write_text("[]"), "must hold an object"),
        (lambda folder: (folder / bundled.CARD).write_text(" " * 2**21), "no card has more"),
        (lambda folder: edit(folder / bundled.CARD, name="other"), "is the card of the pipeline 'other', not of"),
        (lambda folder: edit(folder / bundled.CARD, colour="red"), "unknown field 'colour'"),
    ],
)
def test_a_bundled_folder_that_is_not_as_sealed(change: Callable[[Path], object], said: str, models: Path) -> None:
    change(models / "cifar10-dit")
    with pytest.raises(ModelError, match=said):
        load("cifar10-dit")


def test_a_local_folder_that_was_sealed_is_held_to_it(models: Path) -> None:
    folder = models / "cifar10-dit"
    load(folder)
    tensors(folder / "transformer" / WEIGHTS, lambda found: found["proj_out_1.bias"].add_(1))
    with pytest.raises(ModelError, match="was changed or damaged"):
        load(folder)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"widths": [4, 8, 2**20]}, "does not belong to its weights"),
        ({"depth": 3}, "describes no network: TypeError"),
        ({"widths": [4, 8, 9], "num_features": 6}, "has the shape"),
    ],
)
def test_a_classifier_whose_card_describes_another(config: dict[str, object], said: str, models: Path) -> None:
    edit(models / "cifar10-features" / bundled.CARD, config=config)
    with pytest.raises(ModelError, match=said):
        load("cifar10-features")
