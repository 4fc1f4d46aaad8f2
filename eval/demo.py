"""The demo under load and under attack: a server of its own on loopback, and strangers who are many, impatient, or hostile.

    python eval/demo.py                    everything, about ten minutes; writes eval/results/demo.json, stage by stage
    python eval/demo.py --stages load      one of them again, the others kept
    python eval/demo.py --quick            a try-out of a minute, to runs/demo-quick.json

ready    from a cold start of `vis-accel app` until the page is served, three times.
first    from the request until all four pictures of the page's defaults are there: the first is there earlier.
load     20 visitors for two minutes with recipes that conflict; a tenth leave half-way, a tenth cancel. Every picture is held against the
         one that its request got alone, bit for bit. Beside it /healthz is asked four times a second.
cancels  300 requests of 50 calls, cancelled within milliseconds.
fuzz     10,000 requests that are wrong somewhere: all must be refused with a 4xx and a reason (demo_hostile.py).
bodies   60 MB at once and in pieces, 9 MB in a picture's place, uploads over the limit.
bombs    pictures that claim, or would have, hundreds of megabytes; truncated and broken ones. A visitor works meanwhile.

Memory is the resident memory of the server's process, looked at four times a second. A goal that is missed is printed, and the exit code
is 1.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parent))
import demo_hostile
import demo_visitors

from vis_accel.files import write_atomic
from vis_accel.machine import commit, machine, versions

RESULTS, QUICK = Path(__file__).parent / "results" / "demo.json", Path("runs/demo-quick.json")
STAGES = ("ready", "first", "load", "cancels", "fuzz", "bodies", "bombs")
FULL = {"starts": 3, "repeats": 10, "visitors": 20, "seconds": 120.0, "settled": 30.0, "cancels": 300, "fuzz": 10_000}
SMALL = {"starts": 1, "repeats": 2, "visitors": 5, "seconds": 15.0, "settled": 5.0, "cancels": 20, "fuzz": 200}
PORT = 7997


@contextmanager
def served(log: Path) -> Iterator[tuple[subprocess.Popen[bytes], str, float]]:
    """A server in a process of its own: (process, address, seconds from its start until the page was there)."""
    url, start = f"http://127.0.0.1:{PORT}", time.perf_counter()
    with log.open("ab") as lines:
        process = subprocess.Popen([sys.executable, "-m", "vis_accel", "app", "--port", str(PORT)], stderr=lines, stdout=lines)
        try:
            yield process, url, _wait(process, url, start)
        finally:
            process.terminate()
            process.wait(20)


def _wait(process: subprocess.Popen[bytes], url: str, start: float) -> float:
    while time.perf_counter() - start < 180:
        if process.poll() is not None:
            raise SystemExit(f"the server ended with {process.returncode}")
        try:
            if httpx.get(url, timeout=5).status_code == 200:
                return time.perf_counter() - start
        except httpx.TransportError:
            time.sleep(0.05)
    raise SystemExit("the page was not there after three minutes")


class Memory:
    """Looks at a process four times a second: (seconds, bytes)."""

    def __init__(self, pid: int) -> None:
        self.pid, self.seen, self._end = pid, list[tuple[float, int]](), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def now(self) -> int:
        """Resident bytes."""
        found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())
        return int(found[1]) * 1024 if found else 0

    def __enter__(self) -> Memory:
        self.begun = time.perf_counter()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._end.wait(0.25):
            self.seen.append((time.perf_counter() - self.begun, self.now()))

    def facts(self, settled: float = 0.0) -> dict[str, float]:
        """Megabytes when it had settled, at the most since, and at the end."""
        after = [size for moment, size in self.seen if moment >= settled] or [self.now()]
        end = self.now()
        return {"settled_mb": after[0] / 1e6, "peak_mb": max(after) / 1e6, "end_mb": end / 1e6, "end_over_settled": end / after[0]}


def first(url: str, amounts: dict[str, Any]) -> dict[str, Any]:
    """The page's defaults, over and over, by one visitor."""
    times = []
    with httpx.Client(base_url=url, timeout=60) as http:
        demo_visitors.ask(http, "generate", demo_visitors.DEFAULTS)
        for seed in range(amounts["repeats"]):
            start = time.perf_counter()
            demo_visitors.ask(http, "generate", {**demo_visitors.DEFAULTS, "seed": seed})
            times.append(time.perf_counter() - start)
    return {"median_s": statistics.median(times), "worst_s": max(times), "n": len(times)}


