"""The server as a stranger meets it: named endpoints, limits that hold on the raw API, visitors who leave, a line that is full.

VIS_ACCEL_FUZZ=10000 sets the number of fuzzed requests; the default is small. Everything stays on loopback.
"""

from __future__ import annotations

import base64
import json
import os
import random
import threading
import time
from typing import Any

import pytest

pytest.importorskip("gradio", reason="needs the extra app")

import httpx
from gradio_client import Client

from vis_accel.app.server import refuse_environment
from vis_accel.app.settings import BUNDLED, Settings
from vis_accel.errors import UsageError

GOOD = ["cifar10-dit", "dpm(steps=3)", 0, 1, [], "", None, None, None]
LONG = ["cifar10-dit", "none", 0, 8, [], "", None, 60, None]


@pytest.fixture(scope="module")
def http(demo: Any) -> Any:
    with httpx.Client(base_url=demo.url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def client(demo: Any) -> Client:
    return Client(demo.url, verbose=False)


def call(http: Any, name: str, data: Any) -> Any:
    return http.post(f"/gradio_api/call/{name}", content=json.dumps({"data": data}), headers={"content-type": "application/json"})


def result(http: Any, name: str, data: list[Any]) -> tuple[str, Any]:
    """The last event of a call and its value."""
    event = call(http, name, data).json()["event_id"]
    kind, value = "", None
    with http.stream("GET", f"/gradio_api/call/{name}/{event}") as stream:
        for line in stream.iter_lines():
            if line.startswith("event:"):
                kind = line.partition(": ")[2]
            elif line.startswith("data:"):
                value = json.loads(line.partition(": ")[2])
    return kind, value


def idle(demo: Any, seconds: float = 20) -> float:
    """Waits until no model works, and says how long that took."""
    start = time.perf_counter()
    workers = [model.worker for model in map(demo.catalog.loaded, BUNDLED) if model is not None]
    tasks = [worker.start(lambda task: None) for worker in workers]
    assert all(task.done.wait(seconds) for task in tasks)
    return time.perf_counter() - start


def resident() -> float:
    from vis_accel.eval.counters import _resident

    return _resident() / 1e6


def test_generate(client: Client) -> None:
    found = client.predict(model="cifar10-dit", recipe="dpm(steps=3)", seed=3, count=2, api_name="/generate")
    assert (found["calls"], found["nfe"], len(found["pictures"])) == (3, 6.0, 2)
    assert found["pictures"][0].startswith("data:image/png;base64,")
    assert found["command"].startswith("vis-accel generate --model cifar10-dit --recipe 'dpm(steps=3)' --count 2")


def test_compare(client: Client) -> None:
    found = client.predict(first="ddim(steps=6)", second="ddim(steps=2)", count=1, api_name="/compare")
    assert (found["first"]["calls"], found["second"]["calls"], len(found["difference"])) == (6, 2, 1)
    assert found["ratio"]["low"] <= found["ratio"]["value"] <= found["ratio"]["high"]


def test_classify(client: Client) -> None:
    from vis_accel.zoo.labelled import bundled_images

    images = bundled_images("cifar10-vit")
    assert images is not None
    found = client.predict(base64.b64encode(images.read(1)).decode(), recipe="tome(r=4)", api_name="/classify")
    assert len(found["plain"]["top"]) == len(found["fast"]["top"]) == 5
    assert found["stages"][0]["tokens"] == 61


def test_the_endpoints_are_the_three(client: Client) -> None:
    assert sorted(client.view_api(return_format="dict")["named_endpoints"]) == ["/classify", "/compare", "/generate"]


def test_progress_is_streamed(client: Client) -> None:
    job = client.submit(model="cifar10-dit", recipe="ddim(steps=30)", count=4, api_name="/generate")
    seen = list(job)
    assert len(seen) >= 3
    assert [update["done"] for update in seen[:-1]] == sorted(update["done"] for update in seen[:-1])
    assert seen[-1]["calls"] == 30


REFUSED = [
    (["cifar10-dit", "none", 0, 0, [], "", None, None, None], "count"),
    (["cifar10-dit", "none", 0, 9, [], "", None, None, None], "count must be at most 8"),
    (["cifar10-dit", "none", -1, 1, [], "", None, None, None], "seed"),
    (["cifar10-dit", "none", 0, True, [], "", None, None, None], "finite number; got True"),
    (["cifar10-dit", "none", 0, 1, [], "", float("nan"), None, None], "guidance: must be a finite number; got nan"),
    (["cifar10-dit", "none", 0, 1, [], "", None, 1000, None], "steps must be at most 60"),
    (["cifar10-dit", "none", 0, 1, [], "", None, None, 10**9], "size must be at most 2000"),
    (["cifar10-dit", "no-such-method", 0, 1, [], "", None, None, None], "no method named"),
    (["cifar10-dit", "dpm + heun", 0, 1, [], "", None, None, None], "both replace the scheduler"),
    (["/etc/passwd", "none", 0, 1, [], "", None, None, None], "there is no model"),
    (["cifar10-dit", "none", 0, 1, [77], "", None, None, None], "no class 77"),
    ([{"path": "/etc/passwd"}, [], {}, [], "x", 3, "x", "y", "z"], "model"),
]


@pytest.mark.parametrize(("data", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_bad_requests_are_refused_before_they_wait(http: Any, data: list[Any], words: str) -> None:
    answer = call(http, "generate", data)
    assert answer.status_code == 422
    messages = [part["message"] for part in answer.json()["detail"] if not part["is_valid"]]
    assert len(messages) == 1
    assert words in messages[0]


@pytest.mark.parametrize(
    "image", ["", "x", "data:image/svg+xml,<svg/>", "/etc/passwd", "file:///etc/passwd", None, 3, {"path": "/etc/passwd"}]
)
def test_what_is_no_picture_is_refused_before_it_waits(http: Any, image: Any) -> None:
    answer = call(http, "classify", [image, "cifar10-vit", "none"])
    assert answer.status_code == 422
    assert any(not part["is_valid"] and part["message"].startswith("image") for part in answer.json()["detail"])


def test_a_bomb_costs_nothing(http: Any) -> None:
    import io

    from PIL import Image

    data = io.BytesIO()
    Image.new("1", (12_000, 12_000)).save(data, "PNG")
    assert len(data.getvalue()) < 100_000
    before, start = resident(), time.perf_counter()
    answer = call(http, "classify", [base64.b64encode(data.getvalue()).decode(), "cifar10-vit", "none"])
    assert answer.status_code == 422
    assert "4,000,000 pixels" in answer.text
    assert time.perf_counter() - start < 5
    assert resident() - before < 100


@pytest.mark.parametrize("path", ["/gradio_api/run/generate", "/gradio_api/api/generate", "/gradio_api/run/predict"])
def test_the_raw_run_endpoints_are_closed(http: Any, path: str) -> None:
    assert http.post(path, json={"data": GOOD}).status_code == 404


def test_no_event_runs_directly_by_its_number(demo: Any, http: Any) -> None:
    answers = {http.post("/gradio_api/run/predict", json={"data": [], "fn_index": index}).status_code for index in demo.blocks.fns}
    assert answers == {404}


def test_model_events_share_one_line(demo: Any) -> None:
    model = [fn for fn in demo.blocks.fns.values() if fn.concurrency_id == "model"]
    assert len(model) == 6  # three tabs, three endpoints
    assert {fn.concurrency_limit for fn in model} == {1}
    assert all(fn.validator is not None and fn.queue for fn in model)


@pytest.mark.parametrize("body", ["", "x", "[]", "null", '{"data": 3}', '{"data": []}', '{"data": [1]}', '{"nothing": 1}', "{" * 5000])
def test_broken_bodies_are_refused(http: Any, body: str) -> None:
    for path in ("/gradio_api/call/generate", "/gradio_api/queue/join"):
        answer = http.post(path, content=body, headers={"content-type": "application/json"})
        assert 400 <= answer.status_code < 500


def test_large_bodies_are_refused(http: Any) -> None:
    large = call(http, "generate", ["x" * 60_000_000])
    assert large.status_code == 413
    assert "7,000,000 bytes" in large.json()["detail"]

    def chunks() -> Any:
        for _ in range(100):
            yield b"x" * 100_000

    answer = http.post("/gradio_api/call/generate", content=chunks(), headers={"content-type": "application/json"})
    assert 400 <= answer.status_code < 500
    upload = http.post("/gradio_api/upload", files={"files": ("x.png", bytes(6_000_000))})
    assert upload.status_code == 413


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "../../etc/passwd", "..%2f..%2fetc%2fpasswd", "%2fetc%2fpasswd", "C:\\Windows\\win.ini", "http://169.254.169.254/", "file:///etc/passwd",
     "pyproject.toml", "app.py", "/proc/self/environ"],
)  # fmt: skip
def test_no_path_reaches_the_file_system(http: Any, path: str) -> None:
    assert http.get(f"/gradio_api/file={path}").status_code in (403, 404)


def test_a_picture_by_path_is_refused_on_the_page_too(demo: Any, http: Any) -> None:
    index = next(
        index for index, fn in demo.blocks.fns.items() if fn.concurrency_id == "model" and len(fn.inputs) == 3 and fn.name == "_run"
    )
    for path in ("/etc/passwd", "/proc/self/environ", "http://169.254.169.254/x.png"):
        picture = {"path": path, "meta": {"_type": "gradio.FileData"}}
        body = {"data": ["cifar10-vit", "none", picture], "fn_index": index, "session_hash": "s"}
        assert 400 <= http.post("/gradio_api/queue/join", json=body).status_code < 500


def test_headers_and_what_is_not_offered(http: Any) -> None:
    page = http.get("/")
    assert page.status_code == 200
    assert page.headers["x-content-type-options"] == "nosniff"
    assert "frame-ancestors" in page.headers["content-security-policy"]
    assert "access-control-allow-origin" not in http.get("/config", headers={"origin": "https://elsewhere.example"}).headers
    for path in ("/monitoring", "/monitoring/summary", "/gradio_api/mcp/sse"):
        assert http.get(path).status_code in (403, 404)
    assert not [
        name for name in ("gradio.app", "googleapis", "gstatic", "cdnjs", "huggingface.co/datasets") if f'src="https://{name}' in page.text
    ]


def test_a_visitor_who_leaves_frees_the_worker(demo: Any, http: Any) -> None:
    idle(demo)
    event = call(http, "generate", LONG).json()["event_id"]
    with httpx.Client(base_url=demo.url, timeout=10) as visitor, visitor.stream("GET", f"/gradio_api/call/generate/{event}") as stream:
        lines = stream.iter_lines()
        while '"done": 1' not in next(lines) and '"done": 2' not in next(lines):
            pass
    assert idle(demo) < 3


def test_hundreds_of_cancels(demo: Any, client: Client) -> None:
    for _ in range(int(os.environ.get("VIS_ACCEL_CANCELS", "12"))):
        job = client.submit(*LONG, api_name="/generate")
        time.sleep(random.random() * 0.2)
        job.cancel()
    assert idle(demo) < 30
    assert client.predict(*GOOD, api_name="/generate")["calls"] == 3


def test_a_full_line_says_busy_and_the_place(demo: Any, http: Any) -> None:
    idle(demo)
    answers = [call(http, "generate", LONG) for _ in range(8)]
    assert {answer.status_code for answer in answers} == {200, 503}
    busy = next(answer for answer in answers if answer.status_code == 503)
    assert "Yours would be number 4" in busy.json()["detail"]
    assert busy.headers["retry-after"] == "60"
    events = [answer.json()["event_id"] for answer in answers if answer.status_code == 200]
    times = []
    for _ in range(20):
        start = time.perf_counter()
        health = http.get("/healthz")
        times.append(time.perf_counter() - start)
        assert health.json()["status"] == "ok"
    assert sorted(times)[-2] < 1  # the goal of 0.2 s is held on a quiet machine: eval/results
    for event in events:
        http.post("/gradio_api/cancel", json={"session_hash": event, "fn_index": 0, "event_id": event})
    for event in events:  # nobody reads them: they are given up
        with httpx.Client(base_url=demo.url, timeout=30) as reader:
            reader.get(f"/gradio_api/call/generate/{event}")
    idle(demo, 60)
    assert result(http, "generate", GOOD)[0] == "complete"


def test_errors_inside_are_numbered_and_say_nothing_more(demo: Any, http: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise ZeroDivisionError("the secret of /home/operator")

    monkeypatch.setattr("vis_accel.app.making.generate", broken)
    kind, value = result(http, "generate", GOOD)
    assert kind == "error"
    assert "secret" not in json.dumps(value)
    assert "under" in json.dumps(value)


VALUES = [None, True, 0, -1, 1, 3, 1.5, 1e300, float("nan"), float("-inf"), 10**400, "", "none", "dpm", "dpm(steps=2)", "dpm(", "tome(r=8)",
          "x" * 3000, "../../etc", "\x00", "\ud800", [], [1], [[]], {}, {"path": "/etc/passwd"},
          {"__type__": "update"}, "cifar10-dit", "cifar10-unet"]  # fmt: skip


def fuzzed(dice: random.Random) -> tuple[str, list[Any]]:
    name = dice.choice(["generate", "compare", "classify", "nothing"])
    whole = {"generate": GOOD, "compare": ["cifar10-dit", "none", *GOOD[1:]], "classify": ["x", "cifar10-vit", "none"], "nothing": []}[name]
    data = list(whole)
    for _ in range(dice.randint(1, 3)):
        if data and dice.random() < 0.9:
            data[dice.randrange(len(data))] = dice.choice(VALUES)
        else:
            data = data[: dice.randrange(len(data) + 1)] if dice.random() < 0.5 else [*data, dice.choice(VALUES)]
    return name, data


def test_fuzzed_requests_are_refused_or_served(demo: Any, http: Any) -> None:
    dice, codes = random.Random(0), dict[int, int]()
    rounds = int(os.environ.get("VIS_ACCEL_FUZZ", "150"))
    before = resident()
    for index in range(rounds):
        name, data = fuzzed(dice)
        answer = call(http, name, data)
        codes[answer.status_code] = codes.get(answer.status_code, 0) + 1
        assert answer.status_code in (200, 400, 404, 422, 503), (name, data, answer.text[:300])
        if answer.status_code == 200:  # a request that happened to be good
            http.get(f"/gradio_api/call/{name}/{answer.json()['event_id']}")
        if index == rounds // 5:
            before = resident()
    assert codes.get(422, 0) > rounds / 4
    assert http.get("/healthz").status_code == 200
    assert result(http, "generate", GOOD)[0] == "complete"
    assert resident() < before * 1.05 + 30


def test_many_at_once_get_their_own_pictures(demo: Any, client: Client) -> None:
    alone = {seed: client.predict(*_with(seed), api_name="/generate")["pictures"] for seed in range(3)}
    found: list[tuple[int, Any]] = []

    def visit(seed: int) -> None:
        found.append((seed, client.predict(*_with(seed), api_name="/generate")["pictures"]))

    threads = [threading.Thread(target=visit, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert all(pictures == alone[seed] for seed, pictures in found)


def _with(seed: int) -> list[Any]:
    return ["cifar10-dit", "dpm(steps=3)", seed, 2, [], "", None, None, None]


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
