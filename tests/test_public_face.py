"""What `import vis_accel` offers, and what it does not load."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import pytest

import vis_accel
from vis_accel import errors

HEAVY = ("torch", "diffusers", "timm", "torchmetrics", "gradio", "matplotlib", "numpy", "accelerate")
VERBS = {"Card", "Recipe", "accelerate", "bench", "load"}


def test_all_is_sorted_and_is_the_five_names_and_the_errors() -> None:
    tree = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, errors.VisAccelError)}
    assert set(vis_accel.__all__) == tree | VERBS
    assert vis_accel.__all__ == sorted(vis_accel.__all__)


@pytest.mark.parametrize("name", vis_accel.__all__)
def test_every_name_can_be_imported(name: str) -> None:
    value = getattr(vis_accel, name)
    assert callable(value)
    assert value.__name__ == name
    assert value.__doc__
    assert name in dir(vis_accel)


def test_the_version_is_that_of_the_package() -> None:
    assert vis_accel.__version__ == version("vis-accel")


def test_other_names_are_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'acelerate'"):
        vis_accel.acelerate  # noqa: B018


@pytest.mark.parametrize(
    "code",
    [
        "import vis_accel",
        "import vis_accel; vis_accel.Recipe; vis_accel.Card; vis_accel.UsageError; vis_accel.__version__; dir(vis_accel)",
        "import vis_accel.registry as r; r.entries()",
        "import vis_accel.journal, vis_accel.machine, vis_accel.handle, vis_accel.files, vis_accel.card_markdown",
    ],
)
def test_importing_loads_nothing_heavy(code: str) -> None:
    check = f"{code}\nimport sys\nprint([name for name in {HEAVY!r} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True).stdout.strip() == "[]"
