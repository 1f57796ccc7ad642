"""The embedded models, held to what they are good for, on scenes that none of them was trained on."""

import random

import pytest
import torch

from ip2p.clip import image_features
from ip2p.dataset.world_writer import write_triplets
from ip2p.pictures import from_pillow
from ip2p.world.language import write_caption
from ip2p.world.reading import read_attribute, read_choices, retrieval
from ip2p.world.render import render
from ip2p.world.report import held_out_scenes, psnr, reconstruct, write_part
from ip2p.world.truth import truth_of


@pytest.fixture(scope="module")
def scenes():
    return held_out_scenes(48)


@pytest.fixture(scope="module")
def renders(scenes):
    return torch.stack([from_pillow(render(s, seed=10**9 + i)) for i, s in enumerate(scenes)])


def test_clip_finds_a_pictures_own_caption(clip, scenes, renders):
    captions = [write_caption(s, random.Random(i)) for i, s in enumerate(scenes)]
    assert retrieval(clip, renders, captions) >= 0.9


@pytest.mark.parametrize(
    ("attribute", "least"),
    [("setting", 0.85), ("season", 0.8), ("time", 0.9), ("weather", 0.85), ("style", 0.9), ("kind", 0.7), ("colour", 0.7), ("place", 0.85)],
)
def test_clip_reads_attributes(clip, scenes, renders, attribute, least):
    assert read_attribute(clip, image_features(clip, renders), scenes, attribute).share >= least


def test_the_autoencoder_keeps_the_picture(teacher, renders):
    assert psnr(renders, reconstruct(teacher, renders)) >= 27


def test_edits_are_read_off_rendered_pairs_and_not_off_copies(clip):
    triplets = list(write_triplets(count=44, stream="reading"))
    truths = [truth_of(t.caption.text, t.instruction, seed=i, size=96) for i, t in enumerate(triplets)]
    before, after = (image_features(clip, torch.stack([getattr(x, f"{n}_CHW") for x in truths])) for n in ("source", "target"))
    choices = [read_choices(clip, t.caption.text, t.instruction) for t in triplets]
    assert sum(c.made(a, b) for c, a, b in zip(choices, before, after, strict=True)) >= 0.85 * len(triplets)
    assert not any(c.made(a, a) for c, a in zip(choices, before, strict=True))


def test_a_part_of_a_page_is_written_in_its_place(tmp_path):
    page = tmp_path / "page.md"
    for heading, text in (("# One", "a"), ("# Two", "b\n\n## Deeper\nc"), ("# One", "d")):
        write_part(page, heading, text)
    assert page.read_text() == "# One\n\nd\n\n# Two\n\nb\n\n## Deeper\nc\n"
