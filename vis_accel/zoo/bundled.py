"""The models that come with the package, and their cards.

    models/NAME/card.json     facts, and the sha256 of every other file of the folder
    models/NAME/...           a diffusers folder, or model.safetensors for a single network
    models/NAME/README.md     the card for people, which eval/make_bundle.py writes from this card and training.json

The hashes are checked at every load: safetensors has no checksum, so a flipped bit would load and only show as a worse score.
`seal` writes them, once, when weights are committed.
"""

from __future__ import annotations

import hashlib
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from vis_accel.errors import ModelError, UnknownNameError, shown
from vis_accel.files import write_atomic
from vis_accel.strict_json import dumps, loads, read_form

__all__ = ["CARD", "FOLDER", "MODELS", "Bundled", "ModelCard", "describe", "folder", "name_of", "read_card", "remember", "seal", "verify"]

Kind = Literal["pipeline", "classifier", "features"]

CARD = "card.json"
FOLDER = Path(__file__).parent / "models"
_WEIGHTS = (".safetensors",)
_CARD_CHARS = 2**20
_loaded: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()


class Bundled(NamedTuple):
    """An entry of the table of bundled models."""

    kind: Kind
    summary: str


MODELS: dict[str, Bundled] = {
    "cifar10-dit": Bundled("pipeline", "class-conditional 32 x 32 images: a stock DiTPipeline, 16 tokens"),
    "cifar10-unet": Bundled("pipeline", "unconditional 32 x 32 images in pixels: a stock DDPMPipeline"),
    "cifar10-vit": Bundled("classifier", "a timm VisionTransformer for 32 x 32 images: convolutional stem, 65 tokens"),
    "cifar10-features": Bundled("features", "the classifier of 32 x 32 images whose features the offline FID uses"),
}


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What is known of a bundled model; `card.json` holds exactly these fields.

    Attributes:
        name: the model's.
        kind: "pipeline"; "classifier" for a timm VisionTransformer (`build_vit`), "features" for a `ConvClassifier`, built with `config`.
        files: path within the folder (with slashes) -> sha256, of every file but the card.
        summary, license, trained_on: in words.
        config: arguments of the network's class.
        job: what its scores were measured with: `seed` (of image 0; image i has seed + i), `class_labels`, `guidance_scale`, `steps`.
        sampler: the pinned sampler, a recipe.
        classes: names, in the order of the labels.
        baseline_features: number of images whose features are shipped, per baseline.
        scores: name -> value, as measured when the weights were committed.
    """

    name: str
    kind: Kind
    files: dict[str, str] = field(default_factory=dict)
    summary: str = ""
    license: str = ""
    trained_on: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    job: dict[str, Any] = field(default_factory=dict)
    sampler: str = ""
    classes: tuple[str, ...] = ()
    baseline_features: int = 0
    scores: dict[str, float] = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        """One hash for the model: of its weight and configuration files' names and hashes; what was measured with it does not count."""
        parts = {path: digest for path, digest in self.files.items() if "/" in path or path in ("model.safetensors", "model_index.json")}
        return hashlib.sha256(dumps(parts or self.files, sort_keys=True).encode()).hexdigest()

    @property
    def weights(self) -> dict[str, str]:
        """Path -> sha256 of the weight files alone."""
        return {path: digest for path, digest in self.files.items() if path.endswith(_WEIGHTS)}


def remember(model: Any, name: str) -> None:
    """Notes that the object `model` was loaded as the bundled model `name`."""
    _loaded[model] = name


def name_of(model: Any) -> str | None:
    """Which bundled model this object is; None if it is none, or a copy."""
    return _loaded.get(model)


def describe(name: str) -> ModelCard:
    """The card of a bundled model; reads no weights.

    Raises:
        UnknownNameError: no such model.
        ModelError: a card that is missing, broken or of another model.
    """
    card = read_card(folder(name))
    if card.name != name or card.kind != MODELS[name].kind:
        wanted = f"the {MODELS[name].kind} {name}"
        raise ModelError(f"{FOLDER / name / CARD} is the card of the {card.kind} {shown(card.name)}, not of {wanted}.")
    return card


def folder(name: str) -> Path:
    """Where a bundled model lies.

    Raises:
        UnknownNameError: no such model.
        ModelError: this installation lacks it.
    """
    if name not in MODELS:
        raise UnknownNameError.of("bundled model", name, MODELS)
    place = FOLDER / name
    if not (place / CARD).is_file():
        raise ModelError(f"This installation lacks the bundled model {name}: there is no {place / CARD}.", hint="install vis-accel again")
    return place


def read_card(place: Path) -> ModelCard:
    """Reads `card.json` of a folder, strictly: an unknown or ill-typed field is refused."""
    card: ModelCard = read_form(ModelCard, _raw(place), str(place / CARD), ModelError)
    job = {key: tuple(value) if isinstance(value, list) else value for key, value in card.job.items()}
    card.job.update(job)
    return card


def verify(place: Path, files: dict[str, str]) -> None:
    """Compares every file of a folder with its hash.

    Raises:
        ModelError: a file that is missing, changed, or that the card does not list; no hashes at all.
    """
    if not files:
        hint = f"vis_accel.zoo.bundled.seal({str(place)!r})"
        raise ModelError(f"{place / CARD} lists no files, so nothing vouches for the weights.", hint=hint)
    found = _files(place)
    for name in sorted(found.keys() - files.keys()):
        raise ModelError(f"{place / name} is not in {CARD}: it came after the model was sealed.", hint="delete it, or install again")
    for name, digest in sorted(files.items()):
        if name not in found:
            raise ModelError(f"{place / name} is missing; {CARD} lists it.", hint="install vis-accel again")
        actual = _sha256(found[name])
        if actual != digest:
            raise ModelError(
                f"{place / name} was changed or damaged: its sha256 is {actual[:16]}..., {CARD} says {shown(digest[:16])}...",
                hint="install vis-accel again",
            )


def seal(place: str | Path) -> ModelCard:
    """Writes the sha256 of every file of a folder into its `card.json`, which must be there, and returns the card.

    Hidden files do not count. Raises ModelError for a card that is missing or broken, OutputError if it cannot be written.
    """
    place = Path(place)
    form = _raw(place)
    form["files"] = {name: _sha256(path) for name, path in sorted(_files(place).items())}
    card: ModelCard = read_form(ModelCard, form, str(place / CARD), ModelError)
    write_atomic(place / CARD, dumps(form, indent=2) + "\n")
    return card


def _raw(place: Path) -> dict[str, Any]:
    path = place / CARD
    try:
        if path.stat().st_size > _CARD_CHARS:
            raise ModelError(f"{path} has {path.stat().st_size:,} bytes; no card has more than {_CARD_CHARS:,}.")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"Cannot read {path}: {error}") from error
    form = loads(text, str(path), ModelError)
    if not isinstance(form, dict):
        raise ModelError(f"{path} must hold an object; got {shown(form)}.")
    return form


def _files(place: Path) -> dict[str, Path]:
    """Every visible file but the card."""
    paths = {path.relative_to(place).as_posix(): path for path in place.rglob("*") if path.is_file()}
    return {name: path for name, path in paths.items() if name != CARD and not any(part.startswith(".") for part in name.split("/"))}


def _sha256(path: Path) -> str:
    state = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            state.update(block)
    return state.hexdigest()
