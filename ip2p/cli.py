"""`ip2p`: one verb a stage in pipeline order, then the verbs that use what the stages made. Heavy imports wait for a verb."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ip2p.errors import UserError

_EPILOG = """\
The stages read params.yaml and each other's outputs; `dvc repro` runs whatever is stale, `make run` does all of it.
Examples:
  ip2p edit picture.png "make it winter" -o out.png
  ip2p edit picture.png "swap the cat for a dog" --text-guidance 2 --image-guidance 1.1 --seed 7 -o out.png
  ip2p world show -o sheet.png
"""


def build_parser() -> argparse.ArgumentParser:
    """All verbs and their options."""
    parser = argparse.ArgumentParser(
        prog="ip2p",
        description="From nothing to a served, instruction-following image editor.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="parameters of the run (default: %(default)s)")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    stages = {name: verbs.add_parser(name, help=text, description=text) for name, text in STAGE_HELP.items()}
    _triplets_options(stages["triplets"])
    stages["filter"].add_argument(
        "what", nargs="?", choices=("calibrate",), help="calibrate: find thresholds by edit type from labelled pairs"
    )
    labels = "JSONL of a person's verdicts on pairs of data/pairs (default: the world's truth)"
    stages["filter"].add_argument("--labels", type=Path, help=labels)
    stages["pairs"].add_argument("what", nargs="?", choices=("regenerate",), help="regenerate: make a pair's pixels again")
    stages["pairs"].add_argument("id", nargs="?", help="id of the pair to regenerate")
    stages["pairs"].add_argument("-o", "--output", type=Path, default=Path(), help="folder for its two images (default: here)")
    verbs.add_parser("trace", help="where a pair or triplet comes from and what became of it").add_argument("id", help="its id")
    _train_options(stages["train"])
    _evaluate_options(stages["evaluate"])
    _exchange_options(verbs)
    _edit_options(verbs.add_parser("edit", help="edit a picture by an instruction"))
    _model_options(verbs.add_parser("model", help="an editor folder: find known faults (check), save it for other programs (export)"))
    world = verbs.add_parser("world", help="look at the illustrated world (show) and measure its models (report)")
    world.add_argument("what", choices=("show", "report"))
    world.add_argument("-o", "--output", type=Path, help="picture to write (show) or Markdown file to write (report)")
    world.add_argument("--size", type=int, default=128, help="side of each picture, pixels (show; default: %(default)s)")
    world.add_argument("--count", type=int, default=256, help="held-out scenes (report; default: %(default)s)")
    pretrain = verbs.add_parser("pretrain", help="train the embedded models from rendered scenes (hours; resumes)")
    parts = ("all", "tokenizer", "clip", "autoencoder", "teacher", "export", "adopt")
    pretrain.add_argument("--part", choices=parts, default="all", help="one part; adopt: go on from the shipped weights")
    release = verbs.add_parser("release", help="registered versions: look, promote by hand, roll back, hold")
    verdicts = "status: all versions and why; promote VERSION; rollback: the champion before; hold: the gate promotes nothing"
    release.add_argument("what", choices=("status", "promote", "rollback", "hold"), help=verdicts)
    release.add_argument("version", nargs="?", help="version to promote")
    release.add_argument("--reason", help="why; recorded with the version (hold without a reason ends the hold)")
    serving = verbs.add_parser("serve", help="serve the champion over HTTP: page, OpenAI's and AUTOMATIC1111's interfaces, /api/v1")
    serving.add_argument("--host", help="address to listen on; any but a loopback address needs IP2P_API_KEYS (default: params)")
    serving.add_argument("--port", type=int, help="0 takes a free one (default: params)")
    serving.add_argument(
        "--name", action="append", dest="hosts", help="a name under which it is reached too; may be repeated"
    )
    serving.add_argument("--editor", help="an editor folder in place of the registry's champion")
    feedback = verbs.add_parser("feedback", help="what people thought of served edits, as a dataset")
    feedback.add_argument("what", choices=("export",), help="export: preference pairs in Pick-a-Pic's columns, and all votes")
    feedback.add_argument("-o", "--output", type=Path, default=Path("data/preferences"), help="folder to write (default: %(default)s)")
    verbs.add_parser("doctor", help="versions, device, disk, offline state")
    return parser


STAGE_HELP = {
    "triplets": "write caption, instruction, edited caption triplets",
    "pairs": "make image pairs from triplets by Prompt-to-Prompt (resumes)",
    "filter": "keep the pairs whose change is the one asked for (CLIP)",
    "validate": "check the dataset; fails and names the rows that break it",
    "train": "train the editor on the validated dataset (resumes)",
    "evaluate": "measure the editor on held-out edits against baselines",
    "register": "register the editor in MLflow and promote it if the gate opens",
    "report": "write the HTML report of the run",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 2 for what the user can mend, told in one line."""
    options = build_parser().parse_args(arguments)
    try:
        return _verb(options.verb)(options)
    except UserError as error:
        print(f"ip2p: error: {error}", file=sys.stderr)
        return 2


