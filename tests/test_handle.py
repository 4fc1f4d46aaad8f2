"""Handles leave nothing behind: exact undo, last in first out, whatever fails on the way."""

from __future__ import annotations

import gc
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vis_accel import handle as handle_module
from vis_accel.errors import RunError, UsageError
from vis_accel.handle import Handle


class Target:
    shared = "of the class"

    def __init__(self) -> None:
        self.own: object = "mine"
        self.items = {"a": 1}
        self._guarded = 1

    @property
    def guarded(self) -> int:
        return self._guarded

    @guarded.setter
    def guarded(self, value: int) -> None:
        self._guarded = value


def network() -> nn.Sequential:
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.BatchNorm1d(3)).eval()
    net[0].note = "plain"  # type: ignore[assignment]
    return net


def state(module: nn.Module) -> list[Any]:
    """All that hangs on a module and its children, by identity, in order."""
    found: list[Any] = []
    for part in module.modules():
        for key, value in vars(part).items():
            found.append((key, id(value)))
            if isinstance(value, (dict, OrderedDict)):
                found += [(key, name, id(element)) for name, element in value.items()]
    return found


def fail(message: str) -> Callable[[], None]:
    def action() -> None:
        raise ValueError(message)

    return action


def test_an_attribute_comes_back_or_goes() -> None:
    target = Target()
    before = dict(vars(target))
    handle = Handle(target, "dpm")
    for name in ("own", "shared", "new", "guarded"):
        handle.swap_attribute(target, name, 7)
        assert getattr(target, name) == 7
    handle.remove()
    assert vars(target) == before
    assert (target.shared, target.guarded) == ("of the class", 1)
    assert not hasattr(target, "new")


def test_an_item_comes_back_or_goes() -> None:
    target, items = Target(), [1, 2]
    with Handle(target, "dpm") as handle:
        handle.swap_item(target.items, "a", 2)
        handle.swap_item(target.items, "b", 3)
        handle.swap_item(items, 1, 9)
        assert (target.items, items) == ({"a": 2, "b": 3}, [1, 9])
    assert (target.items, items) == ({"a": 1}, [1, 2])


def test_a_module_is_as_found() -> None:
    net = network()
    before, x = state(net), torch.randn(2, 3)
    expected = net(x)
    with Handle(net, "int8") as handle:
        handle.swap_forward(net[0], lambda x: x * 0)
        handle.swap_forward(net[0], lambda x: x * 0 + 1)
        handle.swap_attribute(net[2], "weight", nn.Parameter(torch.full((3,), 2.0)))
        handle.swap_attribute(net[2], "running_mean", torch.ones(3))
        handle.swap_attribute(net[0], "note", "other")
        handle.swap_attribute(net, "1", nn.Identity())
        handle.swap_item(net, 0, nn.Linear(3, 3))
        handle.add_hook(lambda: net.register_forward_hook(lambda module, given, result: result + 1))
        handle.add_hook(lambda: net.register_forward_pre_hook(lambda module, given: given))
        assert not torch.equal(net(x), expected)
        assert state(net) != before
    assert state(net) == before
    assert torch.equal(net(x), expected)


def test_an_attribute_that_moves_between_the_tables_of_a_module_comes_back() -> None:
    net = network()
    names, x = list(net.state_dict()), torch.randn(2, 3)
    expected = net(x)
    with Handle(net, "int8") as handle:
        handle.swap_attribute(net[0], "note", nn.Linear(1, 1))  # from __dict__ to _modules
        assert len(net.state_dict()) == len(names) + 2
    assert net[0].note == "plain"
    assert list(net.state_dict()) == names
    assert torch.equal(net(x), expected)


def test_removal_is_last_in_first_out_and_happens_once() -> None:
    order: list[str] = []
    handle = Handle(Target(), "dpm")
    for name in "abc":
        handle.swap(lambda name=name: lambda: order.append(name))  # type: ignore[misc]
    handle.at_end(lambda: order.append("end"))
    handle.remove()
    handle.remove()
    assert order == ["c", "b", "a", "end"]
    assert handle.removed
    assert not handle.active


def test_all_undos_run_and_the_first_error_is_raised() -> None:
    target = Target()
    handle = Handle(target, "dpm")
    handle.swap_attribute(target, "own", 1)
    handle.swap(lambda: fail("second"))
    handle.swap_attribute(target, "new", 1)
    handle.swap(lambda: fail("first"))
    with pytest.raises(ValueError, match="first"):
        handle.remove()
    assert target.own == "mine"
    assert not hasattr(target, "new")
    handle.remove()
    assert handle.removed


