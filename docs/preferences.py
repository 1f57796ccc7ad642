"""Whether votes make a better editor: `python docs/preferences.py` after `make run` (half an hour on two cores; resumes).

The editor that ships edits new pictures of the world, each from several seeds; in place of people its checker, which knows
the truth, prefers a picture's best edit to its worst. Votes go through the service's history and `ip2p feedback export`;
then the editor is trained on with them, by either loss, and, alike in all else, without. Writes a part of docs/world.md.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from quality import COUNT, PAGE, difference, progress, table

from ip2p.dataset.world_writer import write_triplets
from ip2p.model import evaluate, train
from ip2p.model.edit import edit_batch, open_editor
from ip2p.model.guidance import EditRequest, edit_options
from ip2p.model.heldout import held_out
from ip2p.model.measure import paired
from ip2p.model.seen import read_seen
from ip2p.models import EMBEDDED
from ip2p.params import Params, ServeParams, load_params
from ip2p.pictures import to_png
from ip2p.records import Triplet
from ip2p.serve.history import EditRow, History, open_history
from ip2p.serve.preferences import export
from ip2p.stages import DATASET, MARKER, TRIPLETS, WORK
from ip2p.store import read_json
from ip2p.world.report import write_part
from ip2p.world.truth import read_edit, truth_of

HEADING = "# What votes are worth"
"""Of the part of the page that this script writes."""
HOME, OUT = WORK / "preferences", Path("reports/preferences")
SCENES, SEEDS, BATCH = 900, 4, 6
"""Pictures that are edited, each from so many seeds, so many pictures at once."""
SEEN = 1.2
"""By what factor edits that both succeed, or both fail, must differ in distance to be told apart."""
TRAINING: dict[str, Any] = {"steps": 200, "lr": 2e-4, "preference_batch": 16}
LOSSES: dict[str, dict[str, Any]] = {
    "better": {"preference_loss": "better", "preference_weight": 1.0},
    "dpo": {"preference_loss": "dpo", "preference_weight": 0.1},
}
COMPARED = ("success", "stayed", "l1", "image_similarity")
NAMES = {
    "start": "the shipped editor",
    "without": "trained on without votes",
    "better": "trained on with the preferred edits",
    "dpo": "trained on with DPO",
}


def main() -> None:
    """Gather, train, measure and write."""
    params = load_params(Path("params.yaml"))
    if not (HOME / "votes/dataset.json").exists():
        gather(params)
    editors = {"start": EMBEDDED / "editor"} | {name: trained(params, name) for name in ("without", *LOSSES)}
    narrow = {"count": COUNT, "previous": None, "image_guidance_sweep": (), "text_guidance_sweep": (), "sdedit_strengths": ()}
    for name, editor in editors.items():
        paths = {"triplets": TRIPLETS, "dataset": DATASET, "out": OUT / name, "work": HOME / "points"}
        evaluate.run(params.changed("evaluate", **narrow), editor=editor, progress=progress(name), **paths)
    write_part(PAGE, HEADING, markdown({name: read_json(OUT / name / "report.json") for name in editors}))


def gather(params: Params) -> None:
    """Edit pictures that nothing is measured on, vote, and export the votes."""
    editor = open_editor(EMBEDDED / "editor", params.models)
    seen = read_seen(EMBEDDED / "editor")
    held = held_out(params.changed("evaluate", count=COUNT), triplets=TRIPLETS, dataset=DATASET, size=editor.image_size, seen=seen)
    known = seen.with_captions(e.caption for e in held.edits)
    section = ServeParams(database=f"sqlite:///{HOME}/edits.db", pictures=str(HOME / "pictures"), keep=10 * SCENES)
    HOME.mkdir(parents=True, exist_ok=True)
    history, tell = open_history(section), progress("vote")
    scenes = list(write_triplets(count=SCENES, stream="preferences", avoid=known))
    for first in range(0, SCENES, BATCH):
        some = scenes[first : first + BATCH]
        for triplet, edits in zip(some, attempts(editor, params, some, first=first), strict=True):
            vote(history, triplet, edits)
        tell(first + len(some), SCENES)
    export(params.model_copy(update={"serve": section}), HOME / "votes")


def attempts(editor: Any, params: Params, triplets: list[Triplet], *, first: int) -> Iterator[list[dict[str, Any]]]:
    """Edits of each triplet's picture, from `SEEDS` seeds, and how the checker reads them."""
    section = params.evaluate
    truths = [truth_of(t.caption.text, t.instruction, seed=10**8 + first + i, size=editor.image_size) for i, t in enumerate(triplets)]
    scales = (section.text_guidance, section.image_guidance)
    requests = [EditRequest(t.instruction, *scales, seed) for t in triplets for seed in range(SEEDS)]
    sources = torch.stack([t.source_CHW for t in truths]).repeat_interleave(SEEDS, 0)
    edited = edit_batch(editor, sources, requests, edit_options(section)).cpu().split(SEEDS)
    for truth, pictures in zip(truths, edited, strict=True):
        yield [{"source": truth.source_CHW, "picture": x, "seed": i, "reading": read_edit(x, truth)} for i, x in enumerate(pictures)]


