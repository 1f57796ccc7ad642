"""Editing pictures by instruction: batches of latents (`edit_batch`), and any pictures as they come (`edit_pictures`).

Pictures of different sizes go in batches of one working size each; a seed gives the same picture in any batch, within
float rounding. A mask says where to edit: the rest comes back bit for bit. Transparency is kept.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from scipy import ndimage
from torch import Tensor

from ip2p.diffusion import Diffusion, decode_latents, encode_images, encode_text, unet_output
from ip2p.errors import DataError, ModelError
from ip2p.graphs import Graphed
from ip2p.model.guidance import EditOptions, EditRequest, Guide, guided_predictor
from ip2p.model.unet import require_editor
from ip2p.models import load_diffusion, placement
from ip2p.params import ModelsParams
from ip2p.pictures import MAX_RATIO, from_pillow, on_white, to_pillow
from ip2p.sampler import PREDICTIONS, draw_noise, make_schedule, sample

_FEATHER = 1 / 64
"""Width of a mask's soft inner edge, as a share of the longest side."""
_MARKED = 127
"""Grey of a mask above which a pixel is edited."""


def load_editor(folder: Path | str, *, device: torch.device, dtype: torch.dtype = torch.float32, compiled: bool = False) -> Diffusion:
    """Load a trained editor: a folder, or a name (`world`: the embedded one). Raises `ModelError` if it is none or missing."""
    name = folder if isinstance(folder, str) else f"./{folder}" if not folder.is_absolute() else str(folder)
    editor = load_diffusion(name, device=device, dtype=dtype, kind="editor", subject="editor", compiled=compiled)
    require_editor(editor.unet, editor.latent_channels, f"editor: {name}")
    if editor.prediction not in PREDICTIONS:
        raise ModelError(f"editor: {name} predicts `{editor.prediction}`; {' and '.join(PREDICTIONS)} are known here")
    return replace(editor, graphed=Graphed(partial(unet_output, editor.unet))) if device.type == "cuda" else editor


def open_editor(folder: Path | str, models: ModelsParams) -> Diffusion:
    """Load a trained editor as the parameters say: device, arithmetic, compiled or not."""
    device, dtype = placement(models)
    return load_editor(folder, device=device, dtype=dtype, compiled=models.compile)


@dataclass
class Remembered:
    """Embeddings of instructions and latents of pictures, the latest of each, for one editor: who edits tries again."""

    most: int = 64
    texts: OrderedDict[Hashable, Tensor] = field(default_factory=OrderedDict)
    sources: OrderedDict[Hashable, Tensor] = field(default_factory=OrderedDict)

    def embed(self, editor: Diffusion, texts: Sequence[str]) -> Tensor:
        """`text_BLD`, embedding only what is not remembered."""
        return _looked_up(self.texts, list(texts), lambda new: encode_text(editor, [texts[i] for i in new]), self.most)

    def encode(self, editor: Diffusion, images_BCHW: Tensor) -> Tensor:
        """Source latents `BCHW` (the mode, unscaled), encoding only what is not remembered."""
        keys = [(x.shape, hashlib.sha256(x.numpy(force=True).tobytes()).digest()) for x in images_BCHW]
        return _looked_up(self.sources, keys, lambda new: encode_images(editor, images_BCHW[new])[0], self.most)


@torch.inference_mode()
def edit_batch(
    editor: Diffusion,
    images_BCHW: Tensor,
    requests: list[EditRequest],
    options: EditOptions,
    *,
    on_step: Callable[[int], None] = lambda i: None,
) -> Tensor:
    """Edited images `BCHW` in [0, 1] of images in [0, 1] whose sides are multiples of the latent factor."""
    sources = encode_images(editor, images_BCHW)[0]
    noise = draw_noise([r.seed for r in requests], tuple(sources.shape[1:]), options.steps)  # while a GPU still encodes
    texts = Remembered().embed(editor, ["", *(r.instruction for r in requests)])  # each instruction once
    predict = guided_predictor(editor, Guide(requests, sources, texts[:1], texts[1:], options), on_step)
    schedule = make_schedule(editor.alphas_cumprod, steps=options.steps, prediction=editor.prediction, solver=options.solver)
    return decode_latents(editor, sample(predict, schedule, noise.to(editor.device)))