def test_an_interrupt_does_not_stop_the_undoing() -> None:
    target = Target()
    handle = Handle(target, "dpm")
    handle.swap_attribute(target, "own", 1)

    def interrupted() -> None:
        raise KeyboardInterrupt

    handle.swap(lambda: interrupted)
    with pytest.raises(KeyboardInterrupt):
        handle.remove()
    assert target.own == "mine"


def build_and_raise(target: Target, error: BaseException, undo: Callable[[], object] = lambda: None, **options: bool) -> None:
    with Handle.building(target, "dpm", **options) as handle:
        handle.swap_attribute(target, "own", 1)
        handle.swap(lambda: undo)
        raise error


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_what_fails_while_building_is_undone(error: BaseException) -> None:
    target = Target()
    before = dict(vars(target))
    with pytest.raises(type(error)):
        build_and_raise(target, error)
    assert vars(target) == before
    Handle(target, "next").remove()


def test_a_failed_undo_of_a_failed_build_says_so() -> None:
    with pytest.raises(RunError, match=r"dpm could not be applied \(no\), and undoing what it had done failed too: stuck") as caught:
        build_and_raise(Target(), ValueError("no"), fail("stuck"))
    assert caught.value.hint == "load the model again"


def test_a_change_that_fails_is_not_recorded() -> None:
    target = Target()
    handle = Handle(target, "dpm")
    with pytest.raises(IndexError):
        handle.swap_item([], 0, 1)
    handle.remove()


def test_removal_out_of_order_is_refused() -> None:
    target = Target()
    dpm, int8, tome = Handle(target, "dpm"), Handle(target, "int8"), Handle(target, "tome")
    with pytest.raises(UsageError) as caught:
        dpm.remove()
    assert caught.value.message == "Cannot remove 'dpm' under 'tome': remove 'tome', 'int8' first."
    assert dpm.active
    for handle in (tome, int8, dpm):
        handle.remove()
    Handle(Target(), "on another target").remove()


def test_nested_blocks_on_one_attribute() -> None:
    target = Target()
    with Handle(target, "a") as a:
        a.swap_attribute(target, "own", "a")
        with Handle(target, "b") as b:
            b.swap_attribute(target, "own", "b")
        assert target.own == "a"
    assert vars(target)["own"] == "mine"


def test_nothing_is_kept_of_a_target_nobody_holds() -> None:
    gc.collect()
    count = len(handle_module._stacks)
    target = Target()
    handle = Handle(target, "dpm")
    handle.swap_attribute(target, "own", 1)
    alive = weakref.ref(target)
    del target, handle
    gc.collect()
    assert alive() is None
    assert len(handle_module._stacks) == count


def test_a_dropped_handle_does_not_stand_in_the_way() -> None:
    target = Target()
    dpm = Handle(target, "dpm")
    Handle(target, "dropped")
    gc.collect()
    dpm.remove()


def test_suspend_and_resume_switch_in_microseconds() -> None:
    net = network()
    before, x = state(net), torch.randn(2, 3)
    expected = net(x)
    handle = Handle(net, "int8")
    handle.swap_forward(net[0], lambda x: x * 0)
    handle.add_hook(lambda: net.register_forward_hook(lambda module, given, result: result + 1))
    changed = net(x)
    times = []
    for _ in range(50):
        started = time.perf_counter()
        handle.suspend()
        times.append(time.perf_counter() - started)
        handle.suspend()
        assert state(net) == before
        handle.resume()
        handle.resume()
    assert sorted(times)[25] < 1e-3
    assert torch.equal(net(x), changed)
    handle.suspend()
    handle.remove()
    assert state(net) == before
    assert torch.equal(net(x), expected)


def test_handles_made_in_turn_switch_in_any_order() -> None:
    target = Target()
    rows = []
    for value in "abc":
        handle = Handle(target, value)
        handle.swap_attribute(target, "own", value)
        handle.suspend()
        rows.append(handle)
    for index in (2, 0, 1, 0, 2):
        rows[index].resume()
        assert target.own == "abc"[index]
        rows[index].suspend()
    assert target.own == "mine"
    for handle in rows:
        handle.remove()


def test_suspend_and_resume_keep_the_stack() -> None:
    target = Target()
    dpm, int8 = Handle(target, "dpm"), Handle(target, "int8")
    dpm.swap_attribute(target, "own", "dpm")
    int8.swap_attribute(target, "new", "int8")
    with pytest.raises(UsageError, match="Cannot suspend 'dpm' under 'int8': suspend or remove 'int8' first"):
        dpm.suspend()
    int8.suspend()
    dpm.suspend()
    with pytest.raises(UsageError, match="Cannot resume 'int8': it was put on 'dpm', but now nothing is active"):
        int8.resume()
    with pytest.raises(UsageError, match="Cannot remove 'dpm' under 'int8'"):
        dpm.remove()
    dpm.resume()
    int8.resume()
    int8.remove()
    dpm.remove()
    with pytest.raises(UsageError, match="Cannot resume 'dpm': it is removed"):
        dpm.resume()
    with pytest.raises(UsageError, match="Cannot suspend 'dpm': it is removed"):
        dpm.suspend()
    with pytest.raises(UsageError, match="it is removed"):
        dpm.swap_attribute(target, "own", 1)


