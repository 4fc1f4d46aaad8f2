"""Requests no honest visitor sends: wrong somewhere, far too large, or pictures that are bombs. Used by demo.py."""

from __future__ import annotations

import base64
import io
import json
import random
import struct
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
from demo_visitors import DEFAULTS, ORDER, ask
from PIL import Image

THREADS = 8
JUNK: list[Any] = [
    True,
    -1,
    1.5,
    1e300,
    float("nan"),
    float("-inf"),
    10**400,
    "dpm(",
    "dpm(steps=0)",
    "dpm + heun",
    "tome(r=8)",
    "dpm(steps=1e9)",
    "no-such-method",
    "int8(images='x')",
    "distilled(weights='../../etc/passwd')",
    "x" * 3000,
    "../../etc/passwd",
    "\x00",
    "\ud800",
    [[]],
    {},
    {"path": "/etc/passwd"},
    {"__type__": "update"},
    "<script>",
    "${7*7}",
    "'; drop table",
]
# What is wrong in each field, whatever the others hold.
WRONG: dict[str, list[Any]] = {name: [*JUNK, None, "", [1]] for name in ("model", "recipe", "first", "second")}
WRONG |= {
    "seed": [*JUNK, None, "", 2**31, []],
    "count": [*JUNK, None, 0, 17, "4"],
    "guidance": [*(value for value in JUNK if value != 1.5), 101, "5"],
    "steps": [*JUNK, 0, 101, "10"],
    "size": [*JUNK, 7, 64, 10**6],
    "classes": [*JUNK, 3, "3", [77], [-1], [None], ["cat"], [1.5], list(range(2000))],
    "prompt": [1, 1.5, [], {}, True, "a cat", "x" * 10_000],
    "beside": [*(value for value in JUNK if not isinstance(value, bool)), None, "yes", 1, []],
    "image": [*JUNK, None, "", 3, "data:image/png;base64,AAAA", "data:,x", "A" * 4000],
}
for _name in ("recipe", "first", "second"):
    WRONG[_name].remove("")  # the recipe that changes nothing


def wrong_call(dice: random.Random) -> tuple[str, bytes]:
    """A named call with a wrong field, or several, or a field too few or too many."""
    name = dice.choice(list(ORDER))
    values = dict(ORDER[name])
    for field in dice.sample(list(values), dice.choice((1, 1, 2, 3))):
        values[field] = dice.choice(WRONG[field])
    data = list(values.values())
    if dice.random() < 0.1:
        data = (
            [*data, *dice.choices(JUNK, k=dice.randint(1, 40))]
            if dice.random() < 0.5
            else data[: dice.randrange(len(data) - 3 if name != "classify" else 1)]
        )
    return f"/gradio_api/call/{name}", json.dumps({"data": data}).encode()


def broken_body(dice: random.Random) -> tuple[str, bytes]:
    """Bytes that are no request: cut off, flipped, nested deeply, of another shape."""
    path, good = wrong_call(dice)
    cut = good[: dice.randrange(len(good))]
    flipped = bytearray(good)
    flipped[dice.randrange(10)] ^= 1 << dice.randrange(7)
    shapes = [
        b"",
        b"null",
        b"[]",
        b"7",
        b'{"data": 3}',
        b'{"data": null}',
        b'{"nothing": 1}',
        b"[" * 20_000,
        b'{"data":' * 3000,
        b"\xff\xfe\x00",
    ]
    return dice.choice((path, "/gradio_api/queue/join")), dice.choice([cut, bytes(flipped) + b"}", *shapes])


def wrong_place(dice: random.Random) -> tuple[str, bytes]:
    """A good request where there is nothing, or to an event there is not."""
    places = (
        "run/generate",
        "run/predict",
        "api/generate",
        "api/predict",
        "call/predict",
        "call/_run",
        "call/v2/generate",
        "queue/join",
        "stream/x",
        "proxy=x",
        "vibe-edit",
        "process_recording",
        "component_server",
        "mcp/sse",
        "nothing",
        "run-history/connect",
    )
    numbers = [-1, 10**9, "0", None, 1.5, [], {}, True]
    session = {"session_hash": "x" * dice.randint(1, 50)}
    return f"/gradio_api/{dice.choice(places)}", json.dumps({"data": [], "fn_index": dice.choice(numbers)} | session).encode()


KINDS: list[Callable[[random.Random], tuple[str, bytes]]] = [*[wrong_call] * 7, broken_body, broken_body, wrong_place]


def has_reason(answer: httpx.Response) -> bool:
    """Whether a refusal says why: JSON with a detail, or a line of plain text."""
    if answer.headers.get("content-type", "").startswith("text/plain"):
        return bool(answer.text.strip())
    try:
        detail = answer.json().get("detail")
    except (ValueError, AttributeError):
        return False
    if isinstance(detail, list):
        return any(part.get("message") or part.get("msg") for part in detail)
    return bool(detail)


