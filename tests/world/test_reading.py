"""The embedded models, held to what they are good for, on scenes that none of them was trained on."""

import random

import pytest
import torch

from ip2p.clip import image_features
from ip2p.pictures import from_pillow
from ip2p.world.language import write_caption
from ip2p.world.reading import read_attribute, retrieval
from ip2p.world.render import render
from ip2p.world.report import held_out_scenes, psnr, reconstruct


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
