# ruff: noqa: E501 (HTML reads better unbroken)
"""The page a run ends with: one self-contained HTML file with survivors, before/after pictures, curves, numbers, versions."""

from __future__ import annotations

import base64
import html
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ip2p.params import Params
from ip2p.records import SHOWN, StageReport
from ip2p.store import read_json, write_bytes

_STAGES = ("triplets", "pairs", "filter", "validate", "train", "evaluate", "register")
_MEASURES = (
    "success",
    "done",
    "stayed",
    "l1",
    "l2",
    "outside",
    "change",
    "shift",
    "zoom",
    "image_similarity",
    "direction_similarity",
    "text_similarity",
    "dino_similarity",
    "target_similarity",
    "target_dino_similarity",
)
_WEAK = ("count", "spatial")
_VIEWS = ("source", "editor", "truth")
_PACKAGES = ("ip2p", "torch", "diffusers", "transformers", "open_clip_torch", "prefect", "dvc", "mlflow", "great_expectations")
_STYLE = """
:root{--ink:#212529;--soft:#6c757d;--line:#dee2e6;--hot:#d9480f}
*{box-sizing:border-box} body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);max-width:1040px;margin:0 auto;padding:32px 20px}
h1{font-size:30px;margin:0} h2{font-size:20px;margin:40px 0 12px;border-bottom:1px solid var(--line);padding-bottom:6px}
.sub{color:var(--soft);margin:4px 0 24px} .cards{display:flex;gap:12px;flex-wrap:wrap}
.card{border:1px solid var(--line);border-radius:10px;padding:12px 16px;min-width:150px} .card b{display:block;font-size:26px}
.card span{color:var(--soft);font-size:13px} table{border-collapse:collapse;width:100%;font-size:14px}
td,th{padding:6px 10px;border-bottom:1px solid var(--line);text-align:left} td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
.bar{background:var(--hot);height:10px;border-radius:5px;display:inline-block}
.edits{display:grid;grid-template-columns:repeat(auto-fill,minmax(320px,1fr));gap:18px}
figure{margin:0} figure div{display:flex;gap:4px} figure img{flex:1;min-width:0;image-rendering:auto;border-radius:6px}
.wide{overflow-x:auto} figcaption{font-size:14px} figcaption small{color:var(--soft)} .plot{max-width:100%}
"""


def run(params: Params, *, reports: Path, evaluation: Path, out: Path) -> StageReport:
    """Write the page to `out`."""
    began = time.monotonic()
    stages = {s: read_json(reports / f"{s}.json") for s in _STAGES}
    result = read_json(evaluation / "report.json")
    examples = read_json(evaluation / "examples.json")[: params.report.grid]
    body = "".join(
        [
            _head(stages["register"]["extra"]),
            _cards(result),
            f"<h2>Edits of held-out pictures</h2>{_edits(examples, evaluation)}",
            f"<h2>Against the baselines</h2>{_systems(result)}{_picture(evaluation / 'curve.png', 'similarity curves', 'plot')}",
            f"<h2>Best, median and worst</h2>{_extremes(evaluation)}",
            _judge(result),
            _benchmarks(result),
            f"<h2>By edit type</h2>{_picture(evaluation / 'types.png', 'success by edit type', 'plot')}{_types(result['headline']['by_type'])}",
            f"<h2>What became of the pairs</h2>{_survivors(stages['filter'])}",
            f"<h2>Stages</h2>{_stages(stages)}",
            f"<h2>Versions</h2>{_versions(stages)}",
        ]
    )
    title = "ip2p run report"
    page = f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title><style>{_STYLE}</style><body>{body}</body></html>\n'
    write_bytes(out, page.encode())
    return StageReport(stage="report", seen=len(examples), kept=len(examples), seconds=time.monotonic() - began, extra={"path": str(out)})


def _head(registered: dict[str, Any]) -> str:
    state = "promoted to champion" if registered["promoted"] == "True" else "registered as challenger, not promoted"
    gate = html.escape(registered["gate"])
    return f"<h1>{html.escape(registered['model'])} version {registered['version']}</h1><p class=sub>{state}. Gate: {gate}</p>"


