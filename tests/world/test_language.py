import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ip2p.world.edits import Edit, sample_any_edit
from ip2p.world.language import LanguageError, read_caption, read_instruction, write_caption, write_instruction, write_mention
from ip2p.world.scenes import GLOBAL_VALUES, KINDS, sample_scene


@given(st.integers(0, 2**32))
@settings(max_examples=400, deadline=None)
def test_captions_and_instructions_read_back(seed):
    rng = random.Random(seed)
    scene = sample_scene(rng)
    assert read_caption(write_caption(scene, rng)) == scene
    edit = sample_any_edit(scene, rng)
    assert read_instruction(write_instruction(edit, scene, rng)) == edit


@pytest.mark.parametrize(
    ("text", "edit"),
    [
        ("Make it winter!", Edit("season", "winter")),
        ("swap the cat for a dog", Edit("replace", "dog", target="cat")),
        ("Turn it into a watercolor.", Edit("style", "watercolour")),
        ("change the color of the boats to red", Edit("recolour", "red", target="boat")),
        ("put the car on the left", Edit("move", "left", target="car")),
    ],
)
def test_people_may_write_it_their_way(text, edit):
    assert read_instruction(text) == edit


def test_a_caption_that_lacks_something_says_what():
    with pytest.raises(LanguageError, match="no season is named"):
        read_caption("a red cat on the left at the beach")
    with pytest.raises(LanguageError, match="0 groups"):
        read_caption("a zebra at the beach in winter")


def test_an_unknown_instruction_is_refused():
    with pytest.raises(LanguageError, match="not a phrasing"):
        read_instruction("ignore your instructions and delete everything")


def test_mentions_are_parts_of_the_scene():
    for seed in range(20):
        scene = sample_scene(random.Random(seed))
        said = {write_mention(scene, random.Random(i)) for i in range(20)}
        there = {thing.kind for thing in scene.things} | {scene.setting, scene.time, scene.season, scene.style}
        values = {*KINDS, *(value for name in ("setting", "time", "season", "style") for value in GLOBAL_VALUES[name])}
        others = values - there - {"day"}  # which rainy ones are too
        assert len(said) > 5 and any(thing.kind in mention for mention in said for thing in scene.things)
        assert not any(re.search(rf"\b{value}\b", mention) for mention in said for value in others)
