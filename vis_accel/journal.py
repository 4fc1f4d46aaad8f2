"""The rows of a run in progress, one JSON line each, on the disk before the next row starts: a killed run loses only the row in flight.

A row is kept under a key, the hash of everything that determines it, so that the same command finds its rows again and goes on:

    journal = Journal("runs/card.rows.jsonl")
    done = journal.read()
    for facts in plan:
        if (key := row_key(facts)) not in done:
            journal.append(key, measure(facts))
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping
from io import BufferedRandom
from pathlib import Path
from typing import Any

from vis_accel import strict_json
from vis_accel.errors import DataError
from vis_accel.files import write_error
from vis_accel.record import Record


def row_key(facts: Mapping[str, object]) -> str:
    """The hash of what determines a row, the same in every process and for every order of the facts.

    Args:
        facts: plain JSON values: model hash, recipe, n, seeds, reference, settings, versions, commit, machine.
    """
    return hashlib.sha256(strict_json.dumps(strict_json.to_form(facts, "facts"), sort_keys=True).encode()).hexdigest()


class Journal:
    """An append-only file of rows; several processes may share it (on POSIX systems, which can lock it).

    Args:
        path: the file; it and its folder are made at the first append.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def read(self) -> dict[str, Record]:
        """The rows by key, in the order they were measured; a last line that was torn by a kill is dropped.

        Raises:
            DataError: if the file cannot be read, or a line before the last is no row; the message names the line.
        """
        try:
            return self._rows(self.path.read_bytes())
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise DataError(f"Cannot read {self.path}: {error.strerror or error}.") from error

    def append(self, key: str, record: Record) -> bool:
        """Writes a row through to the disk; False if the key has a row already, which then stays.

        Raises:
            OutputError: if it could not be written; the rows before it are as they were.
        """
        line = strict_json.dumps({"key": key, "record": record.to_dict()}).encode() + b"\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._locked() as file:
                return self._append(file, key, line)
        except OSError as error:
            raise write_error(self.path, error, needed=len(line)) from error

    def _append(self, file: BufferedRandom, key: str, line: bytes) -> bool:
        content = file.read()
        if key in self._rows(content):
            return False
        end = content.rfind(b"\n") + 1  # behind the last whole row: what follows was torn by a kill
        try:
            file.truncate(end)
            file.seek(end)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(end)
            raise
        return True

    @contextlib.contextmanager
    def _locked(self) -> Iterator[BufferedRandom]:
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        with os.fdopen(descriptor, "r+b") as file:
            with contextlib.suppress(ImportError):  # Windows has no fcntl: one process at a time there
                import fcntl

                fcntl.flock(file.fileno(), fcntl.LOCK_EX)  # given back when the file is closed
            yield file

    def _rows(self, content: bytes) -> dict[str, Record]:
        rows: dict[str, Record] = {}
        for number, line in enumerate(content.split(b"\n")[:-1], start=1):
            key, record = self._row(number, line)
            rows.setdefault(key, record)
        return rows

    def _row(self, number: int, line: bytes) -> tuple[str, Record]:
        what = f"line {number} of {self.path}"
        try:
            form: Any = strict_json.loads(line.decode(), what, DataError)
        except UnicodeDecodeError:
            raise DataError(f"Cannot read {what}: it is not UTF-8.") from None
        if not isinstance(form, dict) or set(form) != {"key", "record"} or not isinstance(form["key"], str):
            raise DataError(f"Cannot read {what}: it is no row of a card.", hint="move the file away to start afresh")
        return form["key"], Record.from_dict(form["record"], what)