def test_a_resume_that_fails_leaves_the_handle_suspended() -> None:
    target, allowed = Target(), [True]
    handle = Handle(target, "dpm")
    handle.swap_attribute(target, "own", 1)

    def change() -> Callable[[], object]:
        if not allowed[0]:
            raise ValueError("no")
        return lambda: None

    handle.swap(change)
    handle.suspend()
    allowed[0] = False
    with pytest.raises(ValueError, match="no"):
        handle.resume()
    assert target.own == "mine"
    allowed[0] = True
    handle.resume()
    assert vars(target)["own"] == 1


def test_freed_originals_make_removal_impossible() -> None:
    target = Target()
    target.own = big = Target()
    alive = weakref.ref(big)
    del big
    with Handle.building(target, "int8", keep_original=False) as handle:
        handle.swap_attribute(target, "own", 1)
        assert alive() is not None
    gc.collect()
    assert alive() is None
    for use in (handle.remove, handle.suspend, handle.__enter__):
        with pytest.raises(UsageError, match="'int8' freed its originals") as caught:
            use()
        assert caught.value.hint is not None
        assert "keep_original=True" in caught.value.hint
    assert vars(target)["own"] == 1


def test_a_build_that_fails_is_undone_even_if_it_was_to_free_its_originals() -> None:
    target = Target()
    with pytest.raises(ValueError, match="no"):
        build_and_raise(target, ValueError("no"), keep_original=False)
    assert target.own == "mine"


def step(target: Target, name: str, *, keep: bool = True) -> Callable[[], Handle]:
    def apply() -> Handle:
        with Handle.building(target, name, keep_original=keep) as handle:
            handle.swap_attribute(target, "own", name)
            handle.swap_attribute(target, name, 1)
        return handle

    return apply


def test_a_recipe_is_one_handle() -> None:
    target = Target()
    before = dict(vars(target))
    whole = Handle.compose(target, "a + b", [step(target, "a"), step(target, "b")])
    assert target.own == "b"
    assert [child.label for child in whole.children] == ["a", "b"]
    for use in (whole.children[0].remove, whole.children[1].suspend):
        with pytest.raises(UsageError, match="adopted by the handle of its recipe"):
            use()
    whole.suspend()
    assert vars(target) == before
    whole.resume()
    assert target.own == "b"
    top = Handle(target, "c")
    with pytest.raises(UsageError, match=r"Cannot remove 'a \+ b' under 'c'"):
        whole.remove()
    top.remove()
    whole.remove()
    assert vars(target) == before


def test_if_a_later_step_fails_the_earlier_are_undone() -> None:
    target = Target()
    before = dict(vars(target))
    with pytest.raises(ZeroDivisionError):
        Handle.compose(target, "a + b", [step(target, "a"), lambda: 1 // 0])  # type: ignore[list-item,return-value]
    assert vars(target) == before


def test_if_a_later_step_fails_freed_originals_are_owned_up_to() -> None:
    target = Target()
    with pytest.raises(RunError, match="a had already freed the original weights"):
        Handle.compose(target, "a + b", [step(target, "a", keep=False), lambda: 1 // 0])  # type: ignore[list-item,return-value]


def test_a_recipe_with_freed_originals_cannot_be_removed() -> None:
    target = Target()
    whole = Handle.compose(target, "a + b", [step(target, "a", keep=False), step(target, "b")])
    with pytest.raises(UsageError, match=r"Cannot remove 'a \+ b': 'a' freed its originals"):
        whole.remove()


def test_a_recipe_adopts_only_what_lies_on_its_target() -> None:
    target, other = Target(), Target()
    with pytest.raises(UsageError, match="another target"):
        Handle.compose(target, "a", [step(other, "a")])


def test_the_representation_says_state_and_target() -> None:
    handle = Handle(Target(), "dpm")
    assert repr(handle) == "<Handle 'dpm' on Target, active>"


def test_swapped_forwards_see_the_arguments() -> None:
    net = network()
    old = net[1].forward

    def twice(x: Tensor) -> Tensor:
        result: Tensor = 2 * old(x)
        return result

    x = torch.randn(2, 3)
    expected = net[2](2 * net[1](net[0](x)))
    with Handle(net, "twice") as handle:
        handle.swap_forward(net[1], twice)
        assert torch.equal(net(x), expected)
    assert "forward" not in vars(net[1])
