"""CLIP of the illustrated world: an OpenCLIP model trained on renders against captions with one attribute swapped.

Every picture faces the captions of the whole batch and, from the first step on, captions of its own scene after one
edit: what counts is not retrieval but whether a picture prefers its caption to one that differs in a single attribute.
Half of the pictures are softened and noised, so that decoded and sampled pictures are read as well as renders.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ip2p.models import resolve_dtype
from ip2p.params.model import HELD_OUT
from ip2p.world.corpus import Corpus, scene_of
from ip2p.world.edits import EDIT_TYPES, apply_edit, sample_edit
from ip2p.world.language import write_caption
from ip2p.world.pretrain.fit import Batch, Leg, Measured, fit, tell, ways
from ip2p.world.pretrain.tokenizer import CONTEXT
from ip2p.world.scenes import Scene

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

_SWAPS = 3
# What a swapped caption differs in: kind and count are the hardest to read, so they come most often.
_SWAPPED = (*EDIT_TYPES, *("replace",) * 6, *("count",) * 3, "recolour")
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def clip_config(*, size: int, vocabulary: int) -> dict[str, Any]:
    """The `open_clip_config.json` of the world's CLIP: a small ResNet with attention pooling, a three-layer text tower."""
    return {
        "model_cfg": {
            "embed_dim": 192,
            "vision_cfg": {"layers": [1, 2, 2, 1], "width": 24, "image_size": size, "patch_size": None},
            "text_cfg": {
                "context_length": CONTEXT,
                "vocab_size": vocabulary,
                "width": 128,
                "heads": 4,
                "layers": 3,
                "hf_tokenizer_name": "tokenizer",
            },
        },
        "preprocess_cfg": {
            "size": size,
            "mode": "RGB",
            "mean": MEAN,
            "std": STD,
            "interpolation": "bicubic",
            "resize_mode": "squash",
            "fill_color": 0,
        },
    }


def new_clip(config: dict[str, Any]) -> Any:
    """An untrained OpenCLIP model of this configuration."""
    import open_clip

    return open_clip.model.CLIP(**config["model_cfg"])