def _cards(result: dict[str, Any]) -> str:
    head, low_high = result["headline"], result["headline"]["intervals"]
    known = [("success", "edit done, rest left alone"), ("done", "edit done"), ("stayed", "rest left alone")]
    clip = [(n, n.replace("_", " ")) for n in ("direction_similarity", "image_similarity", "text_similarity")]
    made = [
        f"<div class=card><b>{head[n]:.0%}</b><span>{label}<br>95% interval {low_high[n][0]:.0%} to {low_high[n][1]:.0%}</span></div>"
        for n, label in (known if "success" in head else clip)
        if n in head
    ]
    return f"<div class=cards>{''.join(made)}<div class=card><b>{result['count']}</b><span>held-out edits</span></div></div>"


def _edits(examples: list[dict[str, str]], evaluation: Path) -> str:
    figures = []
    for i, example in enumerate(examples):
        paths = {n: evaluation / "examples" / f"{i:02d}-{n}.png" for n in SHOWN}
        names = [n for n, path in paths.items() if path.exists()]
        pictures = "".join(_picture(paths[n], n) for n in names)
        caption = f"{html.escape(example['instruction'])} <small>{html.escape(example['edit_type'])}: {', '.join(names)}</small>"
        figures.append(f"<figure><div>{pictures}</div><figcaption>{caption}</figcaption></figure>")
    return f"<div class=edits>{''.join(figures)}</div>"


def _systems(result: dict[str, Any]) -> str:
    known = {"previous": f"previous: {html.escape(result.get('previous') or '')}"}
    rows = {"editor": result["headline"]} | {known.get(n, n): point for n, point in result["baselines"].items()}
    rows |= {"truth (upper bound)": result["truth"]} if result["truth"] else {}
    names = [n for n in _MEASURES if n in result["headline"]]
    table = _table(["system", *(n.replace("_", " ") for n in names)], [[s, *(f"{r[n]:.3f}" for n in names)] for s, r in rows.items()])
    paired = result["paired"]
    against = [
        [n.replace("_", " "), *(f"{d[n]['difference']:+.3f} [{d[n]['low']:+.3f}, {d[n]['high']:+.3f}]" for d in paired.values())]
        for n in names
    ]
    head = ["paired difference, 95% interval", *(f"editor − {system}" for system in paired)]
    return table + _told_of(result) + _table(head, against)


def _told_of(result: dict[str, Any]) -> str:
    """How to read the measures: what decides, how often the checker errs, and where a protocol is not the usual one."""
    told = [
        f"What decides is {result['judged_by'].replace('_', ' ')}. L1, l2 and outside are changes of pixels (0 to 1), shift is a share of the side, zoom how far from 1."
    ]
    if result["truth"]:
        right, touched = result["truth"]["success"], result["baselines"]["source"]["done"]
        told.append(
            f"The checker reads {right:.1%} of the true edits as done with the rest kept, and {touched:.1%} of the untouched sources as done."
        )
    if result.get("directed_by") == "target":
        told.append(
            "Where captions do not tell the way of each edit, direction similarity is CLIP's of the picture's change to that of the target picture; "
            "SDEdit is told the edited caption or, for want of one, the instruction."
        )
    if result["protocol"] == "legacy":
        told.append(
            "CLIP saw images in [-1, 1], the mistake of the reference (protocol legacy): compare its similarities with the paper's only."
        )
    return f"<p class=sub>{' '.join(told)}</p>"


def _judge(result: dict[str, Any]) -> str:
    if "judge" not in result:
        return ""
    return "<h2>What the judge says</h2>" + _table(
        ["vision language model", ""], [[html.escape(k), html.escape(str(v))] for k, v in result["judge"].items()]
    )


def _extremes(evaluation: Path) -> str:
    parts = []
    for name, instructions in read_json(evaluation / "extremes.json").items():
        figures = "".join(
            f"<figure><div>{_views(evaluation / 'extremes', f'{name}-{i}')}</div><figcaption>{html.escape(text)}</figcaption></figure>"
            for i, text in enumerate(instructions)
        )
        parts.append(f"<h3>{name} <small>({', '.join(_VIEWS)})</small></h3><div class=edits>{figures}</div>")
    return "".join(parts)


