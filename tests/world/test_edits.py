import random

import pytest

from ip2p.world.edits import EDIT_TYPES, Edit, InapplicableEditError, apply_edit, sample_any_edit, sample_edit
from ip2p.world.scenes import Scene, Thing, sample_scene

SCENE = Scene("lake", "summer", "day", "clear", "illustration", (Thing("cat", "red", 1, "left"), Thing("boat", "blue", 2, "right")))


def test_every_edit_type_changes_the_scene():
    for type in EDIT_TYPES:
        edit = sample_edit(SCENE, random.Random(0), type=type)
        assert edit is not None
        assert apply_edit(SCENE, edit) != SCENE


def test_an_edit_leaves_alone_what_it_does_not_name():
    edited = apply_edit(SCENE, Edit("recolour", "green", target="cat"))
    assert edited.thing("cat") == Thing("cat", "green", 1, "left")
    assert edited.thing("boat") == SCENE.thing("boat")
    assert edited.setting == SCENE.setting


@pytest.mark.parametrize(
    "edit",
    [
        Edit("season", "summer"),
        Edit("remove", "", target="castle"),
        Edit("move", "right", target="cat"),
        Edit("replace", "boat", target="cat"),
    ],
)
def test_an_edit_that_cannot_be_is_refused(edit):
    with pytest.raises(InapplicableEditError):
        apply_edit(SCENE, edit)


def test_any_scene_has_an_edit():
    for i in range(200):
        scene = sample_scene(random.Random(i))
        assert apply_edit(scene, sample_any_edit(scene, random.Random(i))) != scene
