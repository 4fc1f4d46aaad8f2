"""The real images a distance is measured to, as a file: statistics, a subset of features, and which network made them of which images.

    sum (d, float64), outer (d x d, float64)     of all n images                               for FID
    subset (m x d, float16)                      of m images, in random order                  for KID, precision and recall
    metadata                                     network and its hash, images, split, n

A file is only read together with the network it was made by: another hash is refused, since the numbers would look right and mean nothing.
The file is safetensors, written beside its place and moved there: it is complete or absent.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vis_accel.errors import DataError, UsageError
from vis_accel.eval.features import FeatureNet
from vis_accel.eval.fid import Statistics
from vis_accel.files import write_atomic

__all__ = ["Basis", "Reference", "load_reference", "make_reference", "require_comparable", "save_reference"]

FORMAT = "vis-accel reference 1"
_HALF_MAX = 6e4  # float16 ends at 65504


@dataclass(frozen=True, eq=False)
class Reference:
    """Real images as a feature network sees them.

    Attributes:
        statistics: of all n images.
        subset: features (m x d, float32) of m of them, in random order: any beginning of it is a random sample.
        net, net_sha256: name and hash of the feature network.
        images, split: what they are: "cifar10-jpeg", "train".
    """

    statistics: Statistics
    subset: Tensor
    net: str
    net_sha256: str
    images: str
    split: str

    @property
    def name(self) -> str:
        """What a score against it is called, apart from n: "FID[net] to images/split"."""
        return f"FID[{self.net}] to {self.images}/{self.split}"

    def basis(self, n: int) -> Basis:
        """What a score of n images against it may be compared with."""
        return Basis(self.net, self.net_sha256, self.images, self.split, self.statistics.n, n)


@dataclass(frozen=True)
class Basis:
    """Everything two scores must share to be comparable."""

    net: str
    net_sha256: str
    images: str
    split: str
    reference_n: int
    n: int


def require_comparable(a: Basis, b: Basis) -> None:
    """Returns if scores on these two can be compared.

    Raises:
        UsageError: they differ; says in what.
    """
    differing = [f"{name}: {ours} and {theirs}" for name, ours in vars(a).items() if ours != (theirs := getattr(b, name))]
    if differing:
        raise UsageError(f"These scores are not comparable ({'; '.join(differing)}).", hint="measure both at one n, against one reference")


def make_reference(features: Tensor, net: FeatureNet, *, images: str, split: str, keep: int = 10_000) -> Reference:
    """The reference of real features (n x d), made by `net`, with a random subset of at most `keep`.

    Raises:
        DataError: features that are not finite.
        UsageError: features of another dimension than `net` has.
    """
    if features.ndim != 2 or features.shape[1] != net.num_features:
        raise UsageError(f"{net.name} gives n x {net.num_features} features; these are {tuple(features.shape)}.")
    chosen = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))[:keep]
    return Reference(Statistics.of(features), features[chosen].float().cpu(), net.name, net.sha256, images, split)


def save_reference(path: Path, reference: Reference) -> None:
    """Writes a reference; the subset in half precision where its numbers fit.

    Raises:
        OutputError: the file could not be written; a file that was there before is untouched.
    """
    from safetensors.torch import save

    subset = reference.subset
    half = bool(subset.abs().max() < _HALF_MAX) if subset.numel() else True
    tensors = {
        "sum": reference.statistics.sum.contiguous(),
        "outer": reference.statistics.outer.contiguous(),
        "subset": (subset.half() if half else subset.float()).contiguous(),
    }
    metadata = {"format": FORMAT, "n": str(reference.statistics.n)}
    metadata |= {name: getattr(reference, name) for name in ("net", "net_sha256", "images", "split")}
    write_atomic(path, save(tensors, metadata))


def load_reference(path: Path, net: FeatureNet) -> Reference:
    """Reads the reference `net` made.

    Raises:
        DataError: no such file, not such a file, broken numbers, or made by another feature network.
    """
    tensors, metadata = _read(path)
    try:
        if metadata["format"] != FORMAT:
            raise DataError(f"{path} is in the format {metadata['format']!r}; expected {FORMAT!r}.")
        statistics = Statistics(int(metadata["n"]), tensors["sum"], tensors["outer"])
        fields = {name: metadata[name] for name in ("net", "net_sha256", "images", "split")}
        reference = Reference(statistics, tensors["subset"].float(), **fields)
    except (KeyError, ValueError) as error:
        raise DataError(f"{path} is not a file of reference statistics: {error} is missing or wrong.") from error
    if reference.net_sha256 != net.sha256:
        raise DataError(
            f"{path} was made by the feature network {reference.net} ({reference.net_sha256[:12]}), not by {net.name} ({net.sha256[:12]}).",
            hint="make the reference again with this network",
        )
    _check(path, reference)
    return reference


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise DataError(f"The reference statistics {path} cannot be read: {error}.") from error


def _check(path: Path, reference: Reference) -> None:
    statistics, dim = reference.statistics, reference.statistics.dim
    shapes = statistics.outer.shape == (dim, dim) and reference.subset.ndim == 2 and reference.subset.shape[1] == dim
    kinds = statistics.sum.dtype == statistics.outer.dtype == torch.float64
    if not (shapes and kinds and statistics.n >= 2 and len(reference.subset) <= statistics.n):
        raise DataError(f"{path} holds statistics that do not fit together.")
    if not all(tensor.isfinite().all() for tensor in (statistics.sum, statistics.outer, reference.subset)):
        raise DataError(f"{path} holds numbers that are not finite.")
