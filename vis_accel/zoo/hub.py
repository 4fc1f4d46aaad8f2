"""The Hugging Face hub, and timm's models from it: what is fetched is chosen here, file by file, and read as data first."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vis_accel.errors import ModelError, UnknownNameError, UsageError, shown
from vis_accel.zoo import check
from vis_accel.zoo import folder as folders

__all__ = ["fetch", "timm_model"]

_PLAIN = ("*.json", "*.txt", "*.model")  # configurations and vocabularies
_STEMS = ("diffusion_pytorch_model", "model")  # variants such as model.fp16.safetensors are left where they are
_SAFE_NAMES = {"pytorch_model.bin": "model.safetensors", "open_clip_pytorch_model.bin": "open_clip_model.safetensors"}


def fetch(repository: str, *, revision: str | None, allow_pickle: bool) -> Path:
    """Brings a diffusers repository into the hub's cache and returns its folder.

    `model_index.json` comes first and is read before anything else is fetched; then only configurations, vocabularies and weights of the
    components it lists, of that same commit. With HF_HUB_OFFLINE set, only the cache is asked.

    Raises:
        ModelError: no such repository or revision, no access, no network, or an index that is refused.
    """
    import huggingface_hub as hub

    common: dict[str, Any] = {"local_files_only": _offline()}
    with _explained(repository, revision):
        index = Path(hub.hf_hub_download(repository, folders.INDEX, revision=revision, **common))
    layout = folders.read_index(index)
    commit = index.parent.name if re.fullmatch(r"[0-9a-f]{40}", index.parent.name) else revision
    names = [f"{stem}{end}" for stem in _STEMS for end in (".safetensors", "-*-of-*.safetensors")]
    names += [f"*{suffix}" for suffix in folders.PICKLES] if allow_pickle else []
    patterns = [f"{part.name}/{name}" for part in layout.components for name in (*_PLAIN, *names)]
    with _explained(repository, revision):
        return Path(hub.snapshot_download(repository, revision=commit, allow_patterns=[folders.INDEX, *patterns], **common))


def timm_model(name: str, *, random_weights: bool, revision: str | None, allow_pickle: bool) -> nn.Module:
    """A timm network by its name, with or without tag.

    Args:
        name: as `timm.list_models` has it.
        random_weights: no weights are fetched; the network is initialised from seed 0, and the global generators are left as they were.
        revision: of the weights' repository on the hub.
        allow_pickle: whether weights that are there only as pickles will do.

    Raises:
        UnknownNameError: timm has no such network.
        ModelError: its weights cannot be had, or are not whole.
    """
    import timm

    from vis_accel.vit_models.families import register

    register(name)  # the architectures that timm lacks
    architecture = name.partition(".")[0]
    if ":" in name or "/" in name or not timm.is_model(architecture):
        raise UnknownNameError.of("model of timm", name, timm.list_models())
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError:
        raise UnknownNameError.of("timm model", name, timm.list_models(f"{architecture}.*", pretrained=True)) from None
    if random_weights and revision is not None:
        raise UsageError("revision chooses weights, and random_weights asks for none.", hint="leave out one of them")
    if random_weights:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return _created(timm, name)
    file = _timm_file(name, config, revision, allow_pickle)
    if file is None:
        place = {"hf_hub_id": f"{config.hf_hub_id}@{revision}"} if revision and config.hf_hub_id else None
        network = _created(timm, name, pretrained=True, pretrained_cfg_overlay=place)
        check.finite(network, Path(f"timm/{name}"), {})
        return network
    headers = check.read_headers([file])
    network = _created(timm, name, pretrained=True, pretrained_cfg_overlay={"file": str(file), "custom_load": False})
    check.finite(network, file, headers)
    return network


def _timm_file(name: str, config: Any, revision: str | None, allow_pickle: bool) -> Path | None:
    """The safetensors file of a network's weights, in the hub's cache; None if there is none and pickles are allowed."""
    import huggingface_hub as hub
    from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError

    repository = getattr(config, "hf_hub_id", None)
    hint = "for rows of speed, which need no weights: random_weights=True, on the command line --random-weights"
    if not repository and not (allow_pickle and getattr(config, "url", None)):
        raise ModelError(f"There are no weights for timm/{name}, or none but pickles.", hint=hint)
    if not repository:
        return None
    asked = getattr(config, "hf_hub_filename", None) or "pytorch_model.bin"
    wanted = _SAFE_NAMES.get(asked, f"{asked.removesuffix('.bin')}.safetensors")
    try:
        with _explained(repository, revision, hint):
            return Path(hub.hf_hub_download(repository, wanted, revision=revision, local_files_only=_offline()))
    except ModelError as error:
        missing = isinstance(error.__cause__, RemoteEntryNotFoundError) and not isinstance(error.__cause__, LocalEntryNotFoundError)
        if missing and allow_pickle:
            return None
        if missing:
            message = f"{repository} has no {wanted}, so its weights are pickles at best."
            raise ModelError(message, hint=f"--allow-pickle; or, {hint}") from error
        raise


def _created(timm: Any, name: str, **options: Any) -> nn.Module:
    try:
        network: nn.Module = timm.create_model(name, **options)
    except Exception as error:  # timm raises what it likes; unknown tags and weights that do not fit among it
        raise ModelError(f"timm cannot build {name}: {type(error).__name__}: {shown(str(error), 300)}") from error
    return network


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE) or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


@contextmanager
def _explained(repository: str, revision: str | None, hint: str | None = None) -> Iterator[None]:
    """Turns what the hub's client raises into one sentence."""
    from huggingface_hub import errors

    at = f" at revision {revision}" if revision else ""
    try:
        yield
    except errors.GatedRepoError as error:
        terms = f"accept its terms at https://huggingface.co/{repository}, then: hf auth login"
        raise ModelError(f"{repository} is gated on the hub.", hint=terms) from error
    except errors.RepositoryNotFoundError as error:
        spelling = "check the spelling; for a private one: hf auth login"
        raise ModelError(f"The hub has no model {repository}, or not for you.", hint=spelling) from error
    except errors.RevisionNotFoundError as error:
        raise ModelError(f"{repository} has no revision {shown(revision)}.", hint="a branch, a tag, or a commit") from error
    except errors.RemoteEntryNotFoundError as error:
        wanted = "only repositories with model_index.json are loaded"
        raise ModelError(f"{repository}{at} is no diffusers pipeline: it lacks a file.", hint=wanted) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        why = "the hub is switched off (HF_HUB_OFFLINE)" if _offline() else "the hub cannot be reached"
        fetching = f"with a network: hf download {repository}; or give a folder"
        raise ModelError(f"{repository}{at} is not on this machine, and {why}.", hint=hint or fetching) from error
    except errors.HFValidationError as error:
        raise ModelError(f"{shown(repository)} is no name on the hub: {error}") from error
    except Exception as error:  # the client's own network errors come from whichever library it speaks through
        raise ModelError(f"Fetching {repository}{at} failed: {shown(str(error), 200)}", hint="try again later, or give a folder") from error