def edit_pictures(
    editor: Diffusion,
    pictures: Sequence[Image.Image],
    requests: Sequence[EditRequest],
    options: EditOptions,
    *,
    masks: Sequence[Image.Image | None] | None = None,
    batch: int = 8,
    on_step: Callable[[int], None] = lambda i: None,
) -> list[Image.Image]:
    """Edit pictures of any sizes; each comes back at its own size. White in a mask: edit here, and nowhere else.

    Raises `DataError` if a mask's size is not its picture's, or a side is more than 32 times the other.
    """
    masks = masks or [None] * len(pictures)
    groups: dict[tuple[int, int], list[int]] = {}
    for i, (picture, mask) in enumerate(zip(pictures, masks, strict=True)):
        if mask is not None and mask.size != picture.size:
            raise DataError(f"mask: {mask.width}×{mask.height} pixels, the picture has {picture.width}×{picture.height}; make them equal")
        if max(picture.size) > MAX_RATIO * min(picture.size):
            raise DataError(f"picture: {picture.width}×{picture.height} pixels; no side may be more than {MAX_RATIO} times the other")
        groups.setdefault(working_size(editor, picture.size), []).append(i)
    edited: dict[int, Image.Image] = {}
    for size, members in groups.items():
        for first in range(0, len(members), batch):
            some = members[first : first + batch]
            images = torch.stack([from_pillow(on_white(pictures[i]).resize(size, Image.Resampling.LANCZOS)) for i in some])
            done = edit_batch(editor, images, [requests[i] for i in some], options, on_step=on_step)
            edited |= {i: paste_back(pictures[i], to_pillow(x), masks[i]) for i, x in zip(some, done, strict=True)}
    return [edited[i] for i in range(len(pictures))]


def paste_back(picture: Image.Image, edited: Image.Image, mask: Image.Image | None) -> Image.Image:
    """The edit at the picture's own size, inside the mask only, with the picture's transparency."""
    whole = edited.resize(picture.size, Image.Resampling.LANCZOS)
    if mask is not None:
        whole = Image.composite(whole, picture.convert("RGB"), feathered(mask))
    if "A" in picture.getbands():
        whole.putalpha(picture.getchannel("A"))
    return whole


def working_size(editor: Diffusion, size: tuple[int, int]) -> tuple[int, int]:
    """The size nearest in shape and area to what the editor was trained on, in multiples that its UNet divides."""
    multiple = editor.factor * int(2 ** (len(editor.unet.config.block_out_channels) - 1))
    scale = editor.image_size / (size[0] * size[1]) ** 0.5
    width, height = (max(multiple, round(side * scale / multiple) * multiple) for side in size)
    return width, height


def marks_nothing(mask: Image.Image) -> bool:
    """Whether a mask of greys, white where to edit, leaves everything as it is."""
    return bool(mask.getextrema()[1] <= _MARKED)  # type: ignore[operator]


def feathered(mask: Image.Image) -> Image.Image:
    """The mask with a soft inner edge. Where a region is too thin for it to be full anywhere, its edge is as much harder as it takes."""
    hard = mask.convert("L").point(lambda v: 255 if v > _MARKED else 0)
    regions, count = ndimage.label(np.asarray(hard))
    soft = np.zeros_like(regions, dtype=np.uint8)
    left, width = np.arange(count + 1) > 0, max(mask.size) * _FEATHER
    while left.any():
        blurred = hard.filter(ImageFilter.GaussianBlur(width)).point(_inner) if width >= 0.5 else hard
        level = np.asarray(blurred)
        full = np.zeros_like(left)
        full[regions[level == 255]] = True
        these = (full & left)[regions]
        soft[these] = level[these]
        left, width = left & ~full, width / 2
    return Image.fromarray(soft)


def _inner(blurred: int) -> int:
    """Of a blurred mask the inner half: 0 at the edge, full where the blur no longer sees it."""
    return max(0, min(255, 2 * blurred - 255))


def _looked_up(known: OrderedDict[Hashable, Tensor], keys: Sequence[Hashable], make: Callable[[list[int]], Tensor], most: int) -> Tensor:
    """A row for each key: what is known, else made, all missing ones at once; forgets the least recently used."""
    new = [i for i, k in enumerate(keys) if k not in known and k not in keys[:i]]
    if new:
        known.update(zip((keys[i] for i in new), make(new), strict=True))
    for key in keys:
        known.move_to_end(key)
    rows = torch.stack([known[k] for k in keys])
    while len(known) > most:
        known.popitem(last=False)
    return rows
