# ruff: noqa: E501 (the tables below read better wide)
"""The world's small language: captions and instructions, several natural phrasings each, written and read by one table.

Scene → caption → the same scene; edit → instruction → the same edit. A caption may leave out what is usual: one
illustration, by day, in clear weather. `mention` writes a partial caption, as people often do.
"""

from __future__ import annotations

import random
import re
from functools import lru_cache

from ip2p.world.edits import Edit
from ip2p.world.scenes import COLOURS, GLOBAL_VALUES, KINDS, PLACES, Scene, Thing, ordered

_NUMBERS = ("", "one", "two", "three")
_PLACE = {
    "left": ("on the left", "at the left"),
    "middle": ("in the middle", "in the centre"),
    "right": ("on the right", "at the right"),
}
_NOUNS = {"balloon": ("balloon", "hot air balloon"), "boat": ("boat", "sailing boat"), "bus": ("bus",)}
_SETTING = {
    "beach": ("at the beach", "on a beach"),
    "field": ("in a field", "in the field"),
    "desert": ("in the desert", "in a desert"),
    "mountains": ("in the mountains", "in front of mountains"),
    "forest": ("in the forest", "in a forest", "in the woods"),
    "city": ("in the city", "in a city"),
    "lake": ("by a lake", "at the lake"),
    "farm": ("on a farm", "at the farm"),
}
_SCENE_SEASON = {s: (f"in {s}",) for s in GLOBAL_VALUES["season"]} | {"autumn": ("in autumn", "in the fall")}
_TIME = {
    "day": ("", "by day", "during the day"),
    "sunset": ("at sunset", "at dusk"),
    "night": ("at night", "after dark"),
}
_WEATHER = {
    "clear": ("", "under a clear sky", "in clear weather"),
    "rain": ("in the rain", "on a rainy day"),
    "snow": ("in falling snow", "while it snows", "in the snow"),
    "fog": ("in the fog", "in thick fog"),
    "storm": ("in a storm", "during a thunderstorm"),
}
_STYLE = {
    "illustration": ("", "an illustration of"),
    "pencil sketch": ("a pencil sketch of", "a sketch of"),
    "watercolour": ("a watercolour of", "a watercolour painting of"),
    "sepia photograph": ("a sepia photograph of", "an old sepia photo of"),
    "pixel art": ("pixel art of", "a pixel art picture of"),
    "neon": ("a neon picture of", "neon lights showing"),
    "pop art": ("pop art of", "a pop art print of"),
    "blueprint": ("a blueprint of", "a blueprint drawing of"),
}
# What the parser looks for, as whole words, in this order; the first hit wins.
_SIGNS: dict[str, dict[str, str]] = {
    "setting": {**{s: s for s in GLOBAL_VALUES["setting"]}, "mountain": "mountains", "fields": "field", "woods": "forest"},
    "season": {**{s: s for s in GLOBAL_VALUES["season"]}, "fall": "autumn", "wintry": "winter", "autumnal": "autumn"},
    "time": {"night": "night", "dark": "night", "nighttime": "night", "sunset": "sunset", "dusk": "sunset", "evening": "sunset", "day": "day", "daytime": "day", "daylight": "day"},
    "weather": {"rain": "rain", "rainy": "rain", "raining": "rain", "snow": "snow", "snowy": "snow", "snows": "snow", "snowing": "snow", "fog": "fog", "foggy": "fog", "mist": "fog", "misty": "fog", "storm": "storm", "stormy": "storm", "thunderstorm": "storm", "lightning": "storm", "clear": "clear", "sunny": "clear"},
    "style": {"pencil": "pencil sketch", "sketch": "pencil sketch", "watercolour": "watercolour", "sepia": "sepia photograph", "photograph": "sepia photograph", "pixel": "pixel art", "neon": "neon", "pop": "pop art", "blueprint": "blueprint", "illustration": "illustration"},
}  # fmt: skip
_USUAL = {"time": "day", "weather": "clear", "style": "illustration"}

