"""Settings for all tests of guidance: quiet, one thread."""

from __future__ import annotations

from collections.abc import Iterator

import diffusers
import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _quiet() -> Iterator[None]:
    before, threads = diffusers.utils.logging.get_verbosity(), torch.get_num_threads()
    diffusers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)
    yield
    diffusers.utils.logging.set_verbosity(before)
    torch.set_num_threads(threads)
