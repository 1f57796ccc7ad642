import random

import pytest

from ip2p.world.scenes import KINDS, Scene, Thing, sample_scene


def test_scene_refuses_two_groups_of_one_kind():
    things = (Thing("cat", "red", 1, "left"), Thing("cat", "blue", 1, "right"))
    with pytest.raises(ValueError, match="share a kind"):
        Scene("beach", "summer", "day", "clear", "illustration", things)


def test_thing_names_the_unknown_value():
    with pytest.raises(ValueError, match="kind: 'zebra' is not one of"):
        Thing("zebra", "red", 1, "left")


def test_sampling_covers_every_kind_and_is_seeded():
    scenes = [sample_scene(random.Random(i)) for i in range(400)]
    assert {t.kind for s in scenes for t in s.things} == set(KINDS)
    assert scenes == [sample_scene(random.Random(i)) for i in range(400)]
