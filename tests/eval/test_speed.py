"""Timing under a clock that the test owns: order, drift, intervals, warnings."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import pytest

from vis_accel.errors import UnknownNameError, UsageError
from vis_accel.eval.speed import Timings, interleave, median_interval


class Machine:
    """A clock and work that takes time on it: `cost` seconds, slower by `drift` per second gone by, with `jitter` of noise."""

    def __init__(self, drift: float = 0.0, jitter: float = 0.0, seed: int = 0) -> None:
        self.now, self.drift, self.jitter, self.log = 0.0, drift, jitter, list[str]()
        self.random = random.Random(seed)

    def clock(self) -> float:
        return self.now

    def work(self, label: str, cost: float, first: float = 0.0) -> Callable[[], None]:
        def run() -> None:
            extra = first if label not in self.log else 0.0
            self.log.append(label)
            self.now += cost * (1 + self.drift * self.now) * self.random.lognormvariate(0, self.jitter) + extra

        return run


def time_two(machine: Machine, a: float, b: float, rounds: int = 20, seed: int = 0) -> Timings:
    candidates = {"a": machine.work("a", a), "b": machine.work("b", b)}
    return interleave(candidates, clock=machine.clock, sync=lambda: None, rounds=rounds, seed=seed)


def test_a_program_against_itself_has_ratio_1() -> None:
    hits = 0
    for seed in range(100):
        ratio = time_two(Machine(jitter=0.05, seed=seed), 1, 1, seed=seed).ratio("a", "b")
        hits += 1.0 in ratio
        assert ratio.width < 0.2
    assert hits >= 92


def test_faster_is_above_1_and_slower_below() -> None:
    timings = time_two(Machine(jitter=0.05), 1.0, 1.25)
    assert 1.25 in timings.ratio("a", "b")
    assert timings.ratio("a", "b").low > 1
    assert timings.ratio("b", "a").high < 1
    assert timings.median("b") == pytest.approx(1.25, rel=0.05)


def test_drift_hits_both_sides() -> None:
    """The machine becomes three times slower during the run; the ratio stays exact."""
    timings = time_two(Machine(drift=0.03), 1.0, 1.0)
    assert max(timings.values["a"]) > 3 * min(timings.values["a"])
    ratio = timings.ratio("a", "b")
    assert ratio.value == pytest.approx(1.0, abs=0.01)
    assert ratio.width < 0.02


def test_a_round_runs_there_and_back_in_an_order_that_varies_with_the_seed() -> None:
    machine = Machine()
    candidates = {label: machine.work(label, 1) for label in "abc"}
    interleave(candidates, rounds=8, warmup=1, clock=machine.clock, sync=lambda: None)
    assert machine.log[:6] == list("abcabc")
    rounds = [machine.log[start : start + 6] for start in range(6, 54, 6)]
    assert all(order == order[::-1] and sorted(order[:3]) == list("abc") for order in rounds)
    assert len({tuple(order) for order in rounds}) > 2
    again = Machine()
    interleave({label: again.work(label, 1) for label in "abc"}, rounds=8, warmup=1, clock=again.clock, sync=lambda: None)
    assert again.log == machine.log


def test_one_interrupted_round_does_not_move_the_ratio() -> None:
    machine = Machine(jitter=0.01)
    slow = machine.work("a", 1.0)

    def hiccup() -> None:
        slow()
        machine.now += 50.0 if machine.log.count("a") == 10 else 0.0

    timings = interleave({"a": hiccup, "b": machine.work("b", 1.0)}, clock=machine.clock, sync=lambda: None)
    assert 1.0 in timings.ratio("a", "b")
    assert timings.ratio("a", "b").width < 0.05
    assert any("longest" in reason for reason in timings.unstable("a"))


def test_the_first_call_stands_apart_and_is_won_back() -> None:
    machine = Machine()
    compiled = machine.work("compiled", 0.5, first=30.0)
    timings = interleave({"plain": machine.work("plain", 1.0), "compiled": compiled}, clock=machine.clock, sync=lambda: None)
    assert timings.first_call["compiled"] == pytest.approx(30.5)
    assert timings.median("compiled") == pytest.approx(0.5)
    assert timings.break_even("compiled", "plain") == 60
    assert timings.break_even("plain", "compiled") is None
    assert timings.break_even("plain", "plain") == 0


def test_the_budget_ends_the_run_after_whole_rounds() -> None:
    machine = Machine()
    candidates = {"a": machine.work("a", 1.0), "b": machine.work("b", 1.0)}
    timings = interleave(candidates, rounds=100, warmup=1, budget_s=25, clock=machine.clock, sync=lambda: None)
    assert machine.now <= 25
    assert len(timings.rounds["a"]) == len(timings.rounds["b"]) == 5
    assert len(interleave(candidates, rounds=9, budget_s=0, clock=machine.clock, sync=lambda: None).rounds["a"]) == 1


def test_sync_and_prepare_surround_the_call_and_are_not_work() -> None:
    machine, log = Machine(), list[str]()

    def prepare(label: str) -> None:
        log.append(f"prepare {label}")
        machine.now += 100

    candidates = {"a": machine.work("a", 1.0)}
    timings = interleave(candidates, rounds=1, warmup=0, clock=machine.clock, sync=lambda: log.append("sync"), prepare=prepare)
    assert log == ["prepare a", "sync", "sync"] * 3
    assert timings.values["a"] == (1.0, 1.0)


def test_an_unstable_run_says_so() -> None:
    def reasons(*values: float) -> str:
        return "; ".join(Timings({}, {"x": values}, {}).unstable("x"))

    assert reasons(*[1.0] * 20) == ""
    assert "standard deviation is 1" in reasons(*[0.9, 1.1] * 10)
    assert "longest run is 1" in reasons(*[1.0] * 99, 2.2)
    assert "shortest run is 6" in reasons(*[1.0] * 99, 0.4)
    assert "less than 1 ms" in reasons(*[5e-4] * 20)
    assert "known to 1% after" in reasons(0.97, 1.03, 1.0)
    assert "1 runs" in reasons(1.0)


def test_the_interval_of_a_median_covers_what_it_says() -> None:
    """Order statistics against the tables: n = 10: 2nd and 9th (97.9%), n = 20: 6th and 15th (95.9%), n = 5: the range (93.75%)."""
    for n, low, high, level in ((10, 2, 9, 0.95), (20, 6, 15, 0.95), (6, 1, 6, 0.95), (5, 1, 5, 0.9375), (1, 1, 1, 0.0)):
        interval = median_interval([float(i) for i in range(1, n + 1)])
        assert (interval.low, interval.high, interval.level) == (low, high, level)
    draw = random.Random(0)
    hits = sum(1.0 in median_interval([draw.lognormvariate(0, 1) for _ in range(20)]) for _ in range(2000))
    assert 0.945 < hits / 2000 < 0.975


def test_refusals() -> None:
    with pytest.raises(UsageError):
        interleave({})
    with pytest.raises(UsageError):
        interleave({"a": lambda: None}, rounds=0)
    with pytest.raises(UnknownNameError, match="timed candidate"):
        time_two(Machine(), 1, 1, rounds=1).ratio("a", "c")


def test_the_true_clock_works_too() -> None:
    timings = interleave({"short": lambda: time.sleep(0.002), "long": lambda: time.sleep(0.006)}, rounds=6, warmup=0)
    assert timings.ratio("short", "long").low > 1.5
    assert timings.spread("long") >= 0