_INSTRUCTIONS: dict[str, tuple[str, ...]] = {
    "replace": ("swap {target} for {new}", "replace {target} with {new}", "turn {target} into {new}", "change {target} to {new}"),
    "recolour": ("make {target} {colour}", "paint {target} {colour}", "change the colour of {target} to {colour}", "turn {target} {colour}"),
    "add": ("add {thing}", "put {thing}", "insert {thing}", "there should be {thing}"),
    "remove": ("remove {target}", "take away {target}", "delete {target}", "get rid of {target}"),
    "count": ("make it {number} {target_noun}", "change the number of {target_noun} to {number}", "show {number} {target_noun} instead"),
    "move": ("move {target} to {side}", "put {target} {place}", "shift {target} to {side}"),
    "setting": ("change the setting to {setting}", "make the background {setting}", "set it {setting_phrase}", "as if it were {setting_phrase}"),
    "season": ("make it {season}", "change the season to {season}", "turn it into a {season} scene", "as if it were {season}"),
    "time": ("make it {time}", "change the time to {time}", "turn it into a {time} scene"),
    "weather": ("make it {weather}", "change the weather to {weather}", "make the weather {weather}"),
    "style": ("make it {style}", "turn it into {style}", "draw it as {style}", "in the style of {style}"),
}  # fmt: skip
_VALUE_WORDS: dict[str, dict[str, tuple[str, ...]]] = {
    "setting": {"beach": ("a beach",), "field": ("a field",), "desert": ("a desert", "the desert"), "mountains": ("mountains", "the mountains"), "forest": ("a forest", "the woods"), "city": ("a city",), "lake": ("a lake",), "farm": ("a farm",)},
    "season": {"spring": ("spring",), "summer": ("summer",), "autumn": ("autumn", "fall"), "winter": ("winter",)},
    "time": {"day": ("day", "daytime"), "sunset": ("sunset", "dusk"), "night": ("night", "nighttime")},
    "weather": {"clear": ("clear", "sunny"), "rain": ("rain", "rainy"), "snow": ("snow", "snowy"), "fog": ("foggy", "misty"), "storm": ("stormy", "a storm")},
    "style": {"illustration": ("an illustration", "a plain illustration"), "pencil sketch": ("a pencil sketch", "a sketch"), "watercolour": ("a watercolour", "a watercolour painting"), "sepia photograph": ("a sepia photograph", "an old sepia photo"), "pixel art": ("pixel art",), "neon": ("neon", "neon lights"), "pop art": ("pop art",), "blueprint": ("a blueprint", "a blueprint drawing")},
}  # fmt: skip


class LanguageError(ValueError):
    """A text that the world's language does not know."""


def write_caption(scene: Scene, rng: random.Random) -> str:
    """A full caption of the scene; `read_caption` gives the scene back."""
    where = [_SETTING[scene.setting], _SCENE_SEASON[scene.season], _TIME[scene.time], _WEATHER[scene.weather]]
    tail = [rng.choice(options) for options in where]
    head, rest = tail[0], [t for t in tail[1:] if t]
    rng.shuffle(rest)
    things = _listed([_thing_phrase(t, rng) for t in ordered(scene.things)])
    style = rng.choice(_STYLE[scene.style])
    return " ".join(x for x in (style, things, head, *rest) if x)


def write_mention(scene: Scene, rng: random.Random) -> str:
    """A partial caption: one to three facts of the scene, in the words that captions and instructions use."""
    words = [rng.choice(_SETTING[scene.setting]), rng.choice(_SCENE_SEASON[scene.season])]
    words += [w for w in (rng.choice(_TIME[scene.time]), rng.choice(_WEATHER[scene.weather])) if w]
    words += [rng.choice(_VALUE_WORDS[n][getattr(scene, n)]) for n in ("season", "time", "weather", "style")]
    words += [_thing_phrase(t, rng) for t in scene.things] * 2
    return " ".join(rng.sample(words, rng.randint(1, 3)))


def write_instruction(edit: Edit, scene: Scene, rng: random.Random) -> str:
    """An instruction for this edit of this scene; `read_instruction` gives the edit back."""
    return _fill(rng.choice(_INSTRUCTIONS[edit.type]), edit, scene, rng)


def read_caption(caption: str) -> Scene:
    """The scene that a full caption describes. Raises `LanguageError` naming what is missing."""
    text = _normal(caption)
    values: dict[str, str] = {}
    for name, signs in _SIGNS.items():
        found = re.search(rf"\b({'|'.join(signs)})\b", text)
        if found is None and name not in _USUAL:
            raise LanguageError(f"caption {caption!r}: no {name} is named, say one of {', '.join(GLOBAL_VALUES[name])}")
        values[name] = signs[found[1]] if found else _USUAL[name]
    if values["time"] == "day":  # "on a rainy day at night": day is only a way to say weather
        later = re.search(r"\b(night|dark|sunset|dusk)\b", text)
        values["time"] = _SIGNS["time"][later[1]] if later else "day"
    things = tuple(_thing(m) for m in re.finditer(_thing_pattern(), text))
    try:
        return Scene(**values, things=ordered(things))
    except ValueError as error:
        raise LanguageError(f"caption {caption!r}: {error}") from error


def read_instruction(instruction: str) -> Edit:
    """The edit that an instruction asks for. Raises `LanguageError` if no phrasing fits."""
    text = _normal(instruction)
    for type, pattern in _instruction_patterns():
        found = pattern.fullmatch(text)
        if found:
            return _edit(type, found)
    raise LanguageError(f"instruction {instruction!r}: not a phrasing of the illustrated world")


def _normal(text: str) -> str:
    text = re.sub(r"[^a-z0-9 ]+", " ", text.lower())
    text = re.sub(r"\bcolor\b", "colour", text)
    text = re.sub(r"\bwatercolor\b", "watercolour", text)
    return re.sub(r"\s+", " ", text).strip()


def _nouns(kind: str) -> tuple[str, ...]:
    return _NOUNS.get(kind, (kind,))


def _plural(noun: str) -> str:
    return noun + ("es" if noun.endswith("s") else "s")


