import random
from dataclasses import replace

import numpy as np
import pytest

from ip2p.world.render import render
from ip2p.world.scenes import GLOBAL_VALUES, KINDS, Scene, Thing, sample_scene

SCENE = Scene("lake", "summer", "day", "clear", "illustration", (Thing("house", "red", 1, "left"), Thing("duck", "yellow", 2, "right")))


def pixels(scene, **options):
    return np.asarray(render(scene, **options), dtype=np.int16)


def test_same_scene_and_seed_draw_the_same_picture():
    scene = sample_scene(random.Random(5))
    assert (pixels(scene, seed=1) == pixels(scene, seed=1)).all()
    assert (pixels(scene, seed=1) != pixels(scene, seed=2)).any()


def test_an_edited_scene_keeps_the_layout_of_the_rest():
    edited = replace(SCENE, things=(replace(SCENE.things[0], colour="blue"), SCENE.things[1]))
    changed = np.abs(pixels(SCENE, seed=3) - pixels(edited, seed=3)).sum(2) > 0
    assert changed[:, :48].any()
    assert not changed[:, 48:].any()


@pytest.mark.parametrize("name", list(GLOBAL_VALUES))
def test_every_value_of_an_attribute_looks_different(name):
    drawn = [pixels(replace(SCENE, **{name: value}), seed=3) for value in GLOBAL_VALUES[name]]
    for i, a in enumerate(drawn):
        assert all(np.abs(a - b).mean() > 1 for b in drawn[i + 1 :])


def test_every_kind_looks_different():
    drawn = [pixels(replace(SCENE, things=(Thing(k, "red", 1, "middle"),)), seed=3) for k in KINDS]
    assert all(np.abs(a - b).mean() > 0.5 for i, a in enumerate(drawn) for b in drawn[i + 1 :])


@pytest.mark.parametrize("size", [32, 96, 200])
def test_any_size_on_request(size):
    assert render(SCENE, seed=0, size=size).size == (size, size)


def test_too_small_a_size_is_refused():
    with pytest.raises(ValueError, match="at least 16"):
        render(SCENE, seed=0, size=8)
