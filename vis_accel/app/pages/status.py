"""The one line that says how far a request is, and the numbers at its end."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

__all__ = ["PREPARING", "called", "numbers", "progress", "say", "seconds"]

PREPARING = "Preparing this recipe, once: it runs the model to see what goes through it"


def called(recipe: str) -> str:
    """A recipe in a sentence."""
    return "the model as it comes" if recipe == "none" else recipe


def progress(text: str, done: int, total: int) -> str:
    """A bar and a word."""
    bar = f'<progress value="{done}" max="{max(total, 1)}" aria-label="{escape(text)}"></progress>' if total else "<progress></progress>"
    return f'<div class="va-status" role="status">{bar}<span>{escape(text)}</span></div>'


def say(text: str) -> str:
    """A word without a bar."""
    return f'<div class="va-status" role="status"><span>{escape(text)}</span></div>'


def numbers(entries: Sequence[tuple[str, str]], main: int | None = None) -> str:
    """Large numbers with a word under each: (number, word); `main` is the one that matters most."""
    cells = "".join(
        f"<div{' class=va-main' if index == main else ''}><strong>{escape(value)}</strong><span>{escape(word)}</span></div>"
        for index, (value, word) in enumerate(entries)
    )
    many = " va-many" * (len(entries) > 4) + " va-odd" * (len(entries) == 5)  # in rows of three, which five fill if the main one is wide
    return f'<div class="va-numbers{many}">{cells}</div>'


def seconds(value: float) -> str:
    """0.012 -> "12 ms", 1.234 -> "1.23 s"."""
    return f"{value * 1000:.3g} ms" if value < 1 else f"{value:.3g} s"
