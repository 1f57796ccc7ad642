"""Verbs of the dataset half: triplets, pairs, filter, trace, export, import, lint."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from ip2p.errors import DataError, UserError
from ip2p.verbs.stage import bar, require_belonging, stage

_SEED, _BASE = Path("captions/seed.jsonl"), "gpt-4o-mini-2024-07-18"


def _triplets_options(parser: argparse.ArgumentParser) -> None:
    what = "plan: requests, tokens and cost of a language model, nothing is sent; finetune: train one on hand-written triplets"
    parser.add_argument("what", nargs="?", choices=("plan", "finetune"), help=what)
    parser.add_argument("data", nargs="?", type=Path, help=f"finetune: hand-written triplets (default: {_SEED})")
    parser.add_argument("--base", help=f"finetune: model to train on (default: {_BASE})")
    parser.add_argument("--epochs", type=int, help="finetune: passes over the triplets (default: 1, the reference's)")


def _triplets(options: argparse.Namespace) -> int:
    from ip2p.params import load_params

    require_belonging(options, "finetune", data="DATA", base="--base", epochs="--epochs")
    if options.what is None:
        return stage(options)
    params = load_params(options.params)
    if options.what == "plan":
        from ip2p.dataset.triplets import plan

        print("\n".join(plan(params).lines()))
        return 0
    from ip2p.dataset.llm.finetune import finetune

    epochs = 1 if options.epochs is None else options.epochs
    model = finetune(params.triplets.llm, options.data or _SEED, work=Path("work/triplets"), base=options.base or _BASE, epochs=epochs)
    print(f"set triplets.llm.model to {model}, and price_in and price_out to a fine-tuned model's")
    return 0


def _pairs(options: argparse.Namespace) -> int:
    require_belonging(options, "regenerate", id="ID", output="--output")
    if options.what is None:
        return stage(options)
    if options.id is None:
        raise UserError("pairs regenerate: name the pair's id; `ip2p trace TRIPLET` lists those of a triplet")
    from ip2p.dataset.trace import regenerate
    from ip2p.params import load_params
    from ip2p.stages import PAIRS, TRIPLETS

    files = regenerate(options.id, load_params(options.params), triplets=TRIPLETS, pairs=PAIRS, out=options.output or Path())
    print("\n".join(map(str, files)))
    return 0


def _filter(options: argparse.Namespace) -> int:
    require_belonging(options, "calibrate", labels="--labels")
    if options.what is None:
        return stage(options)
    from ip2p.dataset.calibrate import run
    from ip2p.params import load_params
    from ip2p.stages import PAIRS, REPORTS

    params = load_params(options.params)
    print("\n".join(run(params, labels=options.labels, pairs=PAIRS, out=REPORTS / "calibration", progress=bar)))
    return 0


def _trace(options: argparse.Namespace) -> int:
    from ip2p.dataset.trace import trace
    from ip2p.params import load_params
    from ip2p.stages import DATASET, EDITOR, PAIRS, TRIPLETS

    try:
        lines = trace(options.id, triplets=TRIPLETS, pairs=PAIRS, dataset=DATASET)
    except DataError:
        number, edit = options.id.isdecimal(), re.fullmatch("[0-9a-f]{32}", options.id)
        if not number and not edit:
            raise
        from ip2p.release.lineage import trace_version
        from ip2p.serve.lineage import trace_edit

        params = load_params(options.params)
        if edit:
            lines = trace_edit(options.id, params, editor=EDITOR, dataset=DATASET)
        else:
            lines = trace_version(options.id, params, dataset=DATASET)
    print("\n".join(lines))
    return 0


def _exchange_options(verbs: Any) -> None:
    from ip2p.dataset.exchange import LAYOUTS

    export = verbs.add_parser("export", help="write the dataset in another layout")
    export.add_argument("--to", choices=LAYOUTS, required=True, help="hf: datasets.load_dataset reads it; reference: InstructPix2Pix's own")
    export.add_argument("-o", "--output", type=Path, required=True, help="folder to write; must not exist")
    export.set_defaults(run=_export)
    bring = verbs.add_parser("import", help="bring pairs of your own: read, score, and lay them where filter finds them")
    bring.add_argument("--from", dest="layout", choices=LAYOUTS, required=True, help="layout of the folder")
    bring.add_argument("source", type=Path, help="folder to read")
    bring.add_argument("-o", "--output", type=Path, default=Path("data/pairs"), help="folder to write (default: %(default)s)")
    bring.set_defaults(run=_import)
    lint = verbs.add_parser("lint", help="what a trainer would stumble over in a dataset folder")
    lint.add_argument("--as", dest="layout", choices=LAYOUTS, required=True, help="layout of the folder")
    lint.add_argument("source", type=Path, help="folder to read")
    lint.set_defaults(run=_lint)


def _export(options: argparse.Namespace) -> int:
    from ip2p.dataset.exchange.move import export_dataset
    from ip2p.stages import DATASET

    print(f"{export_dataset(DATASET, options.to, options.output)} examples in {options.output}")
    return 0


def _import(options: argparse.Namespace) -> int:
    from ip2p.dataset.exchange.move import import_pairs
    from ip2p.params import load_params
    from ip2p.stages import PAIRS, REPORTS
    from ip2p.store import write_json

    params = load_params(options.params)
    report = import_pairs(options.source, options.layout, options.output, params, progress=_told)
    print(file=sys.stderr)
    further = "`ip2p filter` comes next" if options.output == PAIRS else f"`ip2p filter` reads {PAIRS}: move them there"
    print(f"{report.kept} pairs in {options.output}; {further}")
    for reason, count in report.dropped_by_reason.items():
        print(f"  {count:6d}  left out: {reason}")
    if scattered := report.extra["triplets_in_several_shards"]:
        print(f"{scattered} times a triplet's pairs go on in another shard, not being side by side; filter.keep counts them apart")
    if options.output == PAIRS:
        write_json(REPORTS / "pairs.json", report.as_dict())
        print("So that DVC does not make others in their place: `dvc freeze pairs`; `dvc repro` and `make run` then go on with these")
        if params.triplets.writer != "world":
            print("They need no triplets: with `triplets: {writer: world, count: 1}` no language model is paid for some")
        print("To make pairs again later: `dvc unfreeze pairs && dvc repro --force --single-item pairs`")
    return 0


def _told(count: int) -> None:
    print(f"\r{count} pairs", end="", file=sys.stderr, flush=True)


def _lint(options: argparse.Namespace) -> int:
    from ip2p.dataset.exchange.move import lint

    problems = lint(options.source, options.layout)
    print("\n".join(problems) or "nothing to complain of")
    return 2 if problems else 0


def add_to_stages(stages: dict[str, argparse.ArgumentParser]) -> None:
    """Options of the stages' own verbs."""
    _triplets_options(stages["triplets"])
    stages["triplets"].set_defaults(run=_triplets)
    calibrate = "calibrate: find thresholds by edit type from labelled pairs"
    stages["filter"].add_argument("what", nargs="?", choices=("calibrate",), help=calibrate)
    labels = "calibrate: JSONL of a person's verdicts on pairs of data/pairs (default: the world's truth)"
    stages["filter"].add_argument("--labels", type=Path, help=labels)
    stages["filter"].set_defaults(run=_filter)
    stages["pairs"].add_argument("what", nargs="?", choices=("regenerate",), help="regenerate: make a pair's pixels again")
    stages["pairs"].add_argument("id", nargs="?", help="regenerate: the pair's id")
    stages["pairs"].add_argument("-o", "--output", type=Path, help="regenerate: folder for its two images (default: here)")
    stages["pairs"].set_defaults(run=_pairs)


def add_verbs(verbs: Any) -> None:
    """Verbs that use what the stages made."""
    told = "where an edit that was served, a version, a pair or a triplet comes from, back to the captions"
    trace = verbs.add_parser("trace", help=told, description=f"Tells {told}.")
    trace.add_argument("id", help="the id of an edit, pair or triplet, or the number of a version")
    trace.set_defaults(run=_trace)
    _exchange_options(verbs)
