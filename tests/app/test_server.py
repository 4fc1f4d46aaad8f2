"""The server as a stranger meets it: named endpoints, limits that hold on the raw API, visitors who leave, a line that is full.

Those who are hostile have a file of their own. Everything stays on loopback.
"""

from __future__ import annotations

import base64
import json
import threading
import time
from typing import Any

import pytest

pytest.importorskip("gradio", reason="needs the extra app")

import httpx
from gradio_client import Client

from vis_accel.app.settings import BUNDLED

GOOD = ["cifar10-dit", "dpm(steps=3)", 0, 1, [], "", None, None, None, False]
LONG = ["cifar10-dit", "none", 0, 8, [], "", None, 60, None, False]


@pytest.fixture(scope="module")
def http(server: Any) -> Any:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def client(server: Any) -> Client:
    return Client(server.url, verbose=False)


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


def idle(server: Any, seconds: float = 20) -> float:
    """Waits until no model works, and says how long that took."""
    start = time.perf_counter()
    workers = [model.worker for model in map(server.catalog.loaded, BUNDLED) if model is not None]
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
    (["cifar10-dit", "none", 0, 0, [], "", None, None, None, False], "count"),
    (["cifar10-dit", "none", 0, 9, [], "", None, None, None, False], "count must be at most 8"),
    (["cifar10-dit", "none", -1, 1, [], "", None, None, None, False], "seed"),
    (["cifar10-dit", "none", 0, True, [], "", None, None, None, False], "finite number; got True"),
    (["cifar10-dit", "none", 0, 1, [], "", float("nan"), None, None, False], "guidance: must be a finite number; got nan"),
    (["cifar10-dit", "none", 0, 1, [], "", None, 1000, None, False], "steps must be at most 60"),
    (["cifar10-dit", "none", 0, 1, [], "", None, None, 10**9, False], "size must be at most 2000"),
    (["cifar10-dit", "no-such-method", 0, 1, [], "", None, None, None, False], "no method named"),
    (["cifar10-dit", "dpm + heun", 0, 1, [], "", None, None, None, False], "both replace the scheduler"),
    (["/etc/passwd", "none", 0, 1, [], "", None, None, None, False], "there is no model"),
    (["cifar10-dit", "none", 0, 1, [77], "", None, None, None, False], "no class 77"),
    ([{"path": "/etc/passwd"}, [], {}, [], "x", 3, "x", "y", "z", False], "model"),
]


@pytest.mark.parametrize(("data", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_bad_requests_are_refused_before_they_wait(http: Any, data: list[Any], words: str) -> None:
    answer = call(http, "generate", data)
    assert answer.status_code == 422
    messages = [part["message"] for part in answer.json()["detail"] if not part["is_valid"]]
    assert len(messages) == 1
    assert words in messages[0]


def test_model_events_share_one_line(server: Any) -> None:
    model = [fn for fn in server.blocks.fns.values() if fn.concurrency_id == "model"]
    assert len(model) == 6  # three tabs, three endpoints
    assert {fn.concurrency_limit for fn in model} == {1}
    assert all(fn.validator is not None and fn.queue for fn in model)


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


def test_a_visitor_who_leaves_frees_the_worker(server: Any, http: Any) -> None:
    idle(server)
    event = call(http, "generate", LONG).json()["event_id"]
    with httpx.Client(base_url=server.url, timeout=10) as visitor, visitor.stream("GET", f"/gradio_api/call/generate/{event}") as stream:
        lines = stream.iter_lines()
        while '"done": 1' not in next(lines) and '"done": 2' not in next(lines):
            pass
    assert idle(server) < 3


def test_a_full_line_says_busy_and_the_place(server: Any, http: Any) -> None:
    idle(server)
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
        with httpx.Client(base_url=server.url, timeout=30) as reader:
            reader.get(f"/gradio_api/call/generate/{event}")
    idle(server, 60)
    assert result(http, "generate", GOOD)[0] == "complete"


def test_errors_inside_are_numbered_and_say_nothing_more(server: Any, http: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise ZeroDivisionError("the secret of /home/operator")

    monkeypatch.setattr("vis_accel.app.making.generate", broken)
    kind, value = result(http, "generate", GOOD)
    assert kind == "error"
    assert "secret" not in json.dumps(value)
    assert "under" in json.dumps(value)


def test_many_at_once_get_their_own_pictures(server: Any, client: Client) -> None:
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
    return ["cifar10-dit", "dpm(steps=3)", seed, 2, [], "", None, None, None, False]