def guarded(url: str, pid: int, stage: str, amounts: dict[str, Any]) -> dict[str, Any]:
    """A stage against a server that is up: what it found, the memory meanwhile, and whether an honest request is served afterwards."""
    runs = {
        "load": lambda: demo_visitors.load(url, amounts),
        "cancels": lambda: demo_visitors.cancels(url, amounts["cancels"]),
        "fuzz": lambda: demo_hostile.fuzz(url, amounts["fuzz"]),
        "bodies": lambda: demo_hostile.bodies(url),
        "bombs": lambda: demo_hostile.bombs(url),
    }
    with httpx.Client(base_url=url, timeout=120) as http:
        alone = demo_visitors.ask(http, "generate", demo_visitors.DEFAULTS)
        with Memory(pid) as memory:
            found = runs[stage]()
            time.sleep(1.0)
            same = demo_visitors.ask(http, "generate", demo_visitors.DEFAULTS)["pictures"] == alone["pictures"]
        return {**found, "memory": memory.facts(amounts["settled"] if stage == "load" else 0.0), "served_afterwards": same}


def misses(found: dict[str, Any]) -> list[str]:
    """The goals that were not met, in words."""
    missed = []

    def goal(stage: str, words: str, met: Any) -> None:
        if stage in found and not met(found[stage]):
            missed.append(f"{stage}: {words}")

    goal("ready", "the page within 15 s of a cold start", lambda it: max(it["seconds"]) <= 15)
    goal("first", "the first picture within 3 s", lambda it: it["worst_s"] <= 3)
    goal("load", "no wrong picture", lambda it: it["wrong"] == 0 and it["right"] > 0)
    goal("load", "no 5xx but 503, no error", lambda it: not it["errors"] and {int(code) for code in it["codes"]} <= {200, 503})
    goal("load", "p95 of /healthz within 200 ms", lambda it: it["health"]["p95_ms"] <= 200)
    goal("cancels", "the worker free within 3 s", lambda it: it["free_after_s"] <= 3)
    goal("fuzz", "each a 4xx with a reason", lambda it: not it["odd"] and {int(code) // 100 for code in it["codes"]} == {4})
    for stage in ("bodies", "bombs"):
        goal(stage, "each a 4xx with a reason", lambda it: all(400 <= code < 500 for code in it["codes"].values()) and not it["odd"])
    for stage in STAGES[2:]:
        goal(stage, "memory at the end at most 1.05 x", lambda it: it["memory"]["end_over_settled"] <= 1.05)
        goal(stage, "an honest request served afterwards", lambda it: it["served_afterwards"])
    return missed


def main() -> None:
    """Runs the stages that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stages", default=",".join(STAGES))
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    amounts, path = (SMALL, QUICK) if arguments.quick else (FULL, RESULTS)
    asked = [stage for stage in STAGES if stage in arguments.stages.split(",")]
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    log = Path("runs/demo-server.log")
    log.parent.mkdir(exist_ok=True)

    def keep(stage: str, value: dict[str, Any]) -> None:
        about = {"machine": machine(), "versions": versions(), "commit": commit()}
        found[stage] = value | about
        write_atomic(path, (json.dumps(found, indent=1) + "\n").encode())
        print(json.dumps({stage: value}), flush=True)

    if "ready" in asked:
        seconds = []
        for _ in range(amounts["starts"]):
            with served(log) as (_, _, ready):
                seconds.append(ready)
        keep("ready", {"seconds": seconds})
    if set(asked) - {"ready"}:
        with served(log) as (process, url, _):
            for stage in asked:
                if stage != "ready":
                    keep(stage, first(url, amounts) if stage == "first" else guarded(url, process.pid, stage, amounts))
    missed = misses(found)
    print("\n".join(f"MISSED {line}" for line in missed) or "every goal was met")
    raise SystemExit(bool(missed))


if __name__ == "__main__":
    main()