def _listed(phrases: list[str]) -> str:
    return " and ".join(phrases) if len(phrases) < 3 else ", ".join(phrases[:-1]) + " and " + phrases[-1]


def _article(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def _thing_phrase(thing: Thing, rng: random.Random) -> str:
    noun, place = rng.choice(_nouns(thing.kind)), rng.choice(_PLACE[thing.place])
    if thing.count == 1:
        return f"{_article(thing.colour)} {noun} {place}"
    return f"{_NUMBERS[thing.count]} {thing.colour} {_plural(noun)} {place}"


def _fill(template: str, edit: Edit, scene: Scene, rng: random.Random) -> str:
    slots: dict[str, str] = {}
    thing = scene.thing(edit.target) if edit.type != "add" else None
    if edit.type == "add":
        assert edit.thing is not None
        slots["thing"] = _thing_phrase(edit.thing, rng)
    elif thing is not None:
        noun = rng.choice(_nouns(thing.kind))
        slots["target"] = "the " + (noun if thing.count == 1 else _plural(noun))
        slots["target_noun"] = noun if edit.value == "1" and "number of" not in template else _plural(noun)
    if edit.type == "replace" and thing is not None:
        new = rng.choice(_nouns(edit.value))
        slots["new"] = _article(new) if thing.count == 1 else _plural(new)
    elif edit.type == "count":
        slots["number"] = _NUMBERS[int(edit.value)]
    elif edit.type == "move":
        slots |= {"side": f"the {edit.value}", "place": _PLACE[edit.value][0]}
    elif edit.type in GLOBAL_VALUES:
        slots[edit.type] = rng.choice(_VALUE_WORDS[edit.type][edit.value])
        slots["setting_phrase"] = rng.choice(_SETTING[edit.value]) if edit.type == "setting" else ""
    slots["colour"] = edit.value
    return template.format_map(slots)


@lru_cache(maxsize=1)
def _kind_of() -> dict[str, str]:
    singular = {noun: kind for kind in KINDS for noun in _nouns(kind)}
    return singular | {_plural(noun): kind for noun, kind in singular.items()}


def _any(words: object) -> str:
    return "|".join(sorted((str(w) for w in words), key=len, reverse=True))  # type: ignore[attr-defined]


@lru_cache(maxsize=1)
def _place_of() -> dict[str, str]:
    return {phrase: place for place, phrases in _PLACE.items() for phrase in phrases}


@lru_cache(maxsize=1)
def _thing_pattern() -> str:
    return (
        rf"\b(?P<n>a|an|one|two|three|1|2|3) (?P<colour>{_any(COLOURS)}) (?P<kind>{_any(_kind_of())}) "
        rf"(?P<place>{_any(_place_of())})\b"
    )


def _thing(found: re.Match[str]) -> Thing:
    count = {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3}.get(found["n"]) or int(found["n"])
    return Thing(_kind_of()[found["kind"]], found["colour"], count, _place_of()[found["place"]])


@lru_cache(maxsize=1)
def _instruction_patterns() -> tuple[tuple[str, re.Pattern[str]], ...]:
    kinds, numbers = _any(_kind_of()), "one|two|three|1|2|3"
    slots = {
        "{target}": rf"the (?P<target>{kinds})",
        "{target_noun}": rf"(?P<target>{kinds})",
        "{new}": rf"(?:an? )?(?P<value>{kinds})",
        "{colour}": rf"(?P<value>{_any(COLOURS)})",
        "{thing}": _thing_pattern(),
        "{number}": rf"(?P<value>{numbers})",
        "{side}": rf"the (?P<value>{_any(PLACES)})",
        "{place}": rf"(?P<value>{_any(_place_of())})",
        "{setting_phrase}": rf"(?P<value>{_any(p for ps in _SETTING.values() for p in ps)})",
    }
    for name, words in _VALUE_WORDS.items():
        slots[f"{{{name}}}"] = rf"(?:an? )?(?P<value>{_any(w for ws in words.values() for w in ws)})"
    patterns = []
    for type, templates in _INSTRUCTIONS.items():
        for template in templates:
            for slot, pattern in slots.items():
                template = template.replace(slot, pattern)
            patterns.append((type, re.compile(template)))
    return tuple(patterns)


def _edit(type: str, found: re.Match[str]) -> Edit:
    if type == "add":
        thing = _thing(found)
        return Edit("add", thing.place, target=thing.kind, thing=thing)
    groups = found.groupdict()
    target = _kind_of()[groups["target"]] if "target" in groups else ""
    return Edit(type, _value(type, groups.get("value", "")), target=target)


def _value(type: str, word: str) -> str:
    if type == "replace":
        return _kind_of()[word]
    if type == "count":
        return str(_NUMBERS.index(word)) if word in _NUMBERS else word
    if type == "move":
        return _place_of().get(word, word)
    if type in GLOBAL_VALUES:
        phrases = {w: v for v, ws in _VALUE_WORDS[type].items() for w in ws}
        if type == "setting":
            phrases |= {p: v for v, ps in _SETTING.items() for p in ps}
        return phrases[word]
    return word
