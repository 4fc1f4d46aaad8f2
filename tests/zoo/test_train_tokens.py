"""Fine-tuning under a recipe: tokens go while it trains, and what it saves is an add-on that runs."""

from __future__ import annotations

from pathlib import Path

import torch

from vis_accel.apply import accelerate
from vis_accel.training import TrainingConfig, train
from vis_accel.zoo import load
from vis_accel.zoo.cifar10 import Images
from vis_accel.zoo.train_tokens import TokenTask


def few(count: int) -> Images:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 255, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return Images(pixels, torch.arange(count) % 10, "none")


def test_the_whole_path(tmp_path: Path) -> None:
    task = TokenTask("tome(r=7)", few(20), few(10), load("cifar10-features"))
    seen: list[int] = []
    hook = task.model.blocks[-1].register_forward_hook(lambda module, args, out: seen.append(out.shape[1]))
    config = TrainingConfig(steps=2, batch_size=10, learning_rate=1e-3, compile=False, mixed_precision="no")
    result = train(task, config, output=tmp_path)
    hook.remove()
    assert set(seen) == {5}  # 65 - 8 x 7 - 4
    assert set(result.scores) == {"top1"}
    model = load("cifar10-vit")
    plain = model.blocks[0].attn.qkv.weight.clone()
    with accelerate(model, f"tuned(weights='{tmp_path / 'addon.safetensors'}') + tome(r=7)"):
        assert not torch.equal(model.blocks[0].attn.qkv.weight, plain)
        assert model(torch.zeros(1, 3, 32, 32)).isfinite().all()
    assert torch.equal(model.blocks[0].attn.qkv.weight, plain)
