"""What `apply` returns: the one way a method changes a target, and the way back.

    with Handle.building(pipe, "dpm(steps=12)") as handle:          # whatever fails inside is undone before the error leaves
        handle.swap_attribute(pipe, "scheduler", adapter)
        handle.swap_forward(block, forward)
        handle.add_hook(lambda: block.register_forward_hook(hook))
    return handle

Every change is a pair, do and undo. `remove()` runs the undos last to first, all of them even if one fails; `suspend()` and `resume()`
run them and run the changes again, which takes microseconds whatever it cost to make what is swapped in. A key that was not there before
is deleted again, so nothing stays on the target; which handles lie on which target is kept here, outside it.

Order. Handles on one target are a stack: one can be removed or suspended only when no other was put on top of it, and resumed only when
exactly those handles are active that were when it was made. What would be restored in another order is somebody else's change.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from vis_accel.errors import RunError, UsageError
from vis_accel.swaps import Change, run_all, set_attribute, set_item

if TYPE_CHECKING:
    from typing_extensions import Self

# The handles on each target, oldest first, by the target's id. The references are weak: a handle that nobody holds can no longer be
# removed, so its change has become part of the target. A live handle keeps its target alive, so an id is not reused under it.
_stacks: dict[int, list[weakref.ref[Handle]]] = {}
_lock = threading.RLock()


class Removable(Protocol):
    """What PyTorch's `register_*_hook` return."""

    def remove(self) -> None: ...


