"""First-block cache: the decision, its bounds, and that what is reused is what the other blocks added."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from caching.deeper import TRANSFORMERS, Watched, deeper, latents
from pipelines.tiny import TINIES

from vis_accel import ConflictError, NotApplicableError, accelerate
from vis_accel.caching.firstblock import Firstblock, change
from vis_accel.handle import Handle
from vis_accel.pipelines import view


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_threshold_of_zero_changes_nothing_and_a_large_one_does(name: str) -> None:
    pipe = deeper(name)
    plain = latents(pipe)
    with accelerate(pipe, "firstblock(threshold=0.0)") as handle:
        assert torch.equal(latents(pipe), plain)
        assert handle.report()["calls reused"] == 0
    with accelerate(pipe, "firstblock(threshold=0.99)") as handle:
        assert not torch.equal(latents(pipe), plain)
        assert handle.report()["calls reused"] > 0


def test_the_largest_change_of_an_image_decides() -> None:
    before = torch.ones(2, 3, 4)
    now = before.clone()
    now[1, 0] *= 3  # the second image changed by 2 in a third of its elements
    assert change(before, before) == 0
    assert change(now, before) == pytest.approx(2 / 3)


def test_first_and_last_calls_are_full_and_no_more_than_so_many_in_a_row_reuse() -> None:
    pipe = deeper("DiTPipeline")
    with accelerate(pipe, "firstblock(threshold=0.999, most=2)"), Watched(pipe) as watched:
        for parameter in pipe.transformer.transformer_blocks[0].parameters():
            parameter.zero_()
        pipe.transformer.transformer_blocks[0].norm1.linear.bias.fill_(0.1)
        pipe.transformer.transformer_blocks[0].ff.net[2].bias.fill_(1.0)  # the first block adds a constant: nothing ever changes
        latents(pipe, steps=12)
    assert watched.full == [True, False, False] * 3 + [True, True, True]


@pytest.mark.parametrize("name", TRANSFORMERS)
@torch.no_grad()
def test_what_the_other_blocks_added_gives_the_same_answer(name: str) -> None:
    pipe = deeper(name)
    network, method = view(pipe).denoiser, Firstblock(threshold=0.5)
    gate, caught = method.gate(), list[Any]()
    hook = network.register_forward_pre_hook(lambda m, args, kwargs: caught.append((args, kwargs)), with_kwargs=True)
    latents(pipe, steps=2)
    hook.remove()
    args, kwargs = caught[0]
    plain = network(*args, **kwargs)[0]
    with Handle.building(pipe, "firstblock") as handle:
        method.install(handle, network, gate)
    gate.open(None)
    assert torch.equal(network(*args, **kwargs)[0], plain)
    made = gate.close()
    gate.open(made)
    torch.testing.assert_close(network(*args, **kwargs)[0], plain, rtol=1e-12, atol=1e-12)
    assert gate.reuse
    gate.close()
    gate.open([2 * made[0], made[1]])  # half of what it was: too large a change
    network(*args, **kwargs)
    assert not gate.reuse
    handle.remove()


def test_what_it_does_not_fit_is_refused() -> None:
    with pytest.raises(NotApplicableError, match="two blocks"):
        accelerate(TINIES["DiTPipeline"].build(), "firstblock")
    with pytest.raises(ConflictError, match="compile needs static forward, which firstblock breaks"):
        accelerate(deeper("DiTPipeline"), "firstblock + compile")
