"""What Prompt-to-Prompt adds over shared noise: `python docs/prompt_to_prompt.py` (ten minutes on two cores; resumes).

The same triplets with the same noise and guidance, at each share of steps that share attention (p2p) and by each method. Writes
a part of docs/world.md and its pictures.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from quality import IMAGES, PAGE, difference, plain_firsts, progress, teacher
from torch import Tensor

from ip2p.clip import Clip, image_features, load_clip
from ip2p.dataset import filter, pairs, triplets
from ip2p.dataset.alignment import layout_kept
from ip2p.dataset.read import read_triplets
from ip2p.model.bootstrap import bootstrap
from ip2p.model.measure import paired
from ip2p.model.plots import plot_shares
from ip2p.params import Params, load_params
from ip2p.pictures import from_bytes, to_pillow
from ip2p.records import Triplet
from ip2p.sheets import sheet as pictures_sheet
from ip2p.store import read_shards
from ip2p.world.edits import EDIT_TYPES
from ip2p.world.reading import read_choices
from ip2p.world.report import write_part
from ip2p.world.truth import truth_of

HEADING = "# What Prompt-to-Prompt adds"
"""Of the part of the page that this script writes."""
WORK = Path("work/p2p")
COUNT = 24 * len(EDIT_TYPES)
SHARES = (0.2, 0.4, 0.6, 0.8, 0.9)
METHODS = ("self_attention", "cross_attention", "both")
ALONE = ("none", 0.0)
SHOWN = ("replace", "add", "season")


@dataclass(frozen=True)
class Result:
    """Of every triplet, in order: whether the edit was made, whether the filter kept the pair, how much of the layout stayed."""

    made: list[float]
    kept: list[float]
    layout: list[float]

    @property
    def good(self) -> list[float]:
        """Layout where the edit was made, 0 where it was not: what a pair is worth."""
        return [m * max(0.0, x) for m, x in zip(self.made, self.layout, strict=True)]


def main() -> None:
    """Measure and write."""
    params = load_params(Path("params.yaml"))
    own = params.changed("triplets", count=COUNT).model_copy(update={"seed": params.seed + 1})
    triplets.run(own, out=WORK / "triplets", work=WORK)
    asked = read_triplets(WORK / "triplets")
    clip = load_clip(params.models.clip, device=torch.device("cpu"))
    choices = [read_choices(clip, t.caption.text, t.instruction) for t in asked]
    settings = [ALONE, *((m, share) for m in METHODS for share in SHARES)]
    results: dict[tuple[str, float], Result] = {}
    sheets: dict[tuple[str, float], tuple[Tensor, Tensor]] = {}
    for number, setting in enumerate(settings):
        sheets[setting], kept = make(params, *setting)
        results[setting] = read(clip, choices, *sheets[setting], kept)
        progress("p2p")(number + 1, len(settings))
    rendered = [truth_of(t.caption.text, t.instruction, seed=10**9 + i, size=96) for i, t in enumerate(asked)]
    truth = [torch.stack([getattr(t, f"{n}_CHW") for t in rendered]) for n in ("source", "target")]
    bound = read(clip, choices, truth[0], truth[1], [1.0] * len(asked))
    IMAGES.mkdir(parents=True, exist_ok=True)
    (IMAGES / "p2p.png").write_bytes(plot(results))
    sheet(asked, sheets).save(IMAGES / "p2p-pairs.png")
    write_part(PAGE, HEADING, markdown(asked, results, bound))


def make(params: Params, method: str, share: float) -> tuple[tuple[Tensor, Tensor], list[float]]:
    """Both images `BCHW` of every triplet's pair, and whether the filter keeps it."""
    folder = WORK / f"{method}-{share:g}"
    params = params.changed("pairs", method=method, p2p=(share, share))
    pairs.run(params, triplets=WORK / "triplets", out=folder / "pairs", work=folder / "work")
    filter.run(params, pairs=folder / "pairs", out=folder / "dataset", work=folder / "work")
    rows = read_shards(folder / "pairs", columns=["triplet_id", "pair_id", "original_image", "edited_image"]).to_pylist()
    verdicts = read_shards(folder / "dataset/verdicts").to_pylist()
    kept = {v["pair_id"]: float(v["kept"]) for v in verdicts}
    images = [torch.stack([from_bytes(r[n]["bytes"], where=r["pair_id"]) for r in rows]) for n in ("original_image", "edited_image")]
    return (images[0], images[1]), [kept[r["pair_id"]] for r in rows]