class Handle:
    """The changes one method (or one recipe) made to one target.

    Args:
        target: the object accelerated; handles on the same object form a stack.
        label: what to call it in messages: the method's text.
    """

    def __init__(self, target: Any, label: str) -> None:
        self.target = target
        self.label = label
        self.children: tuple[Handle, ...] = ()
        self._changes: list[Change] = []
        self._at_end: list[Callable[[], object]] = []
        self._reporters: list[Callable[[], Mapping[str, Any]]] = []
        self._state = "active"  # "suspended", "removed", "adopted"
        self._freed: str | None = None  # the label of the method that freed its originals
        with _lock:
            self._base = [weakref.ref(handle) for handle in _stack(target) if handle.active]
            reference = weakref.ref(self, _forget(id(target)))
            _stacks[id(target)] = [*_stacks.get(id(target), []), reference]

    @classmethod
    @contextlib.contextmanager
    def building(cls, target: Any, label: str, *, keep_original: bool = True) -> Iterator[Self]:
        """A new handle to make changes through; if the block fails, they are undone and the error goes on.

        Args:
            target, label: as for the class.
            keep_original: False frees the originals once the block has succeeded; `remove()` is then impossible, and says so.
        """
        handle = cls(target, label)
        try:
            yield handle
        except BaseException as error:
            handle._abandon(error)
            raise
        if not keep_original:
            handle.free_originals()

    @classmethod
    def compose(cls, target: Any, label: str, steps: Iterable[Callable[[], Handle]]) -> Self:
        """One handle for several: calls each step, which applies a method to `target`; if one fails, the earlier ones are undone."""
        with cls.building(target, label) as whole:
            for step in steps:
                whole.adopt(step())
        return whole

    @property
    def active(self) -> bool:
        """Whether the changes are in place."""
        return self._state == "active"

    @property
    def removed(self) -> bool:
        """Whether the changes were undone for good."""
        return self._state == "removed"

    # Making changes

    def swap(self, do: Callable[[], Callable[[], object]]) -> None:
        """Makes the change `do()`, which returns its own undo; both are run again by `suspend` and `resume`, so both must be cheap."""
        self._require("active", "change the target through")
        self._changes.append(Change(do))

    def swap_attribute(self, obj: Any, name: str, value: Any) -> None:
        """Sets `obj.name = value` by assignment; undone by assignment, or by deletion if the object itself had no such attribute."""
        self.swap(lambda: set_attribute(obj, name, value))

    def swap_item(self, mapping: Any, key: Any, value: Any) -> None:
        """Sets `mapping[key] = value`, of a mapping or a mutable sequence; the undo deletes a key that did not exist."""
        self.swap(lambda: set_item(mapping, key, value))

    def swap_forward(self, module: Any, forward: Callable[..., Any]) -> None:
        """Lets `forward` answer calls of `module`; afterwards the module has no `forward` of its own again, if it had none."""
        self.swap_item(vars(module), "forward", forward)

    def add_hook(self, register: Callable[[], Removable]) -> None:
        """Registers a hook: `handle.add_hook(lambda: module.register_forward_hook(hook))`."""
        self.swap(lambda: register().remove)

    def at_end(self, action: Callable[[], object]) -> None:
        """Runs `action` at removal only, after the undos: to close a file, to free a buffer."""
        self._require("active", "change the target through")
        self._at_end.append(action)

    def reports(self, facts: Callable[[], Mapping[str, Any]]) -> None:
        """Lets `facts` say what happened in the runs so far, for `report`: how many images left by which exit.

        A method that turns out to have done nothing gives the reason under "no effect", which a benchmark takes for an error.
        """
        self._reporters.append(facts)

    def report(self) -> dict[str, Any]:
        """What the methods of this handle have to say of the runs so far; empty for most."""
        found: dict[str, Any] = {}
        for part in (*(facts() for facts in self._reporters), *(child.report() for child in self.children)):
            found |= part
        return found

    def adopt(self, child: Handle) -> None:
        """Takes over the changes of `child`, the topmost handle on the same target, which can no longer be removed by itself."""
        self._require("active", "change the target through")
        child._require("active", "adopt")
        if child.target is not self.target:
            raise UsageError(f"Cannot adopt {child.label!r} into {self.label!r}: it lies on another target.")
        child._refuse_under("adopt", {child})
        self._changes += child._changes
        self._at_end += child._at_end
        self._freed = self._freed or child._freed
        self.children += (child,)
        child._leave("adopted")

    def free_originals(self) -> None:
        """Forgets what the changes replaced, so that its memory is free; from then on the handle cannot be removed or suspended."""
        self._require("active", "free the originals of")
        self._changes.clear()
        self._freed = self.label

    # Taking them back

    def remove(self) -> None:
        """Undoes everything, last change first. Does nothing the second time.

        All undos run even if one fails; the first error is then raised.

        Raises:
            UsageError: if another handle lies on top, if the originals were freed, or if the handle belongs to another one.
        """
        with _lock:
            if self._state == "removed":
                return
            self._refuse_change("remove")
            self._refuse_under("remove", {self})
            self._leave("removed")
        self._undo_all()

    def suspend(self) -> None:
        """Takes the changes back for a while, in microseconds; does nothing if they are.

        Raises:
            UsageError: as `remove`.
        """
        with _lock:
            if self._state == "suspended":
                return
            self._require("active", "suspend")
            self._refuse_change("suspend")
            self._refuse_under("suspend", {self}, active=True)
            self._state = "suspended"
            run_all(change.back for change in reversed(self._changes))

    def resume(self) -> None:
        """Puts suspended changes in place again; does nothing if they are.

        Raises:
            UsageError: if other handles are active than when this one was made.
        """
        with _lock:
            if self._state == "active":
                return
            self._require("suspended", "resume")
            base = [handle for reference in self._base if (handle := reference()) is not None and not handle.removed]
            now = [handle for handle in _stack(self.target) if handle.active]
            if now != base:
                raise UsageError(f"Cannot resume {self.label!r}: it was put on {_labels(base)}, but now {_labels(now)} is active.")
            try:
                for change in self._changes:
                    change.forward()
            except BaseException:
                run_all(change.back for change in reversed(self._changes))
                raise
            self._state = "active"

    def __enter__(self) -> Self:
        self._refuse_change("leave the with-block of")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.remove()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.label!r} on {type(self.target).__name__}, {self._state}>"

    def _undo_all(self) -> None:
        undos = [change.back for change in reversed(self._changes)]
        ends = list(reversed(self._at_end))
        self._changes, self._at_end = [], []
        run_all([*undos, *ends])

    def _abandon(self, error: BaseException) -> None:
        """Undoes what a failed block had done; an error that leaves the target changed says so."""
        with _lock:
            self._leave("removed")
        try:
            self._undo_all()
        except Exception as failure:
            raise RunError(
                f"{self.label} could not be applied ({error}), and undoing what it had done failed too: {failure}",
                hint="load the model again",
            ) from error
        if self._freed and isinstance(error, Exception):
            message = f"{self.label} could not be applied ({error}), and {self._freed} had already freed the original weights."
            raise RunError(message, hint="load the model again") from error

    def _leave(self, state: str) -> None:
        self._state = state
        stack = [reference for reference in _stacks.get(id(self.target), []) if reference() is not self]
        _stacks[id(self.target)] = stack
        if not stack:
            del _stacks[id(self.target)]

    def _require(self, state: str, verb: str) -> None:
        if self._state != state:
            owner = "was adopted by the handle of its recipe" if self._state == "adopted" else f"is {self._state}"
            raise UsageError(f"Cannot {verb} {self.label!r}: it {owner}.")

    def _refuse_change(self, verb: str) -> None:
        if self._state == "adopted":
            self._require("active", verb)
        if self._freed:
            raise UsageError(
                f"Cannot {verb} {self.label!r}: {self._freed!r} freed its originals (keep_original=False).",
                hint="load the model again, or apply the method with keep_original=True",
            )

    def _refuse_under(self, verb: str, own: set[Handle], *, active: bool = False) -> None:
        above = [handle for handle in _stack(self.target) if handle not in own and any(below() is self for below in handle._base)]
        above = [handle for handle in above if handle.active or not active]
        if above:
            mend = f"remove {_labels(reversed(above))} first" if verb == "remove" else f"{verb} or remove {_labels(reversed(above))} first"
            raise UsageError(f"Cannot {verb} {self.label!r} under {above[-1].label!r}: {mend}.")


def _stack(target: Any) -> list[Handle]:
    return [handle for reference in _stacks.get(id(target), []) if (handle := reference()) is not None]


def _forget(key: int) -> Callable[[weakref.ref[Handle]], None]:
    def forget(reference: weakref.ref[Handle]) -> None:
        with _lock:
            stack = [other for other in _stacks.get(key, []) if other is not reference]
            if stack:
                _stacks[key] = stack
            else:
                _stacks.pop(key, None)

    return forget


def _labels(handles: Iterable[Handle]) -> str:
    return ", ".join(repr(handle.label) for handle in handles) or "nothing"