def vote(history: History, triplet: Triplet, edits: list[dict[str, Any]]) -> None:
    """Prefer the best edit to the worst, by success and then by distance from the truth, if the difference can be seen."""
    ranked = sorted(edits, key=lambda e: (not (e["reading"].done and e["reading"].stayed), e["reading"].distance))
    best, worst = (e["reading"] for e in (ranked[0], ranked[-1]))
    if (best.done and best.stayed) != (worst.done and worst.stayed) or worst.distance > SEEN * best.distance:
        better, worse = (add(history, triplet, e) for e in (ranked[0], ranked[-1]))
        history.vote(kind="pair", edit=better, other=worse, value=1, reason=None, comment="", voter="checker")


def add(history: History, triplet: Triplet, edit: dict[str, Any]) -> str:
    """Store an edit as the service does; returns its id."""
    source, made = (history.keep_picture(to_png(edit[n])) for n in ("source", "picture"))
    side = edit["picture"].shape[-1]
    usual = {"solver": "euler_ancestral", "guidance_from": 0.0, "guidance_until": 1.0, "guidance_every": 1, "mask": None}
    usual |= {"door": "docs", "version": "embedded", "text_guidance": 0.0, "image_guidance": 0.0, "steps": 0}
    places = {"source": source, "picture": made, "width": side, "height": side}
    row = EditRow(id=uuid4().hex, created=time.time(), instruction=triplet.instruction, seed=edit["seed"], **places, **usual)
    history.add(row)
    return row.id


def trained(params: Params, name: str) -> Path:
    """The shipped editor trained on, with votes or without."""
    votes = {"preferences": str(HOME / "votes")} | LOSSES[name] if name in LOSSES else {"preferences": None}
    section = TRAINING | {"start": "world"} | votes
    params = params.changed("train", **section)
    train.run(params, dataset=DATASET, marker=MARKER, out=HOME / name, work=HOME / f"train-{name}")
    return HOME / name


def markdown(reports: dict[str, Any]) -> str:
    """That part of the page."""
    votes = read_json(HOME / "votes/dataset.json")["pairs"]
    gains = []
    for a, b in (("better", "without"), ("better", "start"), ("better", "dpo"), ("dpo", "without")):
        less = paired(reports[a]["rows"], reports[b]["rows"])
        gains.append(f"| {NAMES[a]} − {NAMES[b]} | {' | '.join(difference(less[m]) for m in COMPARED)} |")
    told = "\n".join(gains)
    rows = {t: [r["headline"]["by_type"][t]["success"] for r in reports.values()] for t in sorted(reports["start"]["headline"]["by_type"])}
    by_type = "\n".join(f"| {t} | " + " | ".join(f"{v:.2f}" for v in values) + " |" for t, values in rows.items())
    how = f"{TRAINING['steps']} steps of training at a rate of {TRAINING['lr']:g}"
    shares = " or ".join(f"{w['preference_weight']:g} ({n})" for n, w in LOSSES.items())
    return f"""Written by `python docs/preferences.py` after `make run`. The editor that ships edited {SCENES:,} new
pictures from {SEEDS} seeds each; the checker, in place of a person, preferred a picture's best edit to its worst, by success and then
by distance from the truth, where one succeeded and one did not or the distances differ by {SEEN - 1:.0%}: {votes} votes,
through the service's history and `ip2p feedback export`. Then {how},
with {TRAINING["preference_batch"]} of the votes a step, of weight {shares}, and without, the same pairs otherwise;
{reports["start"]["count"]} held-out edits of captions that none was trained on or voted for.

{table({NAMES[n]: r["headline"] for n, r in reports.items()})}

Differences, edit by edit:

| | {" | ".join(m.replace("_", " ") for m in COMPARED)} |
|---{"|---" * len(COMPARED)}|
{told}

| success | {" | ".join(NAMES[n] for n in reports)} |
|---{"|---" * len(reports)}|
{by_type}
"""


if __name__ == "__main__":
    main()
