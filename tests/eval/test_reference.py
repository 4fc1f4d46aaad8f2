"""Reference statistics: what is read is what was written, by the network that wrote it, or nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from vis_accel.errors import DataError, UsageError
from vis_accel.eval.features import FeatureNet, extract
from vis_accel.eval.reference import Reference, load_reference, make_reference, require_comparable, save_reference


@pytest.fixture(scope="module")
def reference(net: FeatureNet, make_images: Callable[..., Tensor]) -> Reference:
    return make_reference(extract(net, make_images(500, 0).split(100)), net, images="gratings", split="train", keep=200)


def test_it_comes_back_as_it_was(tmp_path: Path, net: FeatureNet, reference: Reference) -> None:
    save_reference(tmp_path / "sub" / "ref.safetensors", reference)
    read = load_reference(tmp_path / "sub" / "ref.safetensors", net)
    assert torch.equal(read.statistics.sum, reference.statistics.sum)
    assert torch.equal(read.statistics.outer, reference.statistics.outer)
    assert read.statistics.n == 500
    assert read.subset.shape == (200, 16)
    torch.testing.assert_close(read.subset, reference.subset, rtol=1e-3, atol=1e-4)
    assert read.name == "FID[tiny] to gratings/train"
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["ref.safetensors"]


def test_the_subset_is_a_random_sample(reference: Reference) -> None:
    whole = reference.statistics.mean.float()
    assert (reference.subset[:100].mean(0) - whole).abs().max() < 0.1


def test_numbers_too_large_for_half_precision_stay_whole(tmp_path: Path, net: FeatureNet, reference: Reference) -> None:
    large = replace(reference, subset=reference.subset + 1e5)
    save_reference(tmp_path / "ref", large)
    assert torch.equal(load_reference(tmp_path / "ref", net).subset, large.subset)


def test_another_network_is_refused(tmp_path: Path, other_net: FeatureNet, reference: Reference) -> None:
    save_reference(tmp_path / "ref", reference)
    with pytest.raises(DataError, match="was made by the feature network tiny"):
        load_reference(tmp_path / "ref", other_net)
    with pytest.raises(UsageError, match="n x 16"):
        make_reference(torch.zeros(10, 4), other_net, images="a", split="b")


def test_broken_files_are_refused(tmp_path: Path, net: FeatureNet, reference: Reference) -> None:
    path = tmp_path / "ref"
    with pytest.raises(DataError, match="cannot be read"):
        load_reference(path, net)
    save_reference(path, reference)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="cannot be read"):
        load_reference(path, net)
    path.write_bytes(b"not at all")
    with pytest.raises(DataError, match="cannot be read"):
        load_reference(path, net)
    save_file({"sum": torch.zeros(16)}, path)
    with pytest.raises(DataError, match="not a file of reference statistics"):
        load_reference(path, net)
    broken = replace(reference, subset=reference.subset * float("nan"))
    save_reference(path, broken)
    with pytest.raises(DataError, match="not finite"):
        load_reference(path, net)


def test_only_equal_n_and_reference_compare(reference: Reference) -> None:
    require_comparable(reference.basis(1000), reference.basis(1000))
    with pytest.raises(UsageError, match="n: 1000 and 2000"):
        require_comparable(reference.basis(1000), reference.basis(2000))
    with pytest.raises(UsageError, match="split: train and test"):
        require_comparable(reference.basis(1000), replace(reference, split="test").basis(1000))
