"""Records and cards: what was measured, with what it cost, in one row.

A record is one row: a recipe on a model, its quality with intervals, its speed with spread, its counters and where all that was measured.
A card is records with one baseline. Both are plain values that round-trip through JSON; reading is strict, since a card may come from a
stranger: an unknown field is an error, a value that is not there is null, never NaN.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from vis_accel import strict_json
from vis_accel.errors import DataError, UsageError, shown
from vis_accel.files import write_atomic
from vis_accel.method import Exactness

SCHEMA = 1

Scalar = str | int | float | bool | None

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """A measured number with its interval; None where nothing was measured.

    Attributes:
        value: in the unit its name says.
        low, high: the ends of the interval at `level`.
        higher_is_better: False for errors and distances, None where neither is better.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    level: float = 0.95
    higher_is_better: bool | None = None

    def __str__(self) -> str:
        if self.value is None:
            return "-"
        interval = "" if self.low is None or self.high is None else f" [{self.low:.4g}, {self.high:.4g}]"
        return f"{self.value:.4g}{interval}"


@dataclass(frozen=True, kw_only=True)
class Speed:
    """The speed of one row.

    Attributes:
        images_per_second: the median over `repeats` timed calls.
        spread: the interquartile range over the median.
        repeats: timed calls, warm-up not counted.
        batch: images per call.
        ratios: paired ratio of images per second to a named baseline: {"stock": ..., "compiled bf16": ...}.
    """

    images_per_second: Quantity
    spread: float | None = None
    repeats: int = 0
    batch: int = 1
    ratios: dict[str, Quantity] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Record:
    """One measured row. Raises UsageError for a NaN or a value of the wrong type, naming the field.

    Attributes:
        recipe, recipe_form: the recipe's text and its JSON form; kept as written, for a card outlives the methods installed.
        exactness: whether the recipe computes the same thing ("equivalent") or approximates it.
        model, model_hash: name, and a hash over the weights.
        data: the data set or prompts the quality refers to.
        seeds: the seeds of the n images, in words: "0..4999".
        n: images (or samples) the quality is computed from.
        settings: what else was held fixed: guidance, steps, size, dtype.
        quality: by name: "FID[cifar10-features]", "PSNR", "top-1".
        verdict: whether the quality is the same as the baseline's, and why, in words; None where no claim is made.
        speed: None if speed was not measured.
        other_speeds: at other batch sizes.
        counters: counted, never inferred: "calls" in time per image, "nfe" rows evaluated per image, "macs".
        peak_memory_bytes: of this row alone.
        first_call_seconds: compilation and calibration included.
        unstable: why the timing should not be trusted; empty if it can be.
        notes: what the methods say they did, and what the numbers amount to, in lines.
        machine, versions, commit: as vis_accel.machine reports them.
        started, finished: UTC, ISO 8601.
    """

    recipe: str
    recipe_form: dict[str, Any]
    exactness: Exactness
    model: str
    model_hash: str
    data: str
    seeds: str
    n: int
    settings: dict[str, Scalar] = field(default_factory=dict)
    quality: dict[str, Quantity] = field(default_factory=dict)
    verdict: str | None = None
    speed: Speed | None = None
    other_speeds: tuple[Speed, ...] = ()
    counters: dict[str, int | float | None] = field(default_factory=dict)
    peak_memory_bytes: int | None = None
    first_call_seconds: float | None = None
    unstable: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    machine: dict[str, Scalar] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    commit: str | None = None
    started: str | None = None
    finished: str | None = None

    def __post_init__(self) -> None:
        for name, form in self.to_dict().items():  # as JSON would give it back, so that a record equals its copy from the disk
            object.__setattr__(self, name, strict_json.read_field(Record, name, form, "the record"))
        if self.n < 0:
            raise UsageError(f"n is the number of images the quality is computed from and must be >= 0; got {self.n}.")

    def to_dict(self) -> dict[str, Any]:
        """The record as plain JSON values."""
        form: dict[str, Any] = strict_json.to_form(self, "the record")
        return form

    @classmethod
    def from_dict(cls, form: object, where: str = "the record") -> Record:
        """Reads what `to_dict` gives; DataError names the place that is wrong."""
        return _reading(cls, form, where)


