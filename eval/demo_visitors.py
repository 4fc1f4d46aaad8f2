"""Visitors of the demo: they ask, wait, leave, cancel; what each got is held against what its request gets alone. Used by demo.py."""

from __future__ import annotations

import hashlib
import json
import random
import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import Any

import httpx

DEFAULTS = {"model": "cifar10-dit", "recipe": "dpm(steps=10)", "seed": 0, "count": 4}
LONG = {"model": "cifar10-dit", "recipe": "none", "seed": 0, "count": 8, "steps": 50}
ORDER = {
    "generate": {
        "model": "cifar10-dit",
        "recipe": "none",
        "seed": 0,
        "count": 4,
        "classes": [],
        "prompt": "",
        "guidance": None,
        "steps": None,
        "size": None,
        "beside": False,
    },
    "compare": {
        "model": "cifar10-dit",
        "first": "none",
        "second": "dpm(steps=10)",
        "seed": 0,
        "count": 4,
        "classes": [],
        "prompt": "",
        "guidance": None,
        "steps": None,
        "size": None,
    },
    "classify": {"image": "", "model": "cifar10-vit", "recipe": "none"},
}
# Recipes that take hold of the same parts: samplers, the halves of guidance, weights, caches, precision.
MIXED = [
    *(
        {"recipe": recipe, "seed": seed, "count": 2}
        for seed, recipe in enumerate(
            [
                "dpm(steps=8)",
                "none",
                "unipc(steps=5)",
                "heun(steps=4)",
                "distilled(steps=4)",
                "guidance-cutoff + dpm(steps=8)",
                "firstblock + ddim(steps=12)",
                "guidance-window + unipc(steps=6)",
                "bf16 + dpm(steps=6)",
                "taylor + ddim(steps=12)",
            ]
        )
    ),
    *({"recipe": recipe, "seed": 7, "count": 2, "model": "cifar10-unet"} for recipe in ("dpm(steps=6)", "deepcache + ddim(steps=12)")),
]
STEPS_OF_STOCK = 20


def body(name: str, values: dict[str, Any]) -> bytes:
    """The JSON of a call by name."""
    return json.dumps({"data": list((ORDER[name] | values).values())}).encode()


def begin(http: httpx.Client, name: str, values: dict[str, Any]) -> httpx.Response:
    """Sends a request; the answer has its number, or the reason why not."""
    return http.post(f"/gradio_api/call/{name}", content=body(name, values), headers={"content-type": "application/json"})


def events(http: httpx.Client, name: str, number: str) -> Iterator[tuple[str, Any]]:
    """(kind, value) of all that the server has to say of a request; closing it is leaving."""
    with http.stream("GET", f"/gradio_api/call/{name}/{number}") as stream:
        kind = ""
        for line in stream.iter_lines():
            if line.startswith("event:"):
                kind = line[7:]
            elif line.startswith("data:") and kind != "heartbeat":
                yield kind, json.loads(line[6:])


def ask(http: httpx.Client, name: str, values: dict[str, Any]) -> dict[str, Any]:
    """The result of a request that is good."""
    answer = begin(http, name, values)
    answer.raise_for_status()
    kind, value = "", None
    for kind, value in events(http, name, answer.json()["event_id"]):  # noqa: B007 - the last one is wanted
        pass
    if kind != "complete":
        raise RuntimeError(f"{name}({values}) ended with {kind}: {value}")
    return value[0]


@cache
def index_of(url: str, name: str) -> int:
    """The number of the function behind a name, which a cancellation must say."""
    found = httpx.get(f"{url}/config", timeout=60).json()["dependencies"]
    return next(int(part["id"]) for part in found if part["api_name"] == name)


def cancel(http: httpx.Client, number: str) -> None:
    """Cancels a call of /generate by its number."""
    index = index_of(str(http.base_url).rstrip("/"), "generate")
    http.post("/gradio_api/cancel", json={"session_hash": number, "fn_index": index, "event_id": number}).raise_for_status()


def fingerprint(result: dict[str, Any]) -> str:
    """The pictures, to the bit."""
    return hashlib.sha256("".join(result["pictures"]).encode()).hexdigest()