def read(clip: Clip, choices: list[Any], before: Tensor, after: Tensor, kept: list[float]) -> Result:
    """Measure pairs whose triplets leave these choices."""
    features = [torch.cat([image_features(clip, x) for x in images.split(64)]) for images in (before, after)]
    made = [float(c.made(a, b)) for c, a, b in zip(choices, *features, strict=True)]
    return Result(made, kept, layout_kept(before, after).tolist())


def plot(results: dict[tuple[str, float], Result]) -> bytes:
    """The measures over p2p, one line a method."""
    told = {"made": "edit made", "layout": "layout kept", "good": "layout where the edit was made", "kept": "pairs kept by the filter"}
    lines: dict[str, dict[str, list[tuple[float, float, float, float]]]] = {}
    for name, title in told.items():
        for method in METHODS:
            points = [(0.0, results[ALONE]), *((s, results[method, s]) for s in SHARES)]
            values = [(x, getattr(r, name)) for x, r in points]
            lines.setdefault(title, {})[method.replace("_", "-")] = [(x, mean(v), *bootstrap(v)) for x, v in values]
    return plot_shares(lines, x="p2p: share of steps that share attention")


def sheet(asked: list[Triplet], sheets: dict[tuple[str, float], tuple[Tensor, Tensor]]) -> Image.Image:
    """A block of rows an edit, a row a method: source without sharing, then the edited image at each p2p."""
    rows = []
    firsts = plain_firsts((t.edit_type, t.caption.text) for t in asked)
    for number in map(firsts.__getitem__, SHOWN):
        for method in METHODS:
            images = [sheets[ALONE][0][number], sheets[ALONE][1][number], *(sheets[method, s][1][number] for s in SHARES)]
            rows.append([(f"{asked[number].instruction}: {method.replace('_', '-')}", [to_pillow(x) for x in images])])
    return pictures_sheet(rows, heads=["source", "p2p 0", *(f"{s:g}" for s in SHARES)])


def markdown(asked: list[Triplet], results: dict[tuple[str, float], Result], bound: Result) -> str:
    """That part of the page."""
    types = sorted({t.edit_type for t in asked}, key=EDIT_TYPES.index)
    head = ["method", "p2p", "edit made", "layout", "layout where made", "kept", *types]
    lines = [line(setting, result, asked, types) for setting, result in results.items()]
    lines.append(line(("the truth, as rendered", None), bound, asked, types))
    best = {m: max((results[m, s] for s in SHARES), key=lambda r: mean(r.good)) for m in METHODS}
    at = {m: next(s for s in SHARES if results[m, s] is best[m]) for m in METHODS}
    gained = {m: paired(asdict(best[m]) | {"good": best[m].good}, asdict(results[ALONE]) | {"good": results[ALONE].good}) for m in METHODS}
    gains = "\n".join(
        f"- **{m.replace('_', '-')}** is best at {at[m]:g}: "
        + "; ".join(f"{told} {difference(gained[m][name])}" for name, told in _GAINS.items())
        + "."
        for m in METHODS
    )
    return f"""Written by `python docs/prompt_to_prompt.py`, with the teacher `{teacher()}`.
{len(asked)} triplets, {len(asked) // len(types)} an edit type, one pair each with the same noise and guidance in every row; 0 is
shared noise alone. *Edit made*: CLIP, whose own error is in the
last row, reads the source's value off the first image and the value asked for off the second, out of all values the edit
could have had (adding and removing leave only two). *Layout*: correlation of both images' edges; *where made* counts 0 where the
edit was not made, so it is what a pair is worth to a student. *Kept*: share that passes the filters of params.yaml. By edit
type: edit made.

| {" | ".join(head)} |
{"|---" * len(head)}|
{chr(10).join(lines)}

Over shared noise alone (difference over the same triplets, 95% interval):
{gains}

![the measures over p2p](img/p2p.png)

The first triplet of three edit types in the plain style; p2p 0 is shared noise alone:

![edited images over p2p](img/p2p-pairs.png)
"""


_GAINS = {"made": "edits made", "layout": "layout", "good": "layout where made", "kept": "pairs kept"}


def line(setting: tuple[str, float | None], result: Result, asked: list[Triplet], types: list[str]) -> str:
    """A row of the table."""
    by_type = [mean([m for m, t in zip(result.made, asked, strict=True) if t.edit_type == k]) for k in types]
    share = "" if setting[1] is None else f"{setting[1]:g}"
    columns = [f"{mean(getattr(result, n)):.3f}" for n in ("made", "layout", "good")] + ["" if share == "" else f"{mean(result.kept):.3f}"]
    return f"| {setting[0].replace('_', '-')} | {share} | {' | '.join(columns)} | {' | '.join(f'{x:.2f}' for x in by_type)} |"


def mean(values: list[float]) -> float:
    """The mean."""
    return sum(values) / len(values)


if __name__ == "__main__":
    main()
