"""One thread for each model, and tasks that can be followed and stopped.

    task = worker.start(lambda task: ...)       runs in the model's own thread
    for update in task.follow():                the newest update, at most a few a second; ends with the task
        ...
    task.result

Whoever follows a task decides its life: when the follower is closed, or has not asked for a while (a visitor who left), it ends at its
next `check`, which generation makes before every evaluation of the network. All workers share one turn, since two models that ran at
once would spoil each other's times.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any

__all__ = ["Stopped", "Task", "Worker"]

PATIENCE = 2.5  # seconds without anybody asking after which a task is given up
PERIOD = 0.1  # seconds between two looks at a task
SAME = 0.5  # seconds after which an update that has not changed is given again: a page that hears nothing cannot be found to be gone
_turn = threading.Lock()


class Stopped(Exception):
    """The task was cancelled, or nobody follows it any more."""


class Task:
    """One request's work.

    Args:
        work: does it; is given the task, to report to and to check.
    """

    def __init__(self, work: Callable[[Task], Any]) -> None:
        self.work = work
        self.result: Any = None
        self.error: BaseException | None = None
        self.update: Any = None
        self.asked = time.monotonic()
        self.done = threading.Event()
        self._cancelled = threading.Event()

    def check(self) -> None:
        """Raises Stopped if the work is no longer wanted."""
        if self._cancelled.is_set() or time.monotonic() - self.asked > PATIENCE:
            raise Stopped

    def report(self, update: Any) -> None:
        """Lets the follower see `update`; of several between two looks, the newest."""
        self.update = update

    def cancel(self) -> None:
        """Ends the work at its next check."""
        self._cancelled.set()

    def follow(self) -> Generator[Any, None, None]:
        """Yields the newest update (None before the first) until the work is done; raises what the work raised.

        Closing the generator cancels the work.
        """
        try:
            ready = False
            while not ready:
                ready = self.done.wait(PERIOD)
                self.asked = time.monotonic()
                if not ready:
                    yield self.update
        finally:
            self.cancel()
        if self.error is not None:
            raise self.error

    async def watch(self) -> AsyncGenerator[Any, None]:
        """`follow` for a server. Its waiting can be interrupted, so it ends at once when the visitor cancels or leaves."""
        given, since = object(), 0.0
        try:
            while not self.done.is_set():
                await asyncio.sleep(PERIOD)
                self.asked = now = time.monotonic()
                update = self.update
                if not self.done.is_set() and (update is not given or now - since > SAME):
                    given, since = update, now
                    yield update
        finally:
            self.cancel()
        if self.error is not None:
            raise self.error

    def run(self) -> None:
        """Does the work; for the worker."""
        try:
            with _turn:
                self.check()
                self.result = self.work(self)
        except BaseException as error:  # handed to the follower, whatever it is
            self.error = error
        finally:
            self.done.set()


class Worker:
    """A thread that does tasks one after the other."""

    def __init__(self, name: str) -> None:
        self._tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._loop, name=f"model {name}", daemon=True)
        self._thread.start()

    def start(self, work: Callable[[Task], Any]) -> Task:
        """Hands in a task."""
        task = Task(work)
        self._tasks.put(task)
        return task

    def close(self) -> None:
        """Ends the thread after the tasks handed in so far."""
        self._tasks.put(None)

    def _loop(self) -> None:
        while (task := self._tasks.get()) is not None:
            task.run()