class Tally:
    """What happened to all visitors together."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.codes, self.outcomes = Counter[int](), Counter[str]()
        self.errors: list[str] = []
        self.waited: list[float] = []

    def note(self, code: int | None = None, outcome: str | None = None, error: str | None = None, waited: float | None = None) -> None:
        """Counts one thing."""
        with self.lock:
            self.codes.update([] if code is None else [code])
            self.outcomes.update([] if outcome is None else [outcome])
            self.errors += [] if error is None else [error[:300]]
            self.waited += [] if waited is None else [waited]


def visit(url: str, until: float, dice: random.Random, alone: list[str], tally: Tally) -> None:
    """One visitor: asks again and again; a tenth of the times leaves half-way, a tenth cancels; told that it is busy, waits a little."""
    with httpx.Client(base_url=url, timeout=120) as http:
        while time.perf_counter() < until:
            index, start = dice.randrange(len(MIXED)), time.perf_counter()
            try:
                answer = begin(http, "generate", MIXED[index] | {"steps": STEPS_OF_STOCK})
                tally.note(code=answer.status_code)
                if answer.status_code == 200:
                    mood = dice.random()
                    stay(
                        http,
                        answer.json()["event_id"],
                        alone[index],
                        "leaves" if mood < 0.1 else "cancels" if mood < 0.2 else "waits",
                        tally,
                    )
                    tally.note(waited=time.perf_counter() - start)
                elif answer.status_code == 503:
                    time.sleep(1 + dice.random())
                else:
                    tally.note(error=answer.text)
            except (httpx.TransportError, ValueError) as error:
                tally.note(error=f"{type(error).__name__}: {error}")
            time.sleep(dice.random())


def stay(http: httpx.Client, number: str, wanted: str, mood: str, tally: Tally) -> None:
    """Follows a request as far as the visitor's mood lasts, and judges what it got."""
    kind, value = "", None
    for kind, value in events(http, "generate", number):
        if kind == "generating" and mood != "waits" and value[0].get("done"):
            break
    if kind == "error":
        tally.note(error=json.dumps(value))
    elif kind == "complete" and value and "pictures" in value[0]:
        tally.note(outcome="right" if fingerprint(value[0]) == wanted else "wrong")
    elif mood == "cancels":
        cancel(http, number)
        tally.note(outcome="cancelled")
    else:
        tally.note(outcome="left" if mood == "leaves" else "no pictures", error=None if mood == "leaves" else f"{kind} without pictures")


def health(url: str, done: threading.Event, times: list[float]) -> None:
    """Asks /healthz four times a second."""
    with httpx.Client(base_url=url, timeout=60) as http:
        while not done.wait(0.25):
            start = time.perf_counter()
            http.get("/healthz").raise_for_status()
            times.append(time.perf_counter() - start)


def load(url: str, amounts: dict[str, Any]) -> dict[str, Any]:
    """Many visitors at once; first each request of theirs alone."""
    with httpx.Client(base_url=url, timeout=300) as http:
        alone = [fingerprint(ask(http, "generate", values | {"steps": STEPS_OF_STOCK})) for values in MIXED]
    tally, done, times = Tally(), threading.Event(), list[float]()
    until = time.perf_counter() + amounts["seconds"]
    watch = threading.Thread(target=health, args=(url, done, times))
    crowd = [
        threading.Thread(target=visit, args=(url, until, random.Random(number), alone, tally)) for number in range(amounts["visitors"])
    ]
    for thread in (watch, *crowd):
        thread.start()
    for thread in crowd:
        thread.join()
    done.set()
    watch.join()
    ordered = sorted(times)
    return {
        "visitors": amounts["visitors"],
        "seconds": amounts["seconds"],
        "recipes": len(MIXED),
        "right": tally.outcomes["right"],
        "wrong": tally.outcomes["wrong"],
        "outcomes": dict(tally.outcomes),
        "codes": {str(code): count for code, count in sorted(tally.codes.items())},
        "errors": tally.errors[:20],
        "waited_median_s": statistics.median(tally.waited) if tally.waited else None,
        "health": {
            "n": len(ordered),
            "p50_ms": 1000 * ordered[len(ordered) // 2],
            "p95_ms": 1000 * ordered[int(len(ordered) * 0.95)],
            "worst_ms": 1000 * ordered[-1],
        },
    }


def cancels(url: str, count: int) -> dict[str, Any]:
    """Requests of 50 calls that are cancelled at once; afterwards how long a short one waits for the worker."""
    dice, codes = random.Random(0), Counter[int]()
    with httpx.Client(base_url=url, timeout=120) as http:
        start = time.perf_counter()
        for _ in range(count):
            answer = begin(http, "generate", LONG)
            codes[answer.status_code] += 1
            if answer.status_code == 200:
                time.sleep(dice.random() * 0.05)
                cancel(http, answer.json()["event_id"])
        spent, start = time.perf_counter() - start, time.perf_counter()
        ask(http, "generate", DEFAULTS | {"recipe": "dpm(steps=1)", "count": 1})
        return {
            "n": count,
            "codes": {str(code): n for code, n in codes.items()},
            "seconds": spent,
            "free_after_s": time.perf_counter() - start,
        }
