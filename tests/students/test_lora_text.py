"""Adapters of a text-to-image pipeline: prompts for classes, and a file that the pipeline's own loader reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn

from vis_accel import load
from vis_accel.errors import DataError, NotApplicableError, UsageError
from vis_accel.students import DistillOptions, distill, lora, prompts
from vis_accel.students.pool import again, sampled
from vis_accel.students.teacher import open_teacher

TEXTS = ("a dog", "a cat", "the sea")
GUIDANCE = 4.0


def conditional(**changes: Any) -> Any:
    return diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(8, 8), norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=8, attention_head_dim=4, **changes,
    ).eval()  # fmt: skip


def tiny_text(**changes: Any) -> Any:
    """Letters for tokens."""
    letters = {letter + end: index for index, (letter, end) in enumerate((x, end) for x in "acdeghost" for end in ("", "</w>"))}
    ends = {"<|startoftext|>": len(letters), "<|endoftext|>": len(letters) + 1}
    tokenizer = transformers.CLIPTokenizer(vocab=letters | ends, merges=[], model_max_length=10)
    numbers = {"bos_token_id": len(letters), "eos_token_id": len(letters) + 1, "pad_token_id": len(letters) + 1}
    config = transformers.CLIPTextConfig(
        vocab_size=len(letters) + 2, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, projection_dim=8,
        max_position_embeddings=10, initializer_factor=30.0, **numbers,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(6)
        vae = diffusers.AutoencoderKL(latent_channels=4, norm_num_groups=4, block_out_channels=(8,)).eval()
        parts = {"vae": vae, "unet": conditional(**changes), "text_encoder": transformers.CLIPTextModel(config).eval()}
    scheduler = diffusers.DDIMScheduler(clip_sample=False, steps_offset=1, timestep_spacing="trailing", set_alpha_to_one=True)
    parts |= {"tokenizer": tokenizer, "scheduler": scheduler, "safety_checker": None, "feature_extractor": None}
    pipe: Any = diffusers.StableDiffusionPipeline(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text")
    tiny_text().save_pretrained(path / "pipe")
    (path / "prompts.txt").write_text("\n".join(TEXTS) + "\n\n")
    return path


@pytest.fixture
def asked(folder: Path, options: Callable[..., DistillOptions]) -> DistillOptions:
    return options(
        method="lcm-lora", rank=2, model=str(folder / "pipe"), prompts=folder / "prompts.txt", guidance=GUIDANCE, learning_rate=1e-2
    )


def latents(pipe: Any, guidance: float, steps: int) -> Tensor:
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    call = {"guidance_scale": guidance, "num_inference_steps": steps, "generator": generators, "output_type": "latent"}
    with torch.no_grad():
        found: Tensor = pipe(list(TEXTS[:2]), height=8, width=8, **call).images
    return found


def test_a_teacher_guides_its_prompts_as_its_pipeline_does() -> None:
    pipe = tiny_text()
    teacher = open_teacher(pipe, GUIDANCE, TEXTS)
    assert (teacher.classes, teacher.null, teacher.text.shape) == (3, 3, (4, 10, 8))  # type: ignore[union-attr]
    noise = torch.stack([torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)])
    sigma, times = torch.full((2,), teacher.noise.sigma_max), torch.full((2,), 999)
    x = noise / teacher.noise.alpha(teacher.noise.sigma_max)
    ours = teacher.guided(x, sigma, times, torch.tensor([0, 1]))
    theirs = latents(pipe, GUIDANCE, 1)
    assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.std()))
    assert (teacher.guided(x, sigma, times, torch.tensor([0, 1]), 1.0) - theirs).std() > 0.01 * theirs.std()
    assert (teacher.guided(x, sigma, times, torch.tensor([2, 2])) - theirs).std() > 0.01 * theirs.std()


def test_a_run_ends_in_adapters_that_the_pipeline_itself_loads(asked: DistillOptions) -> None:
    done = distill(asked)
    assert [path.name for path in (done.folder / "adapter").iterdir()] == ["pytorch_lora_weights.safetensors"]
    assert not (done.folder / "addon.safetensors").exists()
    stock = diffusers.StableDiffusionPipeline.from_pretrained(done.folder / "pipeline")
    assert type(stock.scheduler) is diffusers.LCMScheduler
    pipe = load(asked.model)
    pipe.scheduler = diffusers.LCMScheduler.from_config(pipe.scheduler.config, original_inference_steps=25)
    plain = latents(pipe, 1.0, 1)
    pipe.load_lora_weights(done.folder / "adapter")
    adapted = latents(pipe, 1.0, 1)
    assert (adapted - plain).std() > 10 * (adapted - latents(stock, 1.0, 1)).std()  # bfloat16 there
    tensors = load_file(done.folder / "adapter" / "pytorch_lora_weights.safetensors")
    loaded = {name.replace(".default_0", ""): value for name, value in pipe.unet.named_parameters() if ".lora_" in name}
    assert {f"unet.{name}" for name in loaded} == set(tensors)
    assert all(torch.equal(tensors[f"unet.{name}"], value) for name, value in loaded.items())


def test_loaded_by_the_pipeline_adapters_are_their_merged_weights(folder: Path, tmp_path: Path) -> None:
    pipe = load(str(folder / "pipe"))
    teacher = open_teacher(pipe, GUIDANCE, TEXTS)
    holder = lora.adapted(teacher.student(), lora.target_names(pipe.unet, None, 2), rank=2, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in holder.named_parameters():
            if ".lora_B." in name:
                value += 0.1 * torch.randn(value.shape, generator=generator)
    x, times, text = torch.randn(2, 4, 8, 8), torch.tensor([10, 700]), teacher.text[:2]  # type: ignore[index]
    lora.save_adapter(holder, tmp_path, pipe)
    with torch.no_grad():
        plain = pipe.unet(x, times, encoder_hidden_states=text).sample
        pipe.load_lora_weights(tmp_path)
        loaded = pipe.unet(x, times, encoder_hidden_states=text).sample
        merged = lora.merged(holder).eval()(x, times, encoder_hidden_states=text).sample
    assert torch.allclose(loaded, merged, atol=1e-4)
    assert not torch.allclose(loaded, plain, atol=1e-2)


def test_what_is_no_teacher_of_texts_is_refused(asked: DistillOptions, folders: dict[str, Path], tmp_path: Path) -> None:
    pipe = load(asked.model)
    with pytest.raises(NotApplicableError, match="a teacher for lcm-lora, of prompts") as caught:
        open_teacher(pipe, GUIDANCE)
    assert caught.value.hint == "--method lcm-lora --prompts FILE"
    with pytest.raises(UsageError, match="--prompts belongs to lcm-lora"):
        replace(asked, method="consistency", rank=None)
    with pytest.raises(UsageError, match="DiTPipeline takes no prompts"):
        distill(replace(asked, model=str(folders["dit"])))
    with pytest.raises(UsageError, match="--data has images of classes"):
        replace(asked, data=tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        distill(replace(asked, prompts=tmp_path / "none.txt", output=tmp_path / "a"))
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(DataError, match="has no prompts"):
        prompts.read(tmp_path / "empty.txt")
    with pytest.raises(UsageError, match="Which guidance"):
        open_teacher(pipe, None, TEXTS)
    scaled = tiny_text(time_cond_proj_dim=8)
    with pytest.raises(NotApplicableError, match="takes the guidance scale already"):
        open_teacher(scaled, GUIDANCE, TEXTS)
    pipe.text_encoder = None
    with pytest.raises(NotApplicableError, match="no text encoder"):
        open_teacher(pipe, GUIDANCE, TEXTS)
    assert isinstance(pipe.unet, nn.Module)


def test_large_samples_come_in_smaller_batches_and_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = open_teacher(tiny_text(), GUIDANCE, TEXTS)
    rows: list[int] = []
    teacher.network.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    whole = sampled(teacher, 7, sampler="ddim(steps=2, schedule='trailing')")
    assert rows == [14, 14]
    rows.clear()
    monkeypatch.setattr("vis_accel.students.pool._NUMBERS", 3 * 4 * 8 * 8)
    parts = sampled(teacher, 7, sampler="ddim(steps=2, schedule='trailing')")
    assert rows == [6, 6, 6, 6, 2, 2]
    assert whole.starts is not None
    assert parts.starts is not None
    assert torch.equal(parts.starts, whole.starts)
    assert torch.equal(parts.labels, whole.labels)
    assert (parts.ends - whole.ends).norm() < 0.05 * whole.ends.norm()
    rows.clear()
    again(teacher, whole, teacher.sigmas(torch.tensor([0, 499, 999])), sampler="ddim(steps=2, schedule='trailing')")
    assert max(rows) == 6
