"""The scanner of recipe texts: characters -> (name, options, position), knowing no method. The grammar is at the top of recipe.py.

It reads each character once and never looks back, so it is linear; texts over `MAX_CHARS` are refused unread and values nest at most
`MAX_DEPTH` deep, so neither a long nor a deep text costs anything.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass

from vis_accel.errors import RecipeError, VisAccelError

MAX_CHARS = 100_000  # a schedule of a thousand explicit sigmas has about 20,000
MAX_DEPTH = 4

_BLANK = re.compile(r"[ \t\r\n]*")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")  # wider than the grammar, so that DPM is "no such method", not a syntax error
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_WORD = re.compile(r"[+-]?[A-Za-z_][A-Za-z0-9_]*")
_NUMBER = re.compile(r"[+-]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)(?:[eE][+-]?[0-9]+)?")
_ESCAPE = r"\\(?:[\\'\"abfnrtv]|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8})"
_STRING = re.compile(rf"'(?:[^'\\\r\n\0]|{_ESCAPE})*'|\"(?:[^\"\\\r\n\0]|{_ESCAPE})*\"")
_WORDS = {"True": True, "False": False, "None": None}


@dataclass(frozen=True)
class Call:
    """One method as written: its name, its options, and where in which text it stands."""

    name: str
    options: dict[str, object]
    text: str
    position: int

    def locate(self, error: VisAccelError) -> None:
        """Appends the place of this method to the message of `error`."""
        error.message = f"{error.message}\nat character {self.position + 1} of the recipe:\n{_excerpt(self.text, self.position)}"


def calls(text: str) -> list[Call]:
    """The methods of a recipe text, in the order written; `none` gives an empty list.

    Raises:
        RecipeError: if the text breaks the grammar; its message points at the character.
    """
    if not isinstance(text, str):
        raise RecipeError(f"A recipe is a text; got {type(text).__name__}.")
    if len(text) > MAX_CHARS:
        raise RecipeError(f"The recipe has {len(text):,} characters; at most {MAX_CHARS:,} are read.")
    return _Scanner(text).recipe()


class _Scanner:
    """A position in a text, and one method per rule of the grammar."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def recipe(self) -> list[Call]:
        self._skip()
        if not self.text[self.at :]:
            raise self._error("it is empty", hint="for no method at all write none")
        found = [self._call()]
        while self.at < len(self.text):
            if not self._take("+"):
                raise self._error("expected + and another method, or the end")
            found.append(self._call())
        if len(found) == 1 and found[0].name == "none" and not found[0].options:
            return []
        return found

    def _call(self) -> Call:
        start = self.at
        name = self._match(_NAME) or ""
        if not name:
            raise self._error("expected the name of a method")
        if name == "dpm" and self.text.startswith("++", self.at):  # the only name with a + in it, see registry.ALIASES
            self.at += 2
            name = "dpm++"
        self._skip()
        options: dict[str, object] = {}
        if self._take("("):
            while not self._take(")"):
                self._option(options)
                if not self._take(",") and self.text[self.at : self.at + 1] != ")":
                    raise self._error("expected , or )")
        return Call(name, options, self.text, start)

    def _option(self, options: dict[str, object]) -> None:
        start = self.at
        key = self._match(_KEY) or ""
        if not key:
            raise self._error("expected an option, as in steps=12, or )")
        if key in options:
            self.at = start
            raise self._error(f"the option {key[:40]} is given twice")
        self._skip()
        if not self._take("="):
            raise self._error(f"expected = after {key[:40]}")
        options[key] = self._value(MAX_DEPTH)

    def _value(self, depth: int) -> object:
        for opening, closing in ("()", "[]"):
            if self._take(opening):
                return self._values(closing, depth - 1)
        start = self.at
        for pattern in (_STRING, _NUMBER):
            token = self._match(pattern)
            if token is not None:
                return self._literal(token, start)
        word = self._match(_WORD)
        if word in _WORDS:
            self._skip()
            return _WORDS[word]
        self.at = start
        raise self._error(*_why_no_value(word, self.text[start : start + 1]))

    def _values(self, closing: str, depth: int) -> object:
        if depth < 0:
            raise self._error(f"values nest at most {MAX_DEPTH} deep")
        found: list[object] = []
        comma = True
        while not self._take(closing):
            if not comma:
                raise self._error(f"expected , or {closing}")
            found.append(self._value(depth))
            comma = self._take(",")
        # As in Python, (1) is the number and (1,) the tuple.
        return found[0] if closing == ")" and len(found) == 1 and not comma else tuple(found)

    def _literal(self, token: str, start: int) -> object:
        self.at = start
        if token[0] not in "'\"" and len(token) > 40:
            raise self._error("a number has at most 40 characters")
        try:
            value: object = ast.literal_eval(token)
            str(value).encode()
        except (SyntaxError, ValueError) as error:  # 007, 1__0, \U00110000, a lone surrogate
            raise self._error("not a value that Python would read") from error
        if value in (float("inf"), float("-inf")):
            raise self._error("the number is too large for a float")
        self.at += len(token)
        self._skip()
        return value

    def _match(self, pattern: re.Pattern[str]) -> str | None:
        found = pattern.match(self.text, self.at)
        if found:
            self.at = found.end()
        return found.group() if found else None

    def _take(self, mark: str) -> bool:
        """Whether the text goes on with `mark`; if so steps over it and the blanks behind it."""
        if not self.text.startswith(mark, self.at):
            return False
        self.at += len(mark)
        self._skip()
        return True

    def _skip(self) -> None:
        self._match(_BLANK)

    def _error(self, reason: str, hint: str | None = None) -> RecipeError:
        return RecipeError(f"Cannot read the recipe at character {self.at + 1}: {reason}.\n{_excerpt(self.text, self.at)}", hint=hint)


def _why_no_value(word: str | None, character: str) -> tuple[str, str | None]:
    """The reason and the hint for something that is no value, given the word or character that stands there."""
    if word and word.lower().lstrip("+-") in ("inf", "infinity", "nan"):
        return f"{word} is no value an option can have: numbers are finite", None
    if word:
        return "a value is a number, a text in quotes, True, False, None or a tuple of them", f"for a text write '{word[:40]}'"
    if character in ("'", '"'):
        return "the text has no closing quote on its line, or a backslash that Python does not know", None
    return "expected a value", None


def _excerpt(text: str, position: int) -> str:
    """The text around `position` on one line, and a caret under the character."""
    start = max(0, position - 40)
    line = "".join(character if character.isprintable() else "?" for character in text[start : position + 30])
    return f"  {line}\n  {' ' * (position - start)}^"
