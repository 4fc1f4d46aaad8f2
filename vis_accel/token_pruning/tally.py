"""What images of different needs were given, counted over the runs of a handle: tokens in each block, shares of what was used."""

from __future__ import annotations

import threading
from typing import Any

__all__ = ["Tally"]


class Tally:
    """Means by name, over all images that ran, in all threads. A copy of the model counts for itself, from 0."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, int]] = {}
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> Tally:
        return Tally()

    def add(self, name: str, total: float, images: int) -> None:
        """`images` images had `total` of it together."""
        with self._lock:
            before, count = self._sums.get(name, (0.0, 0))
            self._sums[name] = (before + total, count + images)

    def take(self) -> dict[str, str]:
        """Name -> "48.2 in the mean over 100 images", and starts anew."""
        with self._lock:
            found, self._sums = self._sums, {}
        return {name: f"{total / count:.3g} in the mean over {count} images" for name, (total, count) in found.items() if count}
