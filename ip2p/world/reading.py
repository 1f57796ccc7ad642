"""Reading attributes off pictures with CLIP: which value of an attribute does a picture prefer, all else being told?

For each scene the caption is written once for every value of the attribute; a reading is right if the true value's caption
is nearest. Thing attributes are read of the leftmost group; colour and season only in styles that have colour.

Whether an edit was made of a sampled pair, whose true picture nobody knows, is read alike: of the scene with every value that
the edit could have given, the source must prefer its own and the edited picture the one asked for.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ip2p.clip import Clip, image_features, text_features
from ip2p.world.edits import Edit, apply_edit, edit_values
from ip2p.world.language import read_caption, read_instruction, write_caption
from ip2p.world.scenes import COLOURLESS_STYLES, COLOURS, GLOBAL_VALUES, KINDS, MAX_COUNT, PLACES, Scene, Thing, ordered

_SHOWN_BY_COLOUR = ("colour", "season")  # as edits of them are not asked of a style without colour (ip2p/world/edits.py)
ATTRIBUTES = (*GLOBAL_VALUES, "kind", "colour", "count", "place")


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Share of `count` pictures whose attribute was read right; `chance` is that of guessing."""

    share: float
    count: int
    chance: float


def read_attribute(clip: Clip, images_BD: Tensor, scenes: list[Scene], attribute: str) -> Accuracy:
    """Multiple-choice accuracy of one attribute from unit image features."""
    hits, chance, count = 0, 0.0, 0
    for image_D, scene in zip(images_BD, scenes, strict=True):
        if attribute in _SHOWN_BY_COLOUR and scene.style in COLOURLESS_STYLES:
            continue
        variants, true = _variants(scene, attribute)
        texts = text_features(clip, [write_caption(v, random.Random(0)) for v in variants])
        hits += int((texts @ image_D).argmax()) == true
        chance += 1 / len(variants)
        count += 1
    return Accuracy(hits / count, count, chance / count)


def retrieval(clip: Clip, images_BCHW: Tensor, captions: list[str]) -> float:
    """Share of pictures whose own caption is the nearest of all."""
    scores = image_features(clip, images_BCHW) @ text_features(clip, captions).T
    return (scores.argmax(1) == torch.arange(len(captions), device=scores.device)).float().mean().item()


@dataclass(frozen=True, slots=True)
class Choices:
    """What an edit could have made of a scene: captions' unit features `choices_CD`, and which are the source's and the edit's."""

    choices_CD: Tensor
    source: int
    target: int

    def made(self, before_D: Tensor, after_D: Tensor) -> bool:
        """Whether the picture before shows the source and the picture after the edit, each by its unit features."""
        return int((self.choices_CD @ before_D).argmax()) == self.source and int((self.choices_CD @ after_D).argmax()) == self.target


def read_choices(clip: Clip, caption: str, instruction: str) -> Choices:
    """The choices that a triplet of the world leaves. Adding and removing leave two: with the thing, and without."""
    scene, edit = read_caption(caption), read_instruction(instruction)
    target = apply_edit(scene, edit)
    scenes = list(dict.fromkeys([scene, target, *_alternatives(scene, edit)]))
    return Choices(text_features(clip, [write_caption(s, random.Random(0)) for s in scenes]), 0, 1)


def _alternatives(scene: Scene, edit: Edit) -> list[Scene]:
    """The scene after each other edit of this type and target."""
    values = edit_values(scene, edit.type, scene.thing(edit.target))
    return [apply_edit(scene, edit if edit.type == "add" else replace(edit, value=v)) for v in values]


def _variants(scene: Scene, attribute: str) -> tuple[list[Scene], int]:
    """The scene with each value of the attribute it can have, and the number of the true one."""
    if attribute in GLOBAL_VALUES:
        values = GLOBAL_VALUES[attribute]
        return [_with(scene, attribute, v) for v in values], values.index(getattr(scene, attribute))
    thing, rest = scene.things[0], scene.things[1:]
    taken = {t.kind for t in rest} | {t.place for t in rest}
    options: dict[str, tuple[str | int, ...]] = {"kind": KINDS, "colour": COLOURS, "count": tuple(range(1, MAX_COUNT + 1)), "place": PLACES}
    values_ = [v for v in options[attribute] if v not in taken]
    things: list[Thing] = [replace(thing, **{attribute: v}) for v in values_]  # type: ignore[arg-type]
    return [replace(scene, things=ordered((t, *rest))) for t in things], values_.index(getattr(thing, attribute))


def _with(scene: Scene, name: str, value: str) -> Scene:
    return replace(scene, **{name: value})  # type: ignore[arg-type]
