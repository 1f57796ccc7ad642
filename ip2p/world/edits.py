"""Edits of scenes, typed: what an instruction asks for, and the scene that results.

Eleven types: replace, recolour, add, remove, count, move (of things) and setting, season, time, weather, style (of all).
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from ip2p.world.scenes import (
    COLOURLESS_STYLES,
    COLOURS,
    GLOBAL_VALUES,
    KINDS,
    MAX_COUNT,
    MAX_GROUPS,
    PLACES,
    Scene,
    Thing,
    ordered,
    sample_thing,
)

THING_EDITS = ("replace", "recolour", "add", "remove", "count", "move")
GLOBAL_EDITS = tuple(GLOBAL_VALUES)
EDIT_TYPES = THING_EDITS + GLOBAL_EDITS
# Edits that show in colour only are not asked of a style that has none.
_NEEDS_COLOUR = frozenset({"recolour", "season"})


class InapplicableEditError(ValueError):
    """The scene has not what the edit names, or already is what it asks for."""


@dataclass(frozen=True, slots=True)
class Edit:
    """One edit. `target` is a kind (thing edits); `value` the new kind, colour, count, place or global value.

    For `add`, `thing` is the group to add, `target` its kind and `value` its place.
    """

    type: str
    value: str
    target: str = ""
    thing: Thing | None = None


def apply_edit(scene: Scene, edit: Edit) -> Scene:
    """The scene after the edit.

    Raises `InapplicableEditError` if the edit would change nothing or names what is not there.
    """
    edited = _applied(scene, edit)
    if edited == scene:
        raise InapplicableEditError(f"{edit.type}: the scene already has {edit.value!r}")
    return edited


def sample_edit(scene: Scene, rng: random.Random, *, type: str) -> Edit | None:
    """A random edit of this type that the scene allows, or None if there is none."""
    if type in _NEEDS_COLOUR and scene.style in COLOURLESS_STYLES:
        return None
    if type in GLOBAL_EDITS:
        return Edit(type, rng.choice(edit_values(scene, type)))
    if type == "add":
        return _sample_add(scene, rng)
    if type == "remove" and len(scene.things) == 1:
        return None
    thing = rng.choice(scene.things)
    choices = edit_values(scene, type, thing)
    return Edit(type, rng.choice(choices), target=thing.kind) if choices else None


def edit_values(scene: Scene, type: str, thing: Thing | None = None) -> list[str]:
    """The values that an edit of this type, of this thing of the scene, can have."""
    if type in GLOBAL_EDITS:
        return [v for v in GLOBAL_VALUES[type] if v != getattr(scene, type)]
    if type == "replace":
        return [k for k in KINDS if scene.thing(k) is None]
    if type == "move":
        return [p for p in PLACES if p not in {t.place for t in scene.things}]
    if thing is not None and type == "recolour":
        return [c for c in COLOURS if c != thing.colour]
    if thing is not None and type == "count":
        return [str(n) for n in range(1, MAX_COUNT + 1) if n != thing.count]
    return [""]


def sample_any_edit(scene: Scene, rng: random.Random) -> Edit:
    """A random edit of a random type that the scene allows."""
    for type in rng.sample(EDIT_TYPES, len(EDIT_TYPES)):
        edit = sample_edit(scene, rng, type=type)
        if edit is not None:
            return edit
    raise AssertionError("every scene allows an edit of its setting")


def _applied(scene: Scene, edit: Edit) -> Scene:
    if edit.type in GLOBAL_EDITS:
        return replace(scene, **{edit.type: edit.value})  # type: ignore[arg-type]
    if edit.type == "add":
        if edit.thing is None or len(scene.things) == MAX_GROUPS:
            raise InapplicableEditError("add: nothing to add, or no room left")
        return _with_things(scene, (*scene.things, edit.thing))
    thing = scene.thing(edit.target)
    if thing is None:
        raise InapplicableEditError(f"{edit.type}: the scene has no {edit.target}")
    rest = tuple(t for t in scene.things if t is not thing)
    if edit.type == "remove":
        if not rest:
            raise InapplicableEditError("remove: a scene keeps at least one thing")
        return replace(scene, things=rest)
    return _with_things(scene, (*rest, _changed(thing, edit)))


def _changed(thing: Thing, edit: Edit) -> Thing:
    if edit.type == "replace":
        return replace(thing, kind=edit.value)
    if edit.type == "recolour":
        return replace(thing, colour=edit.value)
    if edit.type == "count":
        return replace(thing, count=int(edit.value))
    if edit.type == "move":
        return replace(thing, place=edit.value)
    raise InapplicableEditError(f"edit.type: {edit.type!r} is not one of {', '.join(EDIT_TYPES)}")


def _with_things(scene: Scene, things: tuple[Thing, ...]) -> Scene:
    try:
        return replace(scene, things=ordered(things))
    except ValueError as error:
        raise InapplicableEditError(str(error)) from error


def _sample_add(scene: Scene, rng: random.Random) -> Edit | None:
    places = [p for p in PLACES if p not in {t.place for t in scene.things}]
    if not places:
        return None
    kinds = tuple(k for k in KINDS if scene.thing(k) is None)
    thing = sample_thing(rng, kinds=kinds, place=rng.choice(places))
    return Edit("add", thing.place, target=thing.kind, thing=thing)