def train_clip(
    rank: int,
    workers: int,
    corpus: Corpus,
    tokenizer: CLIPTokenizer,
    folder: Path,
    leg: Leg,
    *,
    batch: int,
    device: str = "cpu",
    compiled: bool = False,
) -> None:
    """Train until `leg.steps`; swap accuracy by edit type on held-out renders goes to the log at each save."""
    torch.manual_seed(leg.seed)
    config = clip_config(size=corpus.picture(0).shape[0], vocabulary=len(tokenizer))
    model = new_clip(config).to(device, memory_format=torch.channels_last)
    dtype = resolve_dtype("auto", torch.device(device))

    def draw(step: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        picks = torch.randint(HELD_OUT, len(corpus), (batch,), generator=generator).tolist()
        rng = random.Random(int(torch.randint(0, 2**62, (1,), generator=generator)))
        images_BCHW, tokens_ML = swap_batch(corpus, picks, tokenizer, rng)
        return roughen(images_BCHW, generator), tokens_ML

    def loss(measured: Callable[..., Measured], drawn: Batch) -> Measured:
        with torch.autocast(torch.device(device).type, dtype=dtype, enabled=dtype != torch.float32):
            return measured(model, *drawn)

    def on_save(step: int) -> None:
        scores = swap_accuracy(model, corpus, list(range(384)), tokenizer)
        tell(folder, "clip swaps " + json.dumps({"step": step} | {k: round(v, 3) for k, v in scores.items()}))

    losses = ways(loss, swap_loss, compiled=compiled)
    fit(model, draw, losses, leg, folder, rank=rank, workers=workers, on_save=on_save)


def swap_batch(corpus: Corpus, picks: list[int], tokenizer: CLIPTokenizer, rng: random.Random) -> tuple[Tensor, Tensor]:
    """Pictures number `picks`, `images_BCHW` in [0, 1], and the tokens `ML` of each one's caption and `_SWAPS` of edited scenes."""
    texts: list[str] = []
    for index in picks:
        scene = scene_of(corpus.seed, index)
        texts.append(write_caption(scene, rng))
        texts += [write_caption(_swapped(scene, rng), rng) for _ in range(_SWAPS)]
    return _images(corpus, picks), encode(tokenizer, texts)


def swap_loss(model: Any, images_BCHW: Tensor, tokens_ML: Tensor) -> Measured:
    """Cross-entropy of each picture over all captions, and of each true caption over all pictures."""
    image_BD = F.normalize(model.encode_image(normalized(images_BCHW)).float(), dim=-1)
    text_MD = F.normalize(model.encode_text(tokens_ML).float(), dim=-1)
    logits_BM = model.logit_scale.clamp(max=4.6).exp() * image_BD @ text_MD.T
    count = len(image_BD)
    order = torch.arange(count, device=logits_BM.device)
    true = order * (1 + _SWAPS)
    own = logits_BM.gather(1, true[:, None] + torch.arange(1 + _SWAPS, device=true.device))
    swaps = F.cross_entropy(own, torch.zeros_like(true))
    value = F.cross_entropy(logits_BM, true) + 0.5 * F.cross_entropy(logits_BM[:, true].T, order) + swaps
    hit = (own.argmax(1) == 0).float().mean()
    return value, {"swap": hit}


@torch.no_grad()
def swap_accuracy(model: Any, corpus: Corpus, picks: list[int], tokenizer: CLIPTokenizer) -> dict[str, float]:
    """Share of pictures that prefer their caption to one with a single attribute changed, by type of change."""
    rng, hits = random.Random(0), {}
    images_BD = F.normalize(model.encode_image(normalized(_images(corpus, picks).to(model.logit_scale.device))), dim=-1).cpu()
    scenes = [scene_of(corpus.seed, i) for i in picks]
    for type in EDIT_TYPES:
        edits = [(i, s, e) for i, s in enumerate(scenes) if (e := sample_edit(s, rng, type=type))]
        texts = [[write_caption(x, rng) for x in (s, apply_edit(s, e))] for _, s, e in edits]
        text_BTD = (
            F.normalize(model.encode_text(encode(tokenizer, [t for pair in texts for t in pair]).to(model.logit_scale.device)), dim=-1)
            .cpu()
            .unflatten(0, (-1, 2))
        )
        scores_BT = torch.einsum("bd,btd->bt", images_BD[[i for i, _, _ in edits]], text_BTD)
        hits[type] = (scores_BT[:, 0] > scores_BT[:, 1]).float().mean().item()
    return hits


def encode(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Token ids `tokens_ML`, padded and cut to the context length."""
    tokens: Tensor = tokenizer(texts, padding="max_length", truncation=True, max_length=CONTEXT, return_tensors="pt").input_ids
    return tokens


def normalized(images_BCHW: Tensor) -> Tensor:
    """Images in [0, 1] as CLIP wants them."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1).to(images_BCHW) for v in (MEAN, STD))
    return ((images_BCHW - mean) / std).contiguous(memory_format=torch.channels_last)


def roughen(images_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Soften and noise half of the images (in [0, 1]) by random amounts."""
    size = images_BCHW.shape[-1]
    small = F.interpolate(images_BCHW, scale_factor=0.5, mode="area")
    soft = F.interpolate(small, size=size, mode="bilinear")
    shape = (len(images_BCHW), 1, 1, 1)
    amount = torch.rand(shape, generator=generator) * (torch.rand(shape, generator=generator) < 0.5)
    noise = torch.randn(images_BCHW.shape, generator=generator) * 0.06
    return images_BCHW.lerp(soft, amount) + noise * amount.roll(1, 0)


def _swapped(scene: Scene, rng: random.Random) -> Scene:
    while True:
        edit = sample_edit(scene, rng, type=rng.choice(_SWAPPED))
        if edit is not None:
            return apply_edit(scene, edit)


def _images(corpus: Corpus, picks: list[int]) -> Tensor:
    return torch.from_numpy(corpus.pictures(picks)).permute(0, 3, 1, 2).float().div(255)
