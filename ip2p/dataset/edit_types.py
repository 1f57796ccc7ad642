"""The kinds of edit that a dataset is balanced over: the field's usual ones, the illustrated world's among them.

Each has a sentence for the language model and a worked example, which goes into the prompt when that kind is wanted.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EditType:
    """A kind of edit: what it means, and one example of it."""

    name: str
    meaning: str
    caption: str
    instruction: str
    edited_caption: str


TAXONOMY = {
    t.name: t
    for t in (
        EditType("replace", "swap one object for another", "a dog asleep on a sofa", "swap the dog for a fox", "a fox asleep on a sofa"),
        EditType("recolour", "change the colour of an object", "a red barn in a field", "paint the barn blue", "a blue barn in a field"),
        EditType("add", "add an object", "a calm lake at dawn", "put a rowing boat on the lake", "a calm lake at dawn with a rowing boat"),
        EditType("remove", "take an object away", "a street with a parked van", "remove the van", "an empty street"),
        EditType("count", "change how many there are", "two candles on a table", "make it five candles", "five candles on a table"),
        EditType("move", "change where an object is", "a cat left of a vase", "move the cat to the right", "a cat right of a vase"),
        EditType("setting", "change the place or background", "a bride in a garden", "move it to a desert", "a bride in a desert"),
        EditType("season", "change the season", "a park path in summer", "make it autumn", "a park path in autumn, leaves on the ground"),
        EditType("time", "change the time of day", "a harbour at noon", "make it night", "a harbour at night"),
        EditType("weather", "change the weather", "a bridge on a clear day", "let there be fog", "a bridge in thick fog"),
        EditType("style", "change the artistic style", "a portrait of a nurse", "as a cubist painting", "a cubist painting of a nurse"),
        EditType("medium", "change the medium or material", "a wooden horse", "make it out of glass", "a glass horse"),
        EditType(
            "attribute", "change size, shape or state", "a new bicycle by a wall", "make the bicycle rusty", "a rusty bicycle by a wall"
        ),
        EditType(
            "action", "change what someone does", "a man reading on a bench", "have him play the guitar", "a man playing guitar on a bench"
        ),
        EditType("person", "change age, clothes or expression", "a girl in a raincoat", "have her laugh", "a laughing girl in a raincoat"),
        EditType("text", "change written words", "a shop sign that says open", "change the sign to closed", "a shop sign that says closed"),
    )
}
EDIT_TYPES = tuple(TAXONOMY)
