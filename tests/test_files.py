"""Files are whole or as they were, and the error says why."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vis_accel import files
from vis_accel.errors import OutputError
from vis_accel.files import SUFFIX, write_atomic


def failing(code: int) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


def strays(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.endswith(SUFFIX)]


def test_text_and_bytes_are_written_with_their_folder(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "card.json"
    write_atomic(path, "é\n")
    assert path.read_bytes() == b"\xc3\xa9\n"
    write_atomic(str(path), b"\0")
    assert path.read_bytes() == b"\0"
    assert strays(path.parent) == []


@pytest.mark.parametrize("function", ["fsync", "replace", "open"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_failure_leaves_the_old_file_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, code: int) -> None:
    path = tmp_path / "card.json"
    path.write_text("old")
    with monkeypatch.context() as patch:
        patch.setattr(os, function, failing(code))
        with pytest.raises(OutputError) as caught:
            write_atomic(path, "new")
    assert str(path) in caught.value.message
    assert os.strerror(code) in caught.value.message
    assert "MB are free there; 3 bytes were to be written" in caught.value.message
    assert caught.value.hint
    assert path.read_text() == "old"
    assert strays(tmp_path) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interrupt_leaves_the_old_file_and_no_stray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]) -> None:
    path = tmp_path / "card.json"
    path.write_text("old")

    def interrupt(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupt)
        with pytest.raises(error):
            write_atomic(path, "new")
    assert path.read_text() == "old"
    assert strays(tmp_path) == []


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file" / "card.json", tmp_path / "file" / "deeper" / "card.json"):
        with pytest.raises(OutputError, match=r"card\.json") as caught:
            write_atomic(path, "new")
        assert caught.value.hint == "a part of that path is a file: choose another folder"


def test_a_folder_where_the_file_should_be(tmp_path: Path) -> None:
    (tmp_path / "card.json").mkdir()
    with pytest.raises(OutputError, match="Is a directory"):
        write_atomic(tmp_path / "card.json", "new")
    assert strays(tmp_path) == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_read_only(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="Permission denied"):
        write_atomic(tmp_path / "card.json", "new")
    tmp_path.chmod(0o700)


def test_links_are_followed_and_permissions_kept(tmp_path: Path) -> None:
    real, link = tmp_path / "real.json", tmp_path / "link.json"
    real.write_text("old")
    real.chmod(0o640)
    link.symlink_to(real)
    write_atomic(link, "new")
    assert link.is_symlink()
    assert real.read_text() == "new"
    assert stat.S_IMODE(real.stat().st_mode) == 0o640


def test_a_long_name_is_no_problem(tmp_path: Path) -> None:
    write_atomic(tmp_path / ("n" * 250), "x")
    write_atomic(tmp_path / ("é" * 120), "x")


def test_strays_of_dead_writers_are_swept_and_others_are_not(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    names = {
        "dead": f".card.json.{files._host()}-{dead.pid}-aa{SUFFIX}",
        "alive": f".card.json.{files._host()}-{os.getpid()}-aa{SUFFIX}",
        "elsewhere": f".card.json.00000000-1-aa{SUFFIX}",
        "old": f".card.json.00000000-1-bb{SUFFIX}",
        "odd": f".card{SUFFIX}",
    }
    for name in names.values():
        (tmp_path / name).write_text("")
    long_ago = time.time() - files.STALE_SECONDS - 60
    os.utime(tmp_path / names["old"], (long_ago, long_ago))
    write_atomic(tmp_path / "card.json", "new")
    assert sorted(strays(tmp_path)) == sorted(names[key] for key in ("alive", "elsewhere", "odd"))


def test_a_writer_killed_at_any_moment_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "card.json"
    code = f"""
from vis_accel.files import write_atomic
n = 0
while True:
    n = (n + 1) % 10
    write_atomic({str(path)!r}, str(n) * 200_000)
"""
    for attempt in range(6):
        writer = subprocess.Popen([sys.executable, "-c", code])
        seen = path.stat().st_mtime_ns if path.exists() else 0
        while not path.exists() or path.stat().st_mtime_ns == seen:
            time.sleep(0.002)
        time.sleep(0.003 * attempt)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        text = path.read_text()
        assert text == text[0] * 200_000
    write_atomic(path, "done")
    assert strays(tmp_path) == []