def _views(folder: Path, name: str) -> str:
    """Source, edit and, where there is one, the truth."""
    views = ((s, folder / f"{name}-{s}.png") for s in _VIEWS)
    return "".join(_picture(path, view) for view, path in views if path.exists())


def _benchmarks(result: dict[str, Any]) -> str:
    if not result["benchmarks"]:
        return ""
    parts = []
    for name, told in result["benchmarks"].items():
        ours, source = told["editor"], told["source"]
        spans = {n: "{:.3f} to {:.3f}".format(*ours["intervals"][n]) for n in _MEASURES if n in ours}
        rows = [[n.replace("_", " "), f"{ours[n]:.3f}", span, f"{source[n]:.3f}"] for n, span in spans.items()]
        table = _table(["measure", "editor", "95% interval", "source as it is"], rows)
        beyond = "the benchmark's masks" if told["masked"] else "the region that changed most, for not every edit has a mask"
        note = f"<p class=sub>Outside: mean change beyond {beyond}, 0 where there is nothing beyond. Change: of the whole picture.</p>"
        parts.append(f"<h3>{html.escape(name)}, {told['count']} edits</h3>{table}{note}{_types(ours['by_type'])}")
    return "<h2>Benchmarks</h2>" + "".join(parts)


def _types(by_type: dict[str, dict[str, float]]) -> str:
    """Edit types, those that the method is known to be weak at last: counting, and where things are."""
    first, second = ("done", "stayed") if all("done" in v for v in by_type.values()) else ("direction_similarity", "image_similarity")
    weak = [t for t in by_type if t in _WEAK]
    rows = [
        [
            html.escape(t) + (" (known to be hard)" if t in weak else ""),
            f"{by_type[t]['count']:.0f}",
            f"{by_type[t][first]:.2f}",
            f"{by_type[t][f'{first}_low']:.2f} to {by_type[t][f'{first}_high']:.2f}",
            f"{by_type[t][second]:.2f}",
        ]
        for t in [*(t for t in by_type if t not in weak), *weak]
        if first in by_type[t]
    ]
    return _table(["edit type", "edits", first.replace("_", " "), "95% interval", second.replace("_", " ")], rows)


def _survivors(stage: dict[str, Any]) -> str:
    counts = {"kept": stage["kept"], **stage["dropped_by_reason"]}
    rows = [
        [html.escape(k), str(v), f'<span class=bar style="width:{300 * v / max(1, stage["seen"]):.0f}px"></span>']
        for k, v in counts.items()
    ]
    types = ", ".join(f"{html.escape(k)} {v}" for k, v in stage["kept_by_edit_type"].items())
    return _table(["pairs", "count", ""], rows) + f"<p class=sub>Kept by edit type: {types}</p>"


def _stages(stages: dict[str, Any]) -> str:
    return _table(
        ["stage", "seen", "kept", "seconds"], [[n, str(s["seen"]), str(s["kept"]), f"{s['seconds']:.1f}"] for n, s in stages.items()]
    )


def _versions(stages: dict[str, Any]) -> str:
    rows = [[p, version(p)] for p in _PACKAGES] + [["python", platform.python_version()]]
    registered = stages["register"]["extra"]
    rows += [[k, str(registered[k])] for k in ("dataset", "code") if k in registered]
    return _table(["what", "version"], rows)


def _table(head: list[str], rows: list[list[str]]) -> str:
    cells = "".join(f"<tr>{''.join(f'<td{_numeric(c)}>{c}</td>' for c in row)}</tr>" for row in rows)
    kinds = [_numeric(c) for c in rows[0]] if rows else [""] * len(head)
    return f"<div class=wide><table><tr>{''.join(f'<th{k}>{h}</th>' for h, k in zip(head, kinds, strict=True))}</tr>{cells}</table></div>"


def _numeric(cell: str) -> str:
    return " class=n" if cell.replace(".", "", 1).replace("-", "", 1).isdigit() else ""


def _picture(path: Path, name: str, css: str = "") -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{html.escape(name)}" class="{css}">'
