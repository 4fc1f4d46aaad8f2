"""The server under attack: what is wrong, too large or a bomb is refused with a reason, and nothing beside the named endpoints is open.

The requests are those of eval/demo_hostile.py and eval/demo_visitors.py, fewer of them; VIS_ACCEL_FUZZ=10000 sets the number. Everything
stays on loopback.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason="needs the extra app")

import httpx

from vis_accel.app.middleware import open_to_visitors
from vis_accel.app.server import refuse_environment
from vis_accel.app.settings import Settings
from vis_accel.errors import UsageError

with pytest.MonkeyPatch.context() as patch:  # and off the path again: eval has a precision.py, the tests a folder of that name
    patch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "eval"))
    import demo
    import demo_hostile
    import demo_visitors

DEFAULTS = demo_visitors.DEFAULTS | {"recipe": "dpm(steps=3)", "count": 1}


@pytest.fixture(scope="module")
def http(server: Any) -> Any:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def resident() -> float:
    from vis_accel.eval.counters import _resident

    return _resident() / 1e6


def test_fuzzed_requests_are_refused_with_a_reason(server: Any, http: Any) -> None:
    demo_hostile.fuzz(server.url, 40)
    before = resident()
    found = demo_hostile.fuzz(server.url, int(os.environ.get("VIS_ACCEL_FUZZ", "160")))
    assert found["odd"] == []
    assert {int(code) // 100 for code in found["codes"]} == {4}
    assert demo_visitors.ask(http, "generate", DEFAULTS)["calls"] == 3
    assert resident() < before * 1.05 + 30


def test_bombs_cost_nothing(server: Any) -> None:
    made = demo_hostile.bombs_made()
    assert max(map(len, made.values())) < 1_000_000
    before = resident()
    found = demo_hostile.bombs(server.url)
    assert set(found["codes"].values()) == {422}
    assert found["odd"] == []
    assert found["slowest_s"] < 5
    assert found["honest_requests"] > 0
    assert resident() - before < 100


def test_large_bodies_are_refused(server: Any) -> None:
    found = demo_hostile.bodies(server.url)
    assert found["odd"] == []
    assert {name: code for name, code in found["codes"].items() if code != 413 and "/nothing" not in name} == {
        "60 MB in pieces to /gradio_api/upload": 400,  # refused unread: it does not say that it is a form
    }


def test_rapid_cancels_free_the_worker(server: Any) -> None:
    found = demo_visitors.cancels(server.url, int(os.environ.get("VIS_ACCEL_CANCELS", "12")))
    assert set(found["codes"]) <= {"200", "503"}
    assert found["free_after_s"] < 10  # 3 on a quiet machine: eval/results/demo.json
    assert len(server.blocks._queue.event_queue_per_concurrency_id["model"].queue) == 0


def test_what_is_not_named_is_closed() -> None:
    inner = ("queue/join", "queue/data", "call/generate", "call/compare/abc", "file=x", "upload", "heartbeat/abc")
    needed = ("/", "/config", "/assets/x.js", *(f"/gradio_api/{path}" for path in inner))
    assert [path for path in needed if not open_to_visitors(path)] == []
    inner = ("deep_link", "vibe-edit", "proxy=http://x", "call/v2/generate", "call/generated", "process_recording", "stream/x", "runs", "")
    closed = ("/monitoring", "/docs", "/gradio_api", *(f"/gradio_api/{path}" for path in inner))
    assert [path for path in closed if open_to_visitors(path)] == []


def test_a_pattern_lets_no_name_climb_out_of_its_folder() -> None:
    settings = Settings(allow_model=("/models/*", "owner/*"))
    assert settings.allows("/models/a")
    assert settings.allows("owner/a")
    for name in ("/models/../etc/x", "/models/a/../../etc", "owner/..", "/models/..\\x", "/models/\0", "/etc/x"):
        assert not settings.allows(name)


def test_goals_that_are_missed_are_named() -> None:
    good = {"memory": {"end_over_settled": 1.0}, "served_afterwards": True, "odd": [], "codes": {"422": 9}}
    assert demo.misses({"ready": {"seconds": [9.0]}, "first": {"worst_s": 1.0}, "fuzz": good}) == []
    bad = {**good, "memory": {"end_over_settled": 1.06}, "codes": {"500": 1}}
    assert demo.misses({"ready": {"seconds": [9.0, 16.0]}, "first": {"worst_s": 4.0}, "fuzz": bad}) == [
        "ready: the page within 15 s of a cold start",
        "first: the first picture within 3 s",
        "fuzz: each a 4xx with a reason",
        "fuzz: memory at the end at most 1.05 x",
    ]


@pytest.mark.parametrize(
    "image", ["", "x", "data:image/svg+xml,<svg/>", "/etc/passwd", "file:///etc/passwd", None, 3, {"path": "/etc/passwd"}]
)
def test_what_is_no_picture_is_refused_before_it_waits(http: Any, image: Any) -> None:
    answer = http.post("/gradio_api/call/classify", json={"data": [image, "cifar10-vit", "none"]})
    assert answer.status_code == 422
    assert any(not part["is_valid"] and part["message"].startswith("image") for part in answer.json()["detail"])


@pytest.mark.parametrize("path", ["/gradio_api/run/generate", "/gradio_api/api/generate", "/gradio_api/run/predict"])
def test_the_raw_run_endpoints_are_closed(http: Any, path: str) -> None:
    assert http.post(path, json={"data": []}).status_code == 404


def test_no_event_runs_directly_by_its_number(server: Any, http: Any) -> None:
    answers = {http.post("/gradio_api/run/predict", json={"data": [], "fn_index": index}).status_code for index in server.blocks.fns}
    assert answers == {404}


@pytest.mark.parametrize("body", ["", "x", "[]", "null", '{"data": 3}', '{"data": []}', '{"data": [1]}', '{"nothing": 1}', "{" * 5000])
def test_broken_bodies_are_refused(http: Any, body: str) -> None:
    for path in ("/gradio_api/call/generate", "/gradio_api/queue/join"):
        answer = http.post(path, content=body, headers={"content-type": "application/json"})
        assert 400 <= answer.status_code < 500


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "../../etc/passwd", "..%2f..%2fetc%2fpasswd", "%2fetc%2fpasswd", "C:\\Windows\\win.ini", "http://169.254.169.254/", "file:///etc/passwd",
     "pyproject.toml", "app.py", "/proc/self/environ"],
)  # fmt: skip
def test_no_path_reaches_the_file_system(http: Any, path: str) -> None:
    assert http.get(f"/gradio_api/file={path}").status_code in (403, 404)


def test_a_picture_by_path_is_refused_on_the_page_too(server: Any, http: Any) -> None:
    index = next(
        index for index, fn in server.blocks.fns.items() if fn.concurrency_id == "model" and len(fn.inputs) == 3 and fn.name == "_run"
    )
    for path in ("/etc/passwd", "/proc/self/environ", "http://169.254.169.254/x.png"):
        picture = {"path": path, "meta": {"_type": "gradio.FileData"}}
        body = {"data": ["cifar10-vit", "none", picture], "fn_index": index, "session_hash": "s"}
        assert 400 <= http.post("/gradio_api/queue/join", json=body).status_code < 500


@pytest.mark.parametrize("name", ["GRADIO_SHARE", "GRADIO_MCP_SERVER", "GRADIO_VIBE_MODE", "GRADIO_ALLOWED_PATHS"])
def test_variables_that_open_a_door_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "True")
    with pytest.raises(UsageError, match=name):
        refuse_environment()
    monkeypatch.setenv(name, "0")
    refuse_environment()


def test_the_upload_quota_is_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    from vis_accel.app.middleware import Guard

    guard = Guard(None, Settings(upload_quota=10_000), None)
    assert [guard._may_upload(4000) for _ in range(3)] == [True, True, False]
    clock = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: clock + 601)
    assert guard._may_upload(4000)
