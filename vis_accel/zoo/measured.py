"""What was measured once and ships with the models: real images and the baselines' images, as the bundled feature network sees them.

    cifar10-features/reference.safetensors   statistics of the 45,000 training images, and 10,000 of their features
    cifar10-features/held_out.safetensors    features of the 10,000 test images: their FID is the floor
    cifar10-dit/baselines.safetensors        features of the first n images of each stock baseline at the pinned setting

Features are kept in half precision: they have unit variance, so what is lost is a thousandth of what FIDs are printed to. Each file names
the network that made it by hash, and the baselines the weights they were generated with; a file that belongs to others is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vis_accel.errors import DataError
from vis_accel.eval.features import FeatureNet
from vis_accel.eval.reference import load_reference
from vis_accel.eval.yardstick import Yardstick
from vis_accel.files import write_atomic
from vis_accel.generation import Job
from vis_accel.zoo import bundled

__all__ = [
    "FEATURES",
    "Shipped",
    "feature_net",
    "image_folder_features",
    "load_features",
    "save_features",
    "shipped_baselines",
    "yardstick_for",
]

FEATURES = "cifar10-features"
_CLOSE, _CLOSE_WORST = 0.02, 0.2  # relative difference of features, typical and of the worst image: float32 elsewhere is far below both


def feature_net() -> FeatureNet:
    """The bundled feature network, as `eval` wants it."""
    from vis_accel.zoo.load import load

    net: Any = load(FEATURES)
    return FeatureNet(net, name=FEATURES, num_features=net.num_features, entry="forward_features", size=(32, 32))


def yardstick_for(name: str, reference: str | None) -> Yardstick | None:
    """What images of the model `name` are measured with: `reference`, or what ships with a bundled model; None if there is neither.

    Args:
        name: of the model.
        reference: a file that `vis-accel reference` wrote, or a folder of images.
    """
    if reference is None and name not in bundled.MODELS:
        return None
    net = feature_net()
    if reference is None:
        folder = bundled.folder(FEATURES)
        held_out, _ = load_features(folder / "held_out.safetensors", net)
        real = load_reference(folder / "reference.safetensors", net)
        return Yardstick(net, real, held_out["test"].float(), net.net.head)  # type: ignore[arg-type]
    path = Path(reference)
    if path.is_dir():
        from vis_accel.eval.reference import make_reference

        return Yardstick(net, make_reference(image_folder_features(path, net), net, images=path.name, split="all"))
    return Yardstick(net, load_reference(path, net))


def image_folder_features(folder: Path, net: FeatureNet, *, batch: int = 250) -> Tensor:
    """Features (n x d) of every image below `folder`, in the order of their paths.

    Raises:
        DataError: no images, too few of them for statistics, or one that does not open.
    """
    import numpy
    from PIL import Image, UnidentifiedImageError

    kinds = {".png", ".jpg", ".jpeg", ".webp"}
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in kinds)
    if not paths:
        raise DataError(f"{folder} holds no images.", hint=f"a folder with {', '.join(sorted(kinds))} files is wanted")
    features = []
    for start in range(0, len(paths), batch):
        tensors = []
        for path in paths[start : start + batch]:
            try:
                with Image.open(path, formats=("PNG", "JPEG", "WEBP")) as image:
                    array = numpy.array(image.convert("RGB"))
            except (OSError, UnidentifiedImageError) as error:
                raise DataError(f"{path} does not open as an image: {error}") from error
            tensors.append(torch.from_numpy(array).permute(2, 0, 1))
        features += _by_size(tensors, net)
    return torch.cat(features)


def _by_size(images: Sequence[Tensor], net: FeatureNet) -> list[Tensor]:
    """Features of images of any size, those of one size together, in the order given."""
    if len({image.shape for image in images}) == 1:
        return [net(torch.stack(list(images)))]
    return [net(image[None]) for image in images]


@dataclass(frozen=True, eq=False)
class Shipped:
    """Features of the baselines' images that come with a bundled model.

    Attributes:
        features: per baseline, n x d, image i from seed `job.seed + i`.
    """

    features: tuple[Tensor, ...]

    def __len__(self) -> int:
        return min(len(part) for part in self.features)

    def problem(self, made: Tensor) -> str | None:
        """What is wrong with them, judged by the features of the first images made here by the first baseline; None if nothing is."""
        shipped = self.features[0][: len(made)].float()
        apart = (made - shipped).norm(dim=1) / shipped.norm(dim=1)
        if bool(apart.median() > _CLOSE) or bool(apart.max() > _CLOSE_WORST):
            words = f"median {apart.median():.2g}, worst {apart.max():.2g} of a feature's length"
            return f"images made here differ from those they were made of ({words})"
        return None


def shipped_baselines(name: str, model_hash: str, net: FeatureNet, jobs: Mapping[str, Job]) -> Shipped | None:
    """The shipped features of the baselines of `name`, if there are any and they are of these very jobs.

    Args:
        name, model_hash: of the model.
        net: the feature network.
        jobs: what each baseline generates, by its label.
    """
    if name not in bundled.MODELS:
        return None
    path = bundled.folder(name) / "baselines.safetensors"
    if not path.exists():
        return None
    tensors, facts = load_features(path, net)
    if facts.get("model") != model_hash or facts.get("jobs") != json.loads(json.dumps({label: asdict(job) for label, job in jobs.items()})):
        return None
    return Shipped(tuple(tensors[label].float() for label in jobs))


def save_features(path: Path, features: Mapping[str, Tensor], net: FeatureNet, facts: Mapping[str, Any]) -> None:
    """Writes named sets of features (n x d) in half precision, with the network they come from and other facts."""
    from safetensors.torch import save

    metadata = {"net_sha256": net.sha256, "facts": json.dumps(dict(facts))}
    write_atomic(path, save({name: part.half().contiguous() for name, part in features.items()}, metadata))


def load_features(path: Path, net: FeatureNet) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what `save_features` wrote.

    Raises:
        DataError: no such file, a broken one, or one made by another network.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        facts: dict[str, Any] = json.loads(metadata["facts"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise DataError(f"{path} is not a file of features: {error}") from error
    if metadata.get("net_sha256") != net.sha256:
        raise DataError(f"{path} was made by another feature network than {net.name}.")
    if not all(part.isfinite().all() for part in tensors.values()):
        raise DataError(f"{path} holds features that are not finite.")
    return tensors, facts
