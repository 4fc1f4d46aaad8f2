"""Recipes: canonical order, exact round trips, conflicts that say what to do, and a reader no text can crash."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable

import fakes
import pytest
from fakes import Alpha, Alpine, Cast, Fake, Pruner, Quant
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vis_accel import registry
from vis_accel.errors import ConflictError, RecipeError, UnknownNameError, UsageError
from vis_accel.recipe import Recipe
from vis_accel.recipe_text import MAX_CHARS


@pytest.fixture(autouse=True, scope="module")
def registered() -> object:
    with pytest.MonkeyPatch.context() as patch:
        fakes.register(patch)
        registry._plugins.cache_clear()
        yield


def refused(text: str) -> UsageError:
    with pytest.raises(UsageError) as caught:
        Recipe.parse(text)
    return caught.value


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("alpha", "alpha"),
        ("  alpha ( steps = 12 )\n", "alpha(steps=12)"),
        ("alpha()", "alpha"),
        ("alpha(steps=None, eta=0)", "alpha"),
        ("quant+alpha(eta=.5)", "alpha(eta=0.5) + quant"),
        ("quant + cast", "cast + quant"),
        ("alpha(schedule=[3,2,1,])", "alpha(schedule=(3.0, 2.0, 1.0))"),
        ("alpha(schedule=(1e1,))", "alpha(schedule=(10.0,))"),
        ("alpha(steps=(12))", "alpha(steps=12)"),
        ("alpha(steps=1_000, )", "alpha(steps=1000)"),
        ("quant(words=('a, b) + c', \"it's\"), on=False)", "quant(on=False, words=('a, b) + c', \"it's\"))"),
        ("none", "none"),
    ],
)
def test_texts_and_their_canonical_form(text: str, canonical: str) -> None:
    recipe = Recipe.parse(text)
    assert str(recipe) == canonical
    assert Recipe.parse(canonical) == recipe == Recipe.from_json(recipe.to_json()) == Recipe.from_dict(recipe.to_dict())


@pytest.mark.parametrize(
    ("text", "position", "reason"),
    [
        ("", 1, "it is empty"),
        ("   ", 4, "it is empty"),
        ("+ alpha", 1, "expected the name of a method"),
        ("alpha +", 8, "expected the name of a method"),
        ("alpha quant", 7, "expected + and another method"),
        ("alpha(", 7, "expected an option"),
        ("alpha(3)", 7, "expected an option"),
        ("alpha(steps)", 12, "expected = after steps"),
        ("alpha(steps=)", 13, "expected a value"),
        ("alpha(steps=3", 14, "expected , or )"),
        ("alpha(steps=3 eta=1)", 15, "expected , or )"),
        ("alpha(steps=3, steps=3)", 16, "given twice"),
        ("alpha(eta=inf)", 11, "numbers are finite"),
        ("alpha(eta=-nan)", 11, "numbers are finite"),
        ("alpha(eta=1e999)", 11, "too large"),
        ("alpha(steps=007)", 13, "not a value that Python would read"),
        ("alpha(steps=1__0)", 13, "not a value that Python would read"),
        ("alpha(steps=1j)", 14, "expected , or )"),
        ("alpha(steps=2*3)", 14, "expected , or )"),
        (f"alpha(steps={'9' * 41})", 13, "at most 40"),
        ("alpha(schedule=karras)", 16, "a text in quotes"),
        ("alpha(schedule='a)", 16, "no closing quote"),
        (r"alpha(schedule='\d')", 16, "backslash"),
        (r"alpha(schedule='\ud800')", 16, "not a value that Python would read"),
        (r"alpha(schedule='\Uffffffff')", 16, "not a value that Python would read"),
        ("alpha(schedule=((((((1))))))", 21, "nest at most 4 deep"),
        ("alpha(schedule=[1 2])", 19, "expected , or ]"),
        ("alpha(steps=__import__('os'))", 13, "a value is"),
    ],
)
def test_a_text_that_breaks_the_grammar_is_refused_at_its_character(text: str, position: int, reason: str) -> None:
    error = refused(text)
    assert isinstance(error, RecipeError)
    first, excerpt, caret = error.message.split("\n")
    assert first.startswith(f"Cannot read the recipe at character {position}: ")
    assert reason in first
    assert caret.index("^") == 2 + position - 1 - max(0, position - 41)
    assert excerpt.isprintable()


def test_hints_say_what_to_write() -> None:
    assert refused("alpha(schedule=karras)").hint == "for a text write 'karras'"
    assert refused("").hint == "for no method at all write none"


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("quant + alpa", UnknownNameError, "There is no method named 'alpa'.\nat character 9"),
        ("alpha(step=3)", UnknownNameError, "There is no option of alpha named 'step'.\nat character 1 "),
        ("quant + alpha(steps=0)", UsageError, "must be >= 1; got 0.\nat character 9"),
        ("alpha + alpine", ConflictError, "alpha and alpine both replace the scheduler.\nat character 9"),
        ("none + alpha", UnknownNameError, "There is no method named 'none'"),
    ],
)
def test_other_errors_say_where_too(text: str, kind: type[UsageError], message: str) -> None:
    error = refused(text)
    assert type(error) is kind
    assert message in error.message


def test_the_alias_of_dpmpp_is_read_and_never_written() -> None:
    assert str(Recipe.parse("dpm++(steps=3) + quant")) == "dpmpp(steps=3) + quant"
    assert str(Recipe.parse("quant+dpm++")) == "dpmpp + quant"


def test_the_order_of_writing_does_not_matter() -> None:
    methods: tuple[Fake, ...] = (Cast(), Alpha(steps=2), Quant(bits=4))
    forms = {Recipe(order) for order in itertools.permutations(methods)}
    assert len(forms) == 1
    assert [method.name for method in forms.pop()] == ["alpha", "cast", "quant"]
    one, other = Recipe.parse("quant"), Recipe.parse("alpha")
    assert one + other == other + one == Alpha() + one
    assert Recipe.empty + one == one
    assert (len(Recipe.empty), len(one + other), str(Recipe.empty)) == (0, 2, "none")


def test_what_users_write_where_a_recipe_is_wanted() -> None:
    expected = Recipe([Alpha(steps=2)])
    assert Recipe.of("alpha(steps=2)") == Recipe.of(Alpha(steps=2)) == Recipe.of([Alpha(steps=2)]) == Recipe.of(expected) == expected


def test_one_approximate_method_makes_the_recipe_approximate() -> None:
    assert Recipe.parse("quant").exactness == "equivalent"
    assert Recipe.parse("quant + alpha").exactness == "approximate"
    assert Recipe.empty.exactness == "equivalent"


@pytest.mark.parametrize(
    ("methods", "message", "hint"),
    [
        ((Alpha(steps=3), Alpine()), "alpha and alpine both replace the scheduler.", "keep alpha(steps=3) or alpine"),
        ((Alpha(), Alpha()), "alpha is in the recipe twice, as alpha.", "keep one of them"),
        ((Alpha(), Alpha(steps=1)), "alpha is in the recipe twice, as alpha and as alpha(steps=1).", "keep one of them"),
        ((Quant(), Pruner()), "quant needs grid, which pruner breaks.", "keep quant or pruner"),
    ],
)
def test_conflicts_say_what_to_do(methods: tuple[Fake, ...], message: str, hint: str) -> None:
    for order in itertools.permutations(methods):
        with pytest.raises(ConflictError) as caught:
            Recipe(order)
        if order == methods:
            assert (caught.value.message, caught.value.hint) == (message, hint)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "line 1, column 2"),
        ("[]", "a recipe must be an object with methods"),
        ("{}", "lacks the field methods"),
        ('{"methods": {}}', "must be a list"),
        ('{"methods": [], "method": []}', "unknown field 'method'"),
        ('{"methods": [{"name": "alpha"}]}', r"methods\[0\] lacks the field options"),
        ('{"methods": [{"name": 3, "options": {}}]}', r"methods\[0\].name must be a text"),
        ('{"methods": [{"name": "alpha", "options": []}]}', r"methods\[0\].options must be an object"),
        ('{"methods": [{"name": "alpa", "options": {}}]}', r"methods\[0\]: There is no method"),
        ('{"methods": [{"name": "alpha", "options": {"eta": NaN}}]}', "NaN is not JSON"),
        ('{"methods": [{"name": "alpha", "options": {"eta": 1e999}}]}', "too large"),
        ('{"methods": [{"name": "alpha", "options": {"eta": 1, "eta": 1}}]}', "'eta' occurs twice"),
        ('{"methods": "\\ud800"}', "surrogate"),
        ("[" * 100_000, "nests"),
        ('{"methods": ' + "[" * 400 + "]" * 400 + "}", "nests"),
        ("9" * 5000, "Cannot read"),
    ],
)
def test_json_is_read_strictly(text: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        Recipe.from_json(text)
    assert len(str(caught.value)) < 600


# A reader no text can crash

NAMES = ["alpha", "alpine", "quant", "cast", "pruner", "dpm++", "alpa", "none"]
KEYS = ["steps", "eta", "schedule", "bits", "words", "on", "x"]
MARKS = "()[],=+-'\"\\ \n\0.e_0aA\ud800é"


def some_value(draw: random.Random, depth: int = 3) -> object:
    """A Python value: mostly one an option could have."""
    kinds: list[Callable[[], object]] = [
        lambda: draw.choice([None, True, False, "auto", "karras", 4, 8]),
        lambda: draw.randint(1, 50),
        lambda: draw.randint(-(2**70), 2**70),
        draw.random,
        lambda: draw.choice([1e300, -0.0, 5e-324, float("inf"), float("nan")]),
        lambda: "".join(chr(draw.choice([draw.randrange(128), draw.randrange(0x110000)])) for _ in range(draw.randrange(6))),
        lambda: tuple(some_value(draw, depth - 1) for _ in range(draw.randrange(4))) if depth else (),
        lambda: tuple(draw.random() for _ in range(draw.randrange(4))),
    ]
    return draw.choice(kinds)()


def some_text(draw: random.Random) -> str:
    """A recipe's text, two times in three with a few characters cut out and put in."""
    calls = []
    for _ in range(draw.randint(1, 3)):
        options = {draw.choice(KEYS): some_value(draw) for _ in range(draw.randrange(4))}
        calls.append(f"{draw.choice(NAMES)}({', '.join(f'{key}={value!r}' for key, value in options.items())})")
    text = " + ".join(calls)
    for _ in range(draw.randrange(3)):
        at = draw.randrange(len(text) + 1)
        text = text[:at] + "".join(draw.choices(MARKS, k=draw.randrange(3))) + text[at + draw.randrange(4) :]
    return text


