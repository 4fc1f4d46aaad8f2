"""A journal loses at most the row in flight and never a row that was written."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_record import full, record

from vis_accel.errors import DataError, OutputError, UsageError
from vis_accel.journal import Journal, row_key

FACTS = {"model_hash": "abc", "recipe": "dpm", "n": 5000, "seeds": "0..4999", "versions": {"torch": "2.15"}}


def test_the_key_is_the_content() -> None:
    assert row_key(FACTS) == row_key(dict(reversed(FACTS.items())))
    assert row_key(FACTS) != row_key({**FACTS, "n": 5001})
    assert row_key({"a": (1, 2)}) == row_key({"a": [1, 2]})
    code = f"from vis_accel.journal import row_key; print(row_key({FACTS!r}))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == row_key(FACTS)
    with pytest.raises(UsageError, match=r"facts\.x is nan"):
        row_key({"x": float("nan")})


def test_rows_come_back_in_order_and_once(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "runs" / "rows.jsonl")
    assert journal.read() == {}
    assert journal.append("b", full())
    assert journal.append("a", record())
    assert not journal.append("b", record("other"))
    assert journal.read() == {"b": full(), "a": record()}
    assert list(journal.read()) == ["b", "a"]


def test_a_torn_last_line_is_dropped_and_overwritten(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "rows.jsonl")
    journal.append("a", record("first"))
    whole = journal.path.read_bytes()
    journal.append("b", record("second"))
    both = journal.path.read_bytes()
    for cut in range(len(whole), len(both)):
        journal.path.write_bytes(both[:cut])
        assert list(journal.read()) == ["a"]
    journal.append("c", record("third"))
    assert list(journal.read()) == ["a", "c"]


def test_any_other_line_that_is_no_row_is_an_error(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "rows.jsonl")
    for line in (b"{}", b"x", b"\xff", b'{"key": 1, "record": {}}', b'{"key": "a", "record": {}}', b""):
        journal.path.write_bytes(line + b"\n")
        with pytest.raises(DataError, match="line 1 of"):
            journal.read()


def test_a_failed_write_leaves_the_rows_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path / "rows.jsonl")
    journal.append("a", record())

    def full_disk(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        with pytest.raises(OutputError, match=r"rows\.jsonl: No space left on device"):
            journal.append("b", record())
    assert list(journal.read()) == ["a"]
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        Journal(tmp_path / "file" / "rows.jsonl").append("a", record())
    with pytest.raises(DataError):
        Journal(tmp_path).read()


WRITER = """
import sys
sys.path.insert(0, {tests!r})
from test_record import record
from vis_accel.journal import Journal
journal = Journal({path!r})
print("ready", flush=True)
sys.stdin.readline()
for n in range({rows}):
    journal.append(f"{{sys.argv[1] if n % 2 else 'shared'}}-{{n}}", record("r" * 20_000))
"""


def writer(path: Path, name: str, rows: int) -> subprocess.Popen[str]:
    code = WRITER.format(tests=str(Path(__file__).parent), path=str(path), rows=rows)
    return subprocess.Popen([sys.executable, "-c", code, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def start(process: subprocess.Popen[str]) -> None:
    assert process.stdin
    assert process.stdout
    process.stdout.readline()
    process.stdin.write("\n")
    process.stdin.flush()


def test_processes_share_a_journal(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    writers = [writer(path, name, 10) for name in "abc"]
    for process in writers:
        start(process)
    for process in writers:
        process.communicate()
        assert process.returncode == 0
    assert len(path.read_bytes().splitlines()) == len(Journal(path).read()) == 3 * 5 + 5


def test_a_killed_writer_loses_only_the_row_in_flight(tmp_path: Path) -> None:
    path, before = tmp_path / "rows.jsonl", 0
    for attempt in range(4):
        process = writer(path, f"w{attempt}", 10_000)
        start(process)
        while not path.exists() or path.stat().st_size <= before:
            time.sleep(0.001)
        time.sleep(0.005 * attempt)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        rows = Journal(path).read()
        assert len(rows) == path.read_bytes().count(b"\n")
        Journal(path).append(f"after {attempt}", record())
        assert len(Journal(path).read()) == len(rows) + 1
        before = path.stat().st_size
