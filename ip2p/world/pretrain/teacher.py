"""Text-to-image teacher of the illustrated world: UNet2DConditionModel and CLIPTextModel, trained together on latents.

v-prediction over SD's scaled-linear schedule; one text in ten is empty (classifier-free guidance), three in twenty
mention only part of the scene, and as many are instructions that the picture is the answer to: so words of instructions
mean something before the editor is grown.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ip2p.attention import Float32Attention
from ip2p.params.model import HELD_OUT
from ip2p.sampler import add_noise
from ip2p.world.corpus import scene_of
from ip2p.world.edits import Edit
from ip2p.world.language import write_caption, write_instruction, write_mention
from ip2p.world.pretrain.contrast import encode
from ip2p.world.pretrain.fit import Batch, Leg, Measured, fit, ways
from ip2p.world.pretrain.tokenizer import CONTEXT
from ip2p.world.scenes import KINDS, Scene, ordered

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

_EMPTY, _MENTION, _INSTRUCTION = 0.10, 0.15, 0.15
WIDTH = 128
SCHEDULE = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


class Teacher(nn.Module):
    """UNet and text encoder as one module, so that one loop trains both."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder

    def forward(self, noisy_BCHW: Tensor, timesteps_B: Tensor, tokens_BL: Tensor) -> Tensor:
        """The UNet's prediction, v_BCHW."""
        context_BLD = self.text_encoder(tokens_BL).last_hidden_state
        prediction: Tensor = self.unet(noisy_BCHW, timesteps_B, context_BLD).sample
        return prediction


def new_teacher(*, latent_channels: int, latent_size: int, vocabulary: int, end: int) -> Teacher:
    """An untrained teacher."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    unet = UNet2DConditionModel(
        sample_size=latent_size,
        in_channels=latent_channels,
        out_channels=latent_channels,
        layers_per_block=1,
        block_out_channels=(64, 128, 192),
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
        attention_head_dim=(2, 4, 6),
        cross_attention_dim=WIDTH,
        norm_num_groups=16,
    )
    text = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=WIDTH,
        intermediate_size=WIDTH * 4,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        hidden_act="gelu",
        eos_token_id=end,
        bos_token_id=end - 1,
        pad_token_id=end,
    )
    return Teacher(unet, CLIPTextModel(text))


def train_teacher(
    rank: int,
    workers: int,
    latents_paths: Sequence[Path],
    seed: int,
    tokenizer: CLIPTokenizer,
    folder: Path,
    leg: Leg,
    *,
    batch: int,
    device: str = "cpu",
    compiled: bool = False,
    texts: bool = True,
    on_save: Callable[[int, Teacher], None] | None = None,
) -> None:
    """Train to the end of the leg on precomputed latents `N,C,H,W` (float16, standardised), which a GPU holds in its memory.

    Of several files, the same scenes at other sizes, steps take one after the other; without `texts` the UNet learns alone.
    """
    sizes = [torch.from_numpy(np.load(path, mmap_mode="c")).to(device) for path in latents_paths]
    of_side, count = {x.shape[-1]: x for x in sizes}, len(sizes[0])
    torch.manual_seed(leg.seed)
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    shape = {"latent_channels": sizes[0].shape[1], "latent_size": sizes[0].shape[2]}
    model = new_teacher(**shape, vocabulary=len(tokenizer), end=int(end)).to(device)
    model.text_encoder.requires_grad_(texts)
    model.unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if device == "cpu":
        model.unet.set_attn_processor(Float32Attention())
    alphas_T = alphas_cumprod().to(device)

    def draw(step: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        picks = torch.randint(HELD_OUT, count, (batch,), generator=generator)
        rng = random.Random(int(torch.randint(0, 2**62, (1,), generator=generator)))
        texts = [draw_text(scene_of(seed, i), rng) for i in picks.tolist()]
        noise = torch.randn((batch, *sizes[step % len(sizes)].shape[1:]), generator=generator)
        return picks, encode(tokenizer, texts), noise, torch.randint(0, 1000, (batch,), generator=generator)

    def loss(predict: Callable[..., Tensor], drawn: Batch) -> Measured:
        picks, tokens, noise, timesteps = drawn
        clean, alpha = of_side[noise.shape[-1]][picks].float(), alphas_T[timesteps].view(-1, 1, 1, 1)
        noisy, target = add_noise(clean, noise, alpha, "v_prediction")
        with torch.autocast(torch.device(device).type, dtype=torch.bfloat16):
            v = predict(noisy.contiguous(memory_format=torch.channels_last), timesteps, tokens)
        return F.mse_loss(v.float(), target), {}

    losses = ways(loss, model, compiled=compiled)
    fit(model, draw, losses, leg, folder, rank=rank, workers=workers, on_save=on_save and (lambda step: on_save(step, model)))


def alphas_cumprod() -> Tensor:
    """Cumulative product of alphas of SD's scaled-linear schedule, `T`."""
    from diffusers import DDIMScheduler

    schedule: Tensor = DDIMScheduler(**SCHEDULE).alphas_cumprod
    return schedule


def draw_text(scene: Scene, rng: random.Random) -> str:
    """A text for the scene's picture: empty, a mention, an instruction it answers, or most often its caption."""
    u = rng.random()
    if u < _EMPTY:
        return ""
    if u < _EMPTY + _MENTION:
        return write_mention(scene, rng)
    if u < _EMPTY + _MENTION + _INSTRUCTION:
        edit, before = _answered(scene, rng)
        return write_instruction(edit, before, rng)
    return write_caption(scene, rng)


def _answered(scene: Scene, rng: random.Random) -> tuple[Edit, Scene]:
    """An edit whose result the scene could be, and a scene that it could be asked for of."""
    thing = rng.choice(scene.things)
    other = rng.choice([k for k in KINDS if k not in {t.kind for t in scene.things}])
    replaced = Edit("replace", thing.kind, target=other)
    edits = [Edit(n, getattr(scene, n)) for n in ("setting", "season", "time", "weather", "style")]
    edits += [
        replaced,
        Edit("recolour", thing.colour, target=thing.kind),
        Edit("count", str(thing.count), target=thing.kind),
        Edit("move", thing.place, target=thing.kind),
        Edit("add", thing.place, target=thing.kind, thing=thing),
        Edit("add", thing.place, target=thing.kind, thing=thing),
    ]
    edit = rng.choice(edits)
    if edit is replaced:
        scene = replace(scene, things=ordered(tuple(replace(t, kind=other) if t is thing else t for t in scene.things)))
    return edit, scene