@dataclass(frozen=True, kw_only=True)
class Card:
    """Records with one baseline.

    Attributes:
        title: what was compared.
        baseline: the row the others are held against.
        records: the other rows.
        reference: the identity of the reference the quality refers to: name, hash, n, feature network and its hash.
        schema: the version of this form.

    Raises:
        UsageError: if rows with a quality differ from the baseline in n, seeds or data: they cannot be compared.
    """

    title: str
    baseline: Record
    records: tuple[Record, ...] = ()
    reference: dict[str, Scalar] = field(default_factory=dict)
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise UsageError(f"The card has schema {self.schema}; this version reads schema {SCHEMA}.")
        for name in ("title", "reference"):
            form = strict_json.to_form(getattr(self, name), f"the card.{name}")
            object.__setattr__(self, name, strict_json.read_field(Card, name, form, "the card"))
        object.__setattr__(self, "records", tuple(self.records))
        for record in self.rows:
            if not isinstance(record, Record):
                raise UsageError(f"A card holds records; got {shown(record)}.")
            self._check_comparable(record)

    def _check_comparable(self, record: Record) -> None:
        for name in ("n", "seeds", "data"):
            ours, theirs = getattr(self.baseline, name), getattr(record, name)
            if record.quality and self.baseline.quality and ours != theirs:
                raise UsageError(
                    f"Rows of different {name} cannot be compared: {shown(record.recipe)} was measured with {name} = {shown(theirs)}, "
                    f"the baseline with {shown(ours)}."
                )

    @property
    def rows(self) -> tuple[Record, ...]:
        """The baseline and the records."""
        return (self.baseline, *self.records)

    def to_dict(self) -> dict[str, Any]:
        """The card as plain JSON values."""
        form: dict[str, Any] = strict_json.to_form(self, "the card")
        return form

    @classmethod
    def from_dict(cls, form: object, where: str = "the card") -> Card:
        """Reads what `to_dict` gives; DataError names the place that is wrong."""
        if isinstance(form, dict) and type(form.get("schema")) is int and form["schema"] != SCHEMA:
            raise DataError(f"{where} has schema {form['schema']}; this version reads schema {SCHEMA}.")
        return _reading(cls, form, where)

    def to_json(self) -> str:
        """The card as JSON text."""
        return strict_json.dumps(self.to_dict(), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str = "the card") -> Card:
        """Reads what `to_json` gives; raises as `from_dict` does."""
        return cls.from_dict(strict_json.loads(text, where, DataError), where)

    def to_markdown(self) -> str:
        """The card as a Markdown page; names in it are escaped."""
        from vis_accel.card_markdown import page  # which imports this module

        return page(self)

    def save(self, folder: str | Path) -> Path:
        """Writes card.json and card.md into `folder`, each whole or not at all, and returns the path of the first.

        Raises:
            OutputError: if a file could not be written.
        """
        path = Path(folder) / "card.json"
        write_atomic(path, self.to_json())
        write_atomic(path.with_suffix(".md"), self.to_markdown())
        return path

    @classmethod
    def load(cls, path: str | Path) -> Card:
        """Reads a card.json, or the one in a folder; raises DataError if it is missing or no card."""
        place = Path(path) / "card.json" if Path(path).is_dir() else Path(path)
        try:
            text = place.read_bytes().decode()
        except OSError as error:
            raise DataError(f"Cannot read {place}: {error.strerror or error}.") from error
        except UnicodeDecodeError as error:
            raise DataError(f"Cannot read {place}: it is not UTF-8.") from error
        return cls.from_json(text, str(place))


def undominated(rows: Sequence[Record]) -> list[Record]:
    """The rows that no other beats: none is at least as fast and as good and better in one of the two.

    Fast is images per second. Good is the first of FID (lower is better), PSNR and top-1 (higher is better) that more than one row has;
    rows that lack it or a speed are neither compared nor returned.
    """
    name = quality_axis(rows)
    points = [(record, point) for record in rows if name and (point := _point(record, name, rows[0]))]
    return [record for record, point in points if not any(_beats(other, point) for _, other in points)]


def _beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one != other and one[0] >= other[0] and one[1] >= other[1]


def quality_axis(rows: Iterable[Record]) -> str | None:
    """The quality that decides between rows: an FID that several rows have, else a PSNR, else the top-1 accuracy, else None."""
    names = [name for record in rows for name, found in record.quality.items() if found.value is not None]
    return next((name for start in ("FID", "PSNR", "top-1") for name in names if name.startswith(start) and names.count(name) > 1), None)


def pace(record: Record, axis: str, base: Record) -> float | None:
    """Images/s for comparing rows; None without a speed.

    The rows of a classifier are timed one after the other in calls of milliseconds, and the machine's own pace drifts meanwhile: what
    compares them is the baseline's images/s times the paired ratio to it.
    """
    if record.speed is None or record.speed.images_per_second.value is None:
        return None
    ratio = record.speed.ratios.get(base.recipe)
    if axis != "top-1" or ratio is None or ratio.value is None or base.speed is None or base.speed.images_per_second.value is None:
        return record.speed.images_per_second.value
    return ratio.value * base.speed.images_per_second.value


def _point(record: Record, name: str, base: Record) -> tuple[float, float] | None:
    quality, speed = record.quality.get(name), pace(record, name, base)
    if speed is None or quality is None or quality.value is None:
        return None
    return speed, -quality.value if name.startswith("FID") else quality.value


def _reading(kind: type[T], form: object, where: str) -> T:
    try:
        return strict_json.read_form(kind, form, where, DataError)
    except UsageError as error:  # from __post_init__: here the file is wrong, not the caller
        raise DataError(error.message) from error
