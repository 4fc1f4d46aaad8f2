"""A recipe: a set of methods in canonical order, with a text form, a JSON form, and its conflicts found before anything runs.

    recipe := method (" + " method)* | "none"
    method := name [ "(" key "=" value ("," key "=" value)* ")" ]
    name   := [a-z][a-z0-9-]*                            "dpm++" is read as dpmpp
    value  := int | float | str | True | False | None | "(" values ")" | "[" values "]"        as Python writes them

Both forms round-trip: `Recipe.parse(str(recipe)) == recipe == Recipe.from_json(recipe.to_json())`. Texts come from command lines, files
and strangers, so the reader is a scanner of its own: linear in the length, bounded in length and depth, and every refusal is a UsageError
that points at the character. Nothing is evaluated but single number and string tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar

from vis_accel import registry, strict_json
from vis_accel.errors import ConflictError, RecipeError, UsageError, closest, shown
from vis_accel.method import FAMILIES, Exactness, Method
from vis_accel.recipe_text import calls

NONE = "none"  # the text of the recipe without methods


@dataclass(frozen=True, init=False, repr=False)
class Recipe:
    """A set of methods in canonical order: by family, what prepares others first, then by name. Immutable, hashable; `a + b == b + a`.

    Args:
        methods: in any order.

    Raises:
        ConflictError: if a method occurs twice, or two of them cannot live together.
    """

    empty: ClassVar[Recipe]
    methods: tuple[Method, ...]

    def __init__(self, methods: Iterable[Method] = ()) -> None:
        ordered = tuple(sorted(methods, key=lambda method: (FAMILIES.index(method.family), not method.prepares, method.name)))
        for one, other in combinations(ordered, 2):
            _check_pair(one, other)
        object.__setattr__(self, "methods", ordered)

    @classmethod
    def parse(cls, text: str) -> Recipe:
        """Reads the text form; surplus blanks and line breaks are allowed.

        Raises:
            RecipeError: if the text breaks the grammar; the message points at the character.
            UsageError: for an unknown method or option, a value an option refuses, or a conflict.
        """
        methods: list[Method] = []
        for call in calls(text):
            try:
                methods.append(registry.load(call.name).from_options(call.options))
                cls(methods)  # here, so that the message can point at the method that brought the conflict
            except UsageError as error:
                call.locate(error)
                raise
        return cls(methods)

    @classmethod
    def of(cls, given: Recipe | Method | str | Iterable[Method]) -> Recipe:
        """The recipe meant by what users write where a recipe is wanted: a recipe, its text, one method, or several."""
        if isinstance(given, Recipe):
            return given
        if isinstance(given, str):
            return cls.parse(given)
        return cls([given] if isinstance(given, Method) else given)

    def to_dict(self) -> dict[str, object]:
        """The JSON form as plain objects: `{"methods": [{"name": "dpm", "options": {"steps": 12}}]}`."""
        return {"methods": [{"name": method.name, "options": method.options()} for method in self.methods]}

    @classmethod
    def from_dict(cls, form: object) -> Recipe:
        """Reads what `to_dict` gives, strictly.

        Raises:
            RecipeError: if the form is another.
            UsageError: for an unknown method or option, a value an option refuses, or a conflict.
        """
        methods = _only(form, {"methods"}, "a recipe")["methods"]
        if not isinstance(methods, (list, tuple)):
            raise RecipeError(f"methods must be a list; got {shown(methods)}.")
        return cls([_method(index, row) for index, row in enumerate(methods)])

    def to_json(self) -> str:
        """The JSON form as text, on one line."""
        return strict_json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """Reads what `to_json` gives; raises as `from_dict` does."""
        return cls.from_dict(strict_json.loads(text, "the recipe's JSON", RecipeError))

    @property
    def exactness(self) -> Exactness:
        """ "approximate" if any method is, else "equivalent"."""
        return "approximate" if any(method.exactness == "approximate" for method in self.methods) else "equivalent"

    @property
    def float_twin(self) -> Recipe:
        """The recipe without what hides its work from a counter of multiplications: integer kernels, compiled graphs."""
        return Recipe(method for method in self.methods if method.family not in ("precision", "compile"))

    @property
    def simulated(self) -> bool:
        """Whether it rounds in float arithmetic what an integer kernel would do: its quality is real, its speed means nothing."""
        return any(getattr(method, "simulated", False) for method in self.methods)

    @property
    def compiles(self) -> bool:
        """Whether every new shape of the input costs a compilation."""
        return any(method.family == "compile" for method in self.methods)

    def __add__(self, other: Recipe | Method) -> Recipe:
        return Recipe((*self.methods, *Recipe.of(other).methods)) if isinstance(other, (Recipe, Method)) else NotImplemented

    __radd__ = __add__

    def __iter__(self) -> Iterator[Method]:
        return iter(self.methods)

    def __len__(self) -> int:
        return len(self.methods)

    def __str__(self) -> str:
        return " + ".join(map(str, self.methods)) or NONE

    def __repr__(self) -> str:
        return f"Recipe.parse({str(self)!r})"


Recipe.empty = Recipe()


def _check_pair(one: Method, other: Method) -> None:
    if one.name == other.name:
        both = f"as {_brief(one)} and as {_brief(other)}" if one != other else f"as {_brief(one)}"
        raise ConflictError(f"{one.name} is in the recipe twice, {both}.", hint="keep one of them")
    exclusive = {touch.what for touch in one.touches if touch.mode == "replaces"}
    shared = [touch.what for touch in other.touches if touch.mode == "replaces" and touch.what in exclusive]
    if shared:
        message = f"{one.name} and {other.name} both replace the {' and the '.join(shared)}."
        raise ConflictError(message, hint=f"keep {_brief(one)} or {_brief(other)}")
    for needy, breaker in ((one, other), (other, one)):
        lost = sorted(needy.needs & breaker.breaks)
        if lost:
            message = f"{needy.name} needs {' and '.join(lost)}, which {breaker.name} breaks."
            raise ConflictError(message, hint=f"keep {_brief(needy)} or {_brief(breaker)}")


def _brief(method: Method) -> str:
    text = str(method)
    return text if len(text) <= 60 else f"{method.name}(...)"


def _only(form: object, keys: set[str], what: str) -> Mapping[str, object]:
    """`form`, if it is a mapping with exactly these keys."""
    if not isinstance(form, Mapping):
        raise RecipeError(f"{what} must be an object with {' and '.join(sorted(keys))}; got {shown(form)}.")
    for key in form:
        if key not in keys:
            near = closest(str(key), keys)
            raise RecipeError(f"{what} has an unknown field {shown(key)}.", hint=f"did you mean {near[0]}?" if near else None)
    for key in sorted(keys - set(form)):
        raise RecipeError(f"{what} lacks the field {key}.")
    return form


def _method(index: int, row: object) -> Method:
    what = f"methods[{index}]"
    row = _only(row, {"name", "options"}, what)
    name, options = row["name"], row["options"]
    if not isinstance(name, str):
        raise RecipeError(f"{what}.name must be a text; got {shown(name)}.")
    if not isinstance(options, Mapping):
        raise RecipeError(f"{what}.options must be an object; got {shown(options)}.")
    try:
        return registry.load(name).from_options(options)
    except UsageError as error:
        error.message = f"{what}: {error.message}"
        raise
