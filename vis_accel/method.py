"""What a method is: one technique, as a frozen keyword-only dataclass that validates itself and does one thing, `apply`.

    @dataclass(frozen=True, kw_only=True)
    class Dpm(Method):
        name: ClassVar[str] = "dpm"
        family: ClassVar[Family] = "sampler"
        exactness: ClassVar[Exactness] = "approximate"
        touches: ClassVar[tuple[Touch, ...]] = (Touch("scheduler", "replaces"),)

        steps: int | None = option(None, "the number of solver steps", low=1)

        def apply(self, target: Any, context: Context) -> Handle: ...

A field's annotation is its contract: `Method.__post_init__` refuses every value that does not fit it (a bool is no int, a float is
finite) and every value outside the bounds given to `option`. A subclass that has more to check calls `super().__post_init__()` first
and raises `self.refused(field, requirement)`. Option values are literals only (int, float, str, bool, None and tuples of them), so a
method has an exact text form, `str(method)`, an exact JSON form, and a hash.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, TypeVar, get_args, get_type_hints

from vis_accel.errors import UnknownNameError, UsageError, closest, either, shown
from vis_accel.literals import MISFIT, read, words

if TYPE_CHECKING:
    from typing_extensions import Self

    from vis_accel.handle import Handle
    from vis_accel.recipe import Recipe

Family = Literal["architecture", "weights", "attention", "tokens", "depth", "cache", "guidance", "sampler", "precision", "compile"]
FAMILIES: tuple[str, ...] = get_args(Family)  # the canonical order, which is the order of application
Exactness = Literal["equivalent", "approximate"]

T = TypeVar("T")


class Touch(NamedTuple):
    """What a method takes hold of: two that replace the same thing exclude each other, those that wrap it stack."""

    what: str
    mode: Literal["replaces", "wraps"]


@dataclass(frozen=True)
class Context:
    """What `apply` knows besides the target.

    Attributes:
        recipe: all of it.
        view: the target, described: `pipelines.PipelineView` or `vit_models.view.ViTView`.
        run: the `clock.Clock` of the recipe on a pipeline; None on a network.
        exercise: runs the target, with what is on it so far, on about as many images as it is given, for methods that look at such
            a run; raises UsageError if there is nothing to run it on.
        progress: told what takes long, how much of it is done, and how much there is.
    """

    recipe: Recipe
    view: Any = None
    run: Any = None
    exercise: Callable[[int], None] | None = None
    progress: Callable[[str, int, int], None] = lambda what, done, total: None


class Bounds(NamedTuple):
    """What `option` says of a field: its meaning in words, and the values it may take."""

    meaning: str
    low: float | None = None  # value >= low
    high: float | None = None  # value <= high
    above: float | None = None  # value > above
    below: float | None = None  # value < below
    choices: tuple[str, ...] = ()

    def requirement(self) -> str:
        """The bounds in words: `>= 1 and <= 3`."""
        pairs = ((">=", self.low), ("<=", self.high), (">", self.above), ("<", self.below))
        return " and ".join(f"{sign} {bound:g}" for sign, bound in pairs if bound is not None)

    def holds(self, value: object) -> bool:
        """Whether `value`, or each element of a tuple, is within the bounds; what is not a number always is."""
        if isinstance(value, tuple):
            return all(self.holds(element) for element in value)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return True
        return (
            (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )


def option(
    default: T,
    meaning: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: tuple[str, ...] = (),
) -> T:
    """A dataclass field with its meaning in words and its bounds: `steps: int = option(20, "the number of solver steps", low=1)`.

    Args:
        default: the value when none is given; it must lie within the bounds.
        meaning: completes the sentence "steps is ...", for error messages and the documentation.
        low, high: inclusive bounds of a number, or of each number of a tuple.
        above, below: exclusive bounds.
        choices: the names a text value may be; other types (a tuple, None) are not affected.
    """
    bounds = Bounds(meaning, low, high, above, below, choices)
    return field(default=default, metadata={"bounds": bounds})


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """Base of all methods; see the module's text for how to write one."""

    name: ClassVar[str]
    family: ClassVar[Family]
    exactness: ClassVar[Exactness]
    touches: ClassVar[tuple[Touch, ...]]
    prepares: ClassVar[bool] = False  # applied before the others of its family, which then start from what it left
    needs: ClassVar[frozenset[str]] = frozenset()  # properties the target must have when this method is applied: "grid"
    breaks: ClassVar[frozenset[str]] = frozenset()  # properties it no longer has afterwards

    def __post_init__(self) -> None:
        """Refuses every option whose value does not fit its annotation and bounds.

        Raises:
            UsageError: `dpm(steps=0): steps is the number of solver steps and must be >= 1; got 0.`
        """
        hints = _hints(type(self))
        for spec in fields(self):
            value = getattr(self, spec.name)
            found = read(value, hints[spec.name])
            if found is MISFIT:
                raise self.refused(spec.name, f"must be {words(hints[spec.name])}")
            object.__setattr__(self, spec.name, found)  # a list became a tuple, 1 became 1.0
            self._check_bounds(spec.name, found, spec.metadata.get("bounds"))

    def _check_bounds(self, name: str, value: object, bounds: Bounds | None) -> None:
        if bounds is None:
            return
        if not bounds.holds(value):
            raise self.refused(name, f"must be {bounds.requirement()}")
        if isinstance(value, str) and not (value.strip() and value.isprintable()):
            raise self.refused(name, "must be a text that can be printed")
        if bounds.choices and isinstance(value, str) and value not in bounds.choices:
            near = closest(value, bounds.choices)
            hint = f"did you mean {either(repr(choice) for choice in near)}?" if near else None
            raise self.refused(name, f"must be one of {', '.join(map(repr, bounds.choices))}", hint=hint)

    def refused(self, name: str, requirement: str, *, hint: str | None = None) -> UsageError:
        """The error for option `name`, whose value breaks `requirement` ("must fall from knot to knot"); the caller raises it."""
        bounds: Bounds | None = next((spec.metadata.get("bounds") for spec in fields(self) if spec.name == name), None)
        value = shown(getattr(self, name))
        meaning = f"is {bounds.meaning} and " if bounds else ""
        return UsageError(f"{self.name}({name}={value}): {name} {meaning}{requirement}; got {value}.", hint=hint)

    def check_target(self, view: Any) -> None:  # noqa: B027 - a method that fits every target has nothing to check
        """Raises NotApplicableError, with the reason and the methods that would fit, if this method does not fit the target."""

    def describe(self, view: Any) -> list[str]:
        """What the method will do to this target, in lines: "tokens after each block: 184 171 158". Empty if its options say it all."""
        return []

    @abstractmethod
    def apply(self, target: Any, context: Context) -> Handle:
        """Puts the method on `target` in place and returns the handle that takes it off again."""

    def options(self) -> dict[str, object]:
        """The fields that differ from their defaults, in the order of declaration."""
        return {spec.name: getattr(self, spec.name) for spec in fields(self) if not _is_default(spec, getattr(self, spec.name))}

    @classmethod
    def from_options(cls, options: Mapping[str, object]) -> Self:
        """Builds the method from names and values as a recipe's text or JSON gives them.

        Raises:
            UnknownNameError: for a name that is no option, with the closest that are.
            UsageError: for a value an option refuses, or an option without a default that is missing.
        """
        specs = {spec.name: spec for spec in fields(cls)}
        for name in options:
            if name not in specs:
                raise UnknownNameError.of(f"option of {cls.name}", str(name), specs)
        for spec in specs.values():
            if spec.name not in options and spec.default is MISSING and spec.default_factory is MISSING:
                raise UsageError(f"{cls.name} needs the option {spec.name}.", hint=f"{cls.name}({spec.name}=...)")
        return cls(**dict(options))

    def __str__(self) -> str:
        """The text form: `dpm(steps=12, schedule='karras')`."""
        inner = ", ".join(f"{name}={value!r}" for name, value in self.options().items())
        return f"{self.name}({inner})" if inner else self.name


def _is_default(spec: Field[Any], value: object) -> bool:
    default = spec.default if spec.default_factory is MISSING else spec.default_factory()
    return default is not MISSING and type(default) is type(value) and default == value


@cache
def _hints(cls: type[Method]) -> dict[str, Any]:
    return get_type_hints(cls)