def _verb(name: str) -> Callable[[argparse.Namespace], int]:
    return {
        "triplets": _triplets,
        "pairs": _pairs,
        "filter": _filter,
        "train": _train,
        "evaluate": _evaluate,
        "trace": _trace,
        "export": _export,
        "import": _import,
        "lint": _lint,
        "edit": _edit,
        "model": _model,
        "world": _world,
        "pretrain": _pretrain,
        "release": _release,
        "serve": _serve,
        "feedback": _feedback,
        "doctor": _doctor,
    }.get(name, _stage)


def _stage(options: argparse.Namespace) -> int:
    from ip2p.params import load_params
    from ip2p.stages import run_stage

    report = run_stage(options.verb, load_params(options.params), progress=_bar)
    print(f"{report.stage}: kept {report.kept} of {report.seen} in {report.seconds:.1f} s")
    for reason, count in report.dropped_by_reason.items():
        print(f"  {count:6d}  {reason}")
    if "path" in report.extra:
        print(Path(str(report.extra["path"])).resolve())
    return 0


def _bar(done: int, of: int) -> None:
    print(f"\r{done}/{of}", end="\n" if done == of else "", file=sys.stderr, flush=True)


def _triplets_options(parser: argparse.ArgumentParser) -> None:
    what = "plan: requests, tokens and cost of a language model, nothing is sent; finetune: train one on hand-written triplets"
    parser.add_argument("what", nargs="?", choices=("plan", "finetune"), help=what)
    seed = Path("captions/seed.jsonl")
    parser.add_argument("data", nargs="?", type=Path, default=seed, help="hand-written triplets to fine-tune on (default: %(default)s)")
    parser.add_argument("--base", default="gpt-4o-mini-2024-07-18", help="model to fine-tune (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=1, help="passes over the triplets (default: %(default)s, the reference's)")


def _triplets(options: argparse.Namespace) -> int:
    from ip2p.params import load_params

    if options.what is None:
        return _stage(options)
    params = load_params(options.params)
    if options.what == "plan":
        from ip2p.dataset.triplets import plan

        print("\n".join(plan(params).lines()))
        return 0
    from ip2p.dataset.llm.finetune import finetune

    model = finetune(params.triplets.llm, options.data, work=Path("work/triplets"), base=options.base, epochs=options.epochs)
    print(f"set triplets.llm.model to {model}")
    return 0


def _pairs(options: argparse.Namespace) -> int:
    if options.what is None:
        return _stage(options)
    if options.id is None:
        raise UserError("pairs regenerate: name the pair's id; `ip2p trace TRIPLET` lists those of a triplet")
    from ip2p.dataset.trace import regenerate
    from ip2p.params import load_params
    from ip2p.stages import PAIRS, TRIPLETS

    files = regenerate(options.id, load_params(options.params), triplets=TRIPLETS, pairs=PAIRS, out=options.output)
    print("\n".join(map(str, files)))
    return 0


def _trace(options: argparse.Namespace) -> int:
    from ip2p.dataset.trace import trace
    from ip2p.stages import DATASET, PAIRS, TRIPLETS

    print("\n".join(trace(options.id, triplets=TRIPLETS, pairs=PAIRS, dataset=DATASET)))
    return 0


def _exchange_options(verbs: Any) -> None:
    from ip2p.dataset.exchange import LAYOUTS

    export = verbs.add_parser("export", help="write the dataset in another layout")
    export.add_argument("--to", choices=LAYOUTS, required=True, help="hf: datasets.load_dataset reads it; reference: InstructPix2Pix's own")
    export.add_argument("-o", "--output", type=Path, required=True, help="folder to write; must not exist")
    bring = verbs.add_parser("import", help="bring pairs of your own: read, score, and lay them where filter finds them")
    bring.add_argument("--from", dest="layout", choices=LAYOUTS, required=True, help="layout of the folder")
    bring.add_argument("source", type=Path, help="folder to read")
    bring.add_argument("-o", "--output", type=Path, default=Path("data/pairs"), help="folder to write (default: %(default)s)")
    lint = verbs.add_parser("lint", help="what a trainer would stumble over in a dataset folder")
    lint.add_argument("--as", dest="layout", choices=LAYOUTS, required=True, help="layout of the folder")
    lint.add_argument("source", type=Path, help="folder to read")


def _export(options: argparse.Namespace) -> int:
    from ip2p.dataset.exchange.move import export_dataset
    from ip2p.stages import DATASET

    print(f"{export_dataset(DATASET, options.to, options.output)} examples in {options.output}")
    return 0


def _import(options: argparse.Namespace) -> int:
    from ip2p.dataset.exchange.move import import_pairs
    from ip2p.params import load_params

    count = import_pairs(options.source, options.layout, options.output, load_params(options.params))
    print(f"{count} pairs in {options.output}; `ip2p filter` comes next")
    return 0


def _lint(options: argparse.Namespace) -> int:
    from ip2p.dataset.exchange.move import lint

    problems = lint(options.source, options.layout)
    print("\n".join(problems) or "nothing to complain of")
    return 2 if problems else 0


def _filter(options: argparse.Namespace) -> int:
    if options.what is None:
        return _stage(options)
    from ip2p.dataset.calibrate import run
    from ip2p.params import load_params
    from ip2p.stages import PAIRS, REPORTS

    params = load_params(options.params)
    print("\n".join(run(params, labels=options.labels, pairs=PAIRS, out=REPORTS / "calibration", progress=_bar)))
    return 0


def _train_options(parser: argparse.ArgumentParser) -> None:
    what = "plan: how much memory training would take, nothing is trained"
    parser.add_argument("what", nargs="?", choices=("plan",), help=what)
    parser.add_argument("--gpu", type=float, metavar="GB", help="propose settings for a card of this memory (default: what is free here)")


def _train(options: argparse.Namespace) -> int:
    if options.what is None:
        return _stage(options)
    from ip2p.model.plan import advise
    from ip2p.params import load_params

    print("\n".join(advise(load_params(options.params), gpu_gb=options.gpu)))
    return 0


def _evaluate_options(parser: argparse.ArgumentParser) -> None:
    what = "ablate: train editors on other data (unfiltered, a tenth, the truth) and compare them, paper Fig. 10; resumes"
    parser.add_argument("what", nargs="?", choices=("ablate",), help=what)
    parser.add_argument(
        "--variants", nargs="+", default=["filtered", "random", "tenth", "truth"], help="data to train on (default: %(default)s)"
    )
    parser.add_argument("--steps", type=int, help="training steps of each editor (default: params)")


def _evaluate(options: argparse.Namespace) -> int:
    if options.what is None:
        return _stage(options)
    from ip2p.model.ablate import run
    from ip2p.params import load_params
    from ip2p.stages import DATASET, PAIRS, REPORTS, TRIPLETS, WORK

    paths = {"pairs": PAIRS, "dataset": DATASET, "triplets": TRIPLETS, "out": REPORTS / "ablation", "work": WORK / "ablate"}
    print("\n".join(run(load_params(options.params), variants=options.variants, steps=options.steps, progress=_bar, **paths)))
    return 0


def _edit_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("picture", type=Path, help="PNG, JPEG or WebP, any size")
    parser.add_argument("instruction", help='what to change, such as "make it winter"')
    parser.add_argument("-o", "--output", type=Path, required=True, help="where to write the edited picture")
    parser.add_argument("--mask", type=Path, help="picture of the same size, white where to edit; the rest stays bit for bit")
    parser.add_argument("--model", default="models/editor", help="editor folder (default: %(default)s)")
    parser.add_argument("--text-guidance", type=float, help="how strongly to follow the instruction, s_T (default: params)")
    parser.add_argument("--image-guidance", type=float, help="how strongly to keep the picture, s_I (default: params)")
    parser.add_argument("--steps", type=int, help="sampling steps (default: params)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same picture (default: %(default)s)")


def _edit(options: argparse.Namespace) -> int:
    from ip2p.errors import ParamsError
    from ip2p.params import load_params
    from ip2p.pictures import on_white, read_picture

    params = load_params(options.params)
    picture = read_picture(options.picture, alpha=True)
    mask = read_picture(options.mask) if options.mask else None
    section = params.evaluate
    steps = section.steps if options.steps is None else options.steps
    if steps < 2:
        raise ParamsError(f"--steps: {steps} is too few, give at least 2")
    if not 0 <= options.seed < 2**63:
        raise ParamsError(f"--seed: {options.seed} is out of range, give 0 to 2^63 - 1")
    _require_writable(options.output)
    from ip2p.model.edit import edit_pictures, load_editor
    from ip2p.model.guidance import EditOptions, EditRequest
    from ip2p.models import resolve_device, resolve_dtype

    device = resolve_device(params.models.device)
    editor = load_editor(Path(options.model), device=device, dtype=resolve_dtype(params.models.dtype, device))
    s_text = section.text_guidance if options.text_guidance is None else options.text_guidance
    s_image = section.image_guidance if options.image_guidance is None else options.image_guidance
    request = EditRequest(options.instruction, s_text, s_image, options.seed)
    how = EditOptions(steps, section.solver, section.guidance_interval, section.guidance_every)
    edited, *_ = edit_pictures(editor, [picture], [request], how, masks=[mask], on_step=lambda i: _bar(i + 1, steps))
    (on_white(edited) if options.output.suffix.lower() in (".jpg", ".jpeg") else edited).save(options.output)
    print(options.output)
    return 0


def _model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=("check", "export"), help="check: look for known faults; export: save it for other programs")
    parser.add_argument("folder", nargs="?", default="models/editor", help="editor folder or Hub id (default: %(default)s)")
    parser.add_argument("--dataset", type=Path, default=Path("data/dataset"), help="pairs to check it on (default: %(default)s)")
    forms = "diffusers: folder with model card; single: one file with the original key names; hub: push the folder (HF_TOKEN)"
    parser.add_argument("--to", choices=("diffusers", "single", "hub"), default="single", help=f"{forms} (default: %(default)s)")
    parser.add_argument("-o", "--output", help="folder, file or Hub repository to write (export)")


def _model(options: argparse.Namespace) -> int:
    from ip2p.model.edit import load_editor
    from ip2p.models import load_diffusion, resolve_device
    from ip2p.params import load_params

    params = load_params(options.params)
    if options.what == "export":
        from ip2p.release.export import export_editor

        print(export_editor(Path(options.folder), options.to, options.output, evaluation=Path("reports/evaluation/report.json")))
        return 0
    from ip2p.model.check import check

    device = resolve_device(params.models.device)
    local = Path(options.folder).is_dir()
    editor = load_editor(Path(options.folder) if local else options.folder, device=device)
    teacher = load_diffusion(params.models.teacher, device=device)
    findings = check(editor, teacher, options.dataset, Path(options.folder) if local else None)
    print("\n".join(f.line() for f in findings))
    return int(any(f.good is False for f in findings))


def _require_writable(path: Path) -> None:
    from ip2p.errors import ParamsError

    if path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise ParamsError(f"--output: {path.name!r} has no picture's ending; name it .png, .jpg or .webp")
    if not path.resolve().parent.is_dir():
        raise ParamsError(f"--output: no folder {path.resolve().parent}; make it first")


def _world(options: argparse.Namespace) -> int:
    if options.what == "show":
        from ip2p.world.show import contact_sheet

        path = options.output or Path("world.png")
        _require_writable(path)
        if options.size < 16:
            raise UserError(f"--size: {options.size} is too small to draw a scene, give at least 16")
        contact_sheet(size=options.size).save(path)
        print(path)
        return 0
    from ip2p.world.report import write_report

    print(write_report(options.output or Path("docs/world.md"), count=options.count))
    return 0


def _pretrain(options: argparse.Namespace) -> int:
    from ip2p.params import load_params
    from ip2p.world.pretrain.pretrain import run

    report = run(load_params(options.params), work=Path("work/pretrain"), part=options.part)
    print(f"pretrain: {report.extra}")
    return 0


def _release(options: argparse.Namespace) -> int:
    from ip2p.params import load_params
    from ip2p.release import people

    params = load_params(options.params)
    if options.what == "status":
        print("\n".join(people.status(params)))
    elif options.what == "promote":
        print(people.promote(params, options.version, options.reason))
    else:
        print({"rollback": people.rollback, "hold": people.hold}[options.what](params, options.reason))
    return 0


def _serve(options: argparse.Namespace) -> int:
    from ip2p.params import load_params
    from ip2p.serve.app import serve

    params = load_params(options.params)
    given: dict[str, Any] = {n: v for n in ("host", "port", "hosts", "editor") if (v := getattr(options, n)) is not None}
    serve(params.model_copy(update={"serve": params.serve.model_copy(update=given)}))
    return 0


def _feedback(options: argparse.Namespace) -> int:
    from ip2p.params import load_params
    from ip2p.serve.preferences import export

    pairs, votes = export(load_params(options.params), options.output)
    print(f"{pairs} preference pairs and {votes} votes in {options.output}")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from ip2p.doctor import diagnose

    lines, healthy = diagnose(options.params)
    print("\n".join(lines))
    return 0 if healthy else 2


if __name__ == "__main__":
    sys.exit(main())
