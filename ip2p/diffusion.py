"""A latent diffusion model (teacher or editor) and the five things that are done with it, each written once.

Text to states, images to latents and back, the UNet's prediction, classifier-free guidance. All take and give float32;
inside, the arithmetic is the model's `dtype`: weights that are only used are held in it, those that are trained stay float32 and
compute by autocast. Shapes: B batch, C H W image or latent, L tokens, D width.
Stable Diffusion XL's second text encoder is carried along: its pooled text is one more row of `text_BLD`, padded to D.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

from ip2p.errors import ModelError
from ip2p.graphs import Graphed

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, SchedulerMixin, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer


@dataclass(frozen=True)
class Diffusion:
    """A latent diffusion model: a teacher (`unet` takes C channels) or an editor (2·C)."""

    vae: AutoencoderKL
    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler: SchedulerMixin
    device: torch.device
    dtype: torch.dtype = torch.float32
    text_encoder_2: CLIPTextModelWithProjection | None = None
    tokenizer_2: CLIPTokenizer | None = None
    zero_empty: bool = False
    """Whether an empty text is zeros to the UNet, not what the encoders make of it: as XL models learn (`force_zeros_for_empty_prompt`)."""
    graphed: Graphed | None = None
    """The UNet's calls as CUDA graphs."""
    side: int | None = None
    """Another side of pictures than the UNet says, pixels: what it is trained at."""

    @property
    def latent_channels(self) -> int:
        """C of the autoencoder's latents."""
        return int(self.vae.config.latent_channels)

    @property
    def image_size(self) -> int:
        """Side of a square picture at the size that the UNet was trained on, or is trained at, pixels."""
        return self.side or int(self.unet.config.sample_size) * self.factor

    @property
    def factor(self) -> int:
        """Pixels a latent cell, along one side."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def alphas_cumprod(self) -> Tensor:
        """The noise schedule: cumulative product of alphas, `T`."""
        alphas: Tensor = self.scheduler.alphas_cumprod  # type: ignore[attr-defined]
        return alphas

    @property
    def prediction(self) -> str:
        """What the UNet predicts: `epsilon` or `v_prediction`."""
        return str(self.scheduler.config.prediction_type)  # type: ignore[attr-defined]

    @property
    def held(self) -> torch.dtype:
        """What the weights of UNet and autoencoder are held in, and so what goes into them."""
        held: torch.dtype = self.unet.conv_in.weight.dtype
        return held

    @property
    def layout(self) -> torch.memory_format:
        """How the weights of UNet and autoencoder lie in memory, and so what goes into them."""
        lasts = self.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
        return torch.channels_last if lasts else torch.contiguous_format

    def arithmetic(self) -> torch.autocast:
        """The context in which UNet and autoencoder compute: autocast where their weights are held in more than `dtype`."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != self.held)


@torch.no_grad()
def encode_text(model: Diffusion, texts: list[str]) -> Tensor:
    """States of the text encoder, `text_BLD`, padded to its full context: the last ones, as SD takes them.

    Of an XL model the last but one of both encoders, side by side, and the second's pooled text as one more row.
    """
    if model.text_encoder_2 is None:
        last: Tensor = _encoded(model.text_encoder, model.tokenizer, texts, model.device).last_hidden_state
        return last
    first = _encoded(model.text_encoder, model.tokenizer, texts, model.device, output_hidden_states=True)
    second = _encoded(model.text_encoder_2, model.tokenizer_2, texts, model.device, output_hidden_states=True)
    both = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
    pooled = F.pad(second.text_embeds, (0, both.shape[-1] - second.text_embeds.shape[-1]))
    states = torch.cat([both, pooled[:, None]], dim=1)
    if model.zero_empty:
        states[[not text for text in texts]] = 0
    return states


def _encoded(encoder: Any, tokenizer: Any, texts: list[str], device: torch.device, **options: bool) -> Any:
    length = encoder.config.max_position_embeddings
    tokens = tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    return encoder(tokens.input_ids.to(device), **options)