def fuzz(url: str, count: int) -> dict[str, Any]:
    """Wrong requests from a few connections at once; the same ones each time."""
    codes, odd, lock, longest = Counter[int](), list[str](), threading.Lock(), 0.0

    def send(number: int) -> None:
        nonlocal longest
        dice = random.Random(number)
        with httpx.Client(base_url=url, timeout=120) as http:
            for _ in range(number, count, THREADS):
                path, data = dice.choice(KINDS)(dice)
                answer = http.post(path, content=data, headers={"content-type": "application/json"})
                with lock:
                    codes[answer.status_code] += 1
                    longest = max(longest, answer.elapsed.total_seconds())
                    if not 400 <= answer.status_code < 500 or not has_reason(answer):
                        odd.append(f"{answer.status_code} {path} {data[:300]!r}: {answer.text[:300]}")

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(send, range(THREADS)))  # raises what a thread raised: requests that were never sent are not requests refused
    return {"n": sum(codes.values()), "codes": {str(code): n for code, n in sorted(codes.items())}, "longest_s": longest, "odd": odd[:20]}


def bodies(url: str) -> dict[str, Any]:
    """What is too large, by its announced length and by what arrives."""
    kind = {"content-type": "application/json"}

    def pieces(total: int) -> Iterator[bytes]:
        for _ in range(total // 1_000_000):
            yield b"x" * 1_000_000

    found: dict[str, httpx.Response] = {}
    with httpx.Client(base_url=url, timeout=120) as http:
        for path in ("/gradio_api/call/generate", "/gradio_api/queue/join", "/gradio_api/upload", "/nothing"):
            found[f"60 MB to {path}"] = http.post(path, content=b"x" * 60_000_000, headers=kind)
            try:
                found[f"60 MB in pieces to {path}"] = http.post(path, content=pieces(60_000_000), headers=kind)
            except httpx.WriteError:  # the server had answered, and closed
                continue
        picture = base64.b64encode(bytes(6_500_000)).decode()
        found["9 MB in a picture's place"] = http.post("/gradio_api/call/classify", json={"data": [picture, "cifar10-vit", "none"]})
        found["an upload of 6 MB"] = http.post("/gradio_api/upload", files={"files": ("x.png", bytes(6_000_000))})
    odd = [f"{name}: {answer.text[:200]}" for name, answer in found.items() if not has_reason(answer)]
    return {"codes": {name: answer.status_code for name, answer in found.items()}, "odd": odd}


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bombs_made() -> dict[str, bytes]:
    """Small files whose pictures are large, broken, or none."""

    def saved(side: int, form: str, mode: str = "L") -> bytes:
        data = io.BytesIO()
        Image.new(mode, (side, side)).save(data, form)
        return data.getvalue()

    def claims(side: int, pixels: bytes) -> bytes:
        head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")

    small = saved(32, "PNG", "RGB")
    text = chunk(b"zTXt", b"k\x00\x00" + zlib.compress(bytes(200_000_000), 9))
    return {
        "PNG of 12,000 x 12,000": saved(12_000, "PNG", "1"),
        "JPEG of 9,000 x 9,000": saved(9_000, "JPEG"),
        "WebP of 9,000 x 9,000": saved(9_000, "WEBP"),
        "PNG that claims 2^31 - 1 a side": claims(2**31 - 1, b""),
        "PNG that claims 9,000 and ends": claims(9_000, bytes(1000)),
        "PNG with 200 MB of text": small[:33] + text + small[33:],
        "PNG cut off": small[:60],
        "PNG, bytes flipped": small[:50] + bytes(20) + small[70:],
        "PNG of no lines": claims(0, b""),
        "GIF": saved(32, "GIF"),
        "TIFF": saved(32, "TIFF"),
        "ICO": saved(32, "ICO"),
        "PDF": saved(32, "PDF", "RGB"),
        "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    }


def bombs(url: str) -> dict[str, Any]:
    """Each bomb as a picture to classify, while an honest visitor makes pictures."""
    done, times = threading.Event(), list[float]()

    def honest() -> None:
        with httpx.Client(base_url=url, timeout=120) as http:
            while not done.is_set():
                times.append(ask(http, "generate", DEFAULTS)["seconds"])

    visitor = threading.Thread(target=honest)
    visitor.start()
    with httpx.Client(base_url=url, timeout=120) as http:
        found = {}
        for name, data in bombs_made().items():
            found[name] = http.post("/gradio_api/call/classify", json={"data": [base64.b64encode(data).decode(), "cifar10-vit", "none"]})
    done.set()
    visitor.join()
    odd = [f"{name}: {answer.text[:200]}" for name, answer in found.items() if not has_reason(answer)]
    slowest = max(answer.elapsed.total_seconds() for answer in found.values())
    return {
        "codes": {name: answer.status_code for name, answer in found.items()},
        "odd": odd,
        "slowest_s": slowest,
        "honest_requests": len(times),
    }