def check(text: str) -> bool:
    """Whether `text` parses; a refusal must explain itself, a recipe must round-trip."""
    try:
        recipe = Recipe.parse(text)
    except UsageError as error:
        assert "at character" in error.message  # noqa: PT017
        assert len(error.message) < 1000  # noqa: PT017
        return False
    assert Recipe.parse(str(recipe)) == recipe
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert hash(Recipe.from_json(recipe.to_json())) == hash(recipe)
    return True


def test_10_000_texts_parse_or_are_refused_with_reasons_in_5_ms() -> None:
    draw = random.Random(0)
    seconds, parsed = [], 0
    for _ in range(10_000):
        text = some_text(draw)
        started = time.process_time()
        parsed += check(text)
        seconds.append(time.process_time() - started)
    assert parsed > 300  # the generator is not only noise
    assert sorted(seconds)[9_900] <= 0.005


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(st.text(max_size=40) | st.text(alphabet=MARKS, max_size=20).map(lambda text: f"alpha(schedule={text})"))
def test_any_text_parses_or_is_refused_with_reasons(text: str) -> None:
    check(text)


@pytest.mark.parametrize(
    "unit", ["(", "[", "-", "a", "'", "9", "alpha + ", "alpha(steps=", "1,", " ", "\\", "((1),", "alpha(x=1,", "\0", "é"]
)
def test_long_texts_take_linear_time(unit: str) -> None:
    for head in ("", "alpha(schedule="):
        times = []
        for size in (MAX_CHARS // 4, MAX_CHARS, 1_000_000):
            text = (head + unit * (size // len(unit)))[:size]
            started = time.process_time()
            error = refused(text)
            times.append(time.process_time() - started)
            assert len(str(error)) < 1000
        assert times[1] < 0.5
        assert times[2] < 0.01  # refused unread


def test_a_long_recipe_is_read_in_linear_time() -> None:
    times = []
    for count in (2_000, 8_000):
        text = f"alpha(schedule=({', '.join(['0.125'] * count)}))"
        started = time.process_time()
        assert len(Recipe.parse(text).methods[0].options()["schedule"]) == count  # type: ignore[arg-type]
        times.append(time.process_time() - started)
    assert times[1] < 12 * times[0] + 0.05