def text_arguments(model: Diffusion, text_BLD: Tensor, side: tuple[int, int]) -> dict[str, Any]:
    """What the UNet is told besides latents (of `side`) and timestep: the text and, for an XL model, pooled text and picture size."""
    if model.text_encoder_2 is None:
        return {"encoder_hidden_states": text_BLD}
    pooled = text_BLD[:, -1, : model.text_encoder_2.config.projection_dim]
    height, width = (x * model.factor for x in side)
    sizes = torch.tensor([height, width, 0, 0, height, width], device=text_BLD.device, dtype=torch.float32)
    added = {"text_embeds": pooled, "time_ids": sizes.expand(len(text_BLD), -1)}
    return {"encoder_hidden_states": text_BLD[:, :-1], "added_cond_kwargs": added}


@torch.no_grad()
def encode_images(model: Diffusion, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (its mode) and spread of the autoencoder's posterior of images in [0, 1]: latents as they are, unscaled."""
    with model.arithmetic():
        images = (images_BCHW.to(model.device) * 2 - 1).to(model.held, memory_format=model.layout)
        posterior = model.vae.encode(of_any_batch(images)).latent_dist
    return posterior.mean.float(), posterior.std.float()


@torch.no_grad()
def decode_latents(model: Diffusion, latents_BCHW: Tensor) -> Tensor:
    """Images in [0, 1] of scaled latents. Raises `ModelError` if they are no numbers, as some autoencoders' are in float16."""
    with model.arithmetic():
        latents = (latents_BCHW / model.vae.config.scaling_factor).to(model.held, memory_format=model.layout)
        images = model.vae.decode(of_any_batch(latents)).sample
    pictures: Tensor = ((images.float() + 1) / 2).clamp(0, 1)
    if not pictures.isfinite().all():
        raise ModelError(f"models.dtype: the model's pictures are no numbers in {model.dtype}; set it to bfloat16 or float32")
    return pictures


def run_unet(model: Diffusion, rows_BCHW: Tensor, timestep: Tensor, text_BLD: Tensor) -> Tensor:
    """The UNet's prediction for rows of noisy (scaled) latents, with the source's latents beside them for an editor."""
    with model.arithmetic():
        rows = of_any_batch(rows_BCHW.to(model.held, memory_format=model.layout))
        times = of_any_batch(timestep.to(model.device).expand(len(rows)).contiguous())
        conditions = text_arguments(model, text_BLD.to(model.held), (rows.shape[-2], rows.shape[-1]))
        conditions = tree_map(lambda x: of_any_batch(x.contiguous()), conditions)  # as a recording's copies lie
        prediction = (model.graphed or partial(unet_output, model.unet))(rows, times, **conditions)
    return prediction.to(torch.float32, copy=True)


def unet_output(unet: UNet2DConditionModel, *arguments: Any, **options: Any) -> Tensor:
    """The prediction alone."""
    prediction: Tensor = unet(*arguments, **options).sample
    return prediction


def of_any_batch(tensor: Tensor) -> Tensor:
    """The tensor, as one whose rows `torch.compile` may not count on: on a GPU one compilation serves every batch."""
    if tensor.device.type == "cuda":
        torch._dynamo.maybe_mark_dynamic(tensor, 0)
    return tensor


def run_guided(model: Diffusion, x_BCHW: Tensor, timestep: Tensor, text_2BLD: Tensor, guidance: float | Tensor) -> Tensor:
    """A teacher's prediction under classifier-free guidance; `text_2BLD` holds the empty texts, then the texts."""
    without, given = run_unet(model, torch.cat([x_BCHW, x_BCHW]), timestep, text_2BLD).chunk(2)
    return without + guidance * (given - without)


@torch.inference_mode()
def reconstruct(model: Diffusion, images_BCHW: Tensor, *, batch: int = 32) -> Tensor:
    """Images in [0, 1] through the autoencoder and back, as 8-bit pictures hold them; on the CPU."""
    parts = []
    for x in images_BCHW.split(batch):
        latents = encode_images(model, x)[0] * model.vae.config.scaling_factor
        parts.append(decode_latents(model, latents).mul(255).round().div(255).cpu())
    return torch.cat(parts)
