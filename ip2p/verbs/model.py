"""Verbs of the model half: train, evaluate, edit, model, world, pretrain."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ip2p.errors import UserError
from ip2p.verbs.stage import bar, require_belonging, stage

if TYPE_CHECKING:
    from PIL import Image

_JPEG = (".jpg", ".jpeg")


def _train_options(parser: argparse.ArgumentParser) -> None:
    what = "plan: how much memory training would take, nothing is trained"
    parser.add_argument("what", nargs="?", choices=("plan",), help=what)
    parser.add_argument("--gpu", type=float, metavar="GB", help="plan: settings for a card of this memory (default: what is free here)")


def _train(options: argparse.Namespace) -> int:
    require_belonging(options, "plan", gpu="--gpu")
    if options.what is None:
        return stage(options)
    if options.gpu is not None and not options.gpu > 0:
        raise UserError(f"--gpu: {options.gpu:g} GB is no memory, give what the card has, such as 24")
    from ip2p.model.plan import advise
    from ip2p.params import load_params

    print("\n".join(advise(load_params(options.params), gpu_gb=options.gpu)))
    return 0


def _evaluate_options(parser: argparse.ArgumentParser) -> None:
    what = "ablate: train editors on other data (unfiltered, a tenth, the truth) and compare them, paper Fig. 10; resumes (`ip2p --params "
    what += "params/teacher.yaml evaluate ablate`: each from the teacher)"
    parser.add_argument("what", nargs="?", choices=("ablate",), help=what)
    parser.add_argument("--variants", nargs="+", help="ablate: data to train on (default: filtered random tenth truth)")
    parser.add_argument("--steps", type=int, help="ablate: training steps of each editor (default: params)")


def _evaluate(options: argparse.Namespace) -> int:
    require_belonging(options, "ablate", variants="--variants", steps="--steps")
    if options.what is None:
        return stage(options)
    from ip2p.model.ablate import VARIANTS, run
    from ip2p.params import load_params
    from ip2p.stages import DATASET, EDITOR, PAIRS, REPORTS, TRIPLETS, WORK

    paths = {"pairs": PAIRS, "dataset": DATASET, "triplets": TRIPLETS, "trained": EDITOR}
    paths |= {"out": REPORTS / "ablation", "work": WORK / "ablate"}
    print("\n".join(run(load_params(options.params), variants=options.variants or VARIANTS, steps=options.steps, progress=bar, **paths)))
    return 0


def _edit_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("picture", type=Path, help="still picture of at most 64 million pixels, no side over 32 times the other")
    parser.add_argument("instruction", help='what to change, such as "make it winter"')
    parser.add_argument("-o", "--output", type=Path, required=True, help="where to write the edited picture")
    parser.add_argument("--mask", type=Path, help="picture of the same size, white where to edit; the rest stays bit for bit")
    parser.add_argument(
        "--model",
        help="folder, Hub id, or the embedded editor: `world` (96 pixels), `world-128` (default: models/editor, else world); "
        "scales and steps stay those of params.yaml: one of Stable Diffusion wants about 7.5, 1.5 and 50 or more",
    )
    parser.add_argument("--text-guidance", type=float, help="how strongly to follow the instruction, s_T (default: params)")
    parser.add_argument("--image-guidance", type=float, help="how strongly to keep the picture, s_I (default: params)")
    parser.add_argument("--steps", type=int, help="sampling steps (default: params)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same picture (default: %(default)s)")


def _edit(options: argparse.Namespace) -> int:
    from ip2p.errors import ParamsError
    from ip2p.model.guidance import MAX_SCALE, MAX_SEED, EditRequest, edit_options
    from ip2p.params import load_params
    from ip2p.pictures import on_white, painted, read_picture, write_picture

    params = load_params(options.params)
    picture = read_picture(options.picture, alpha=True)
    mask = painted(read_picture(options.mask, alpha=True)) if options.mask else None
    section = params.evaluate
    steps = section.steps if options.steps is None else options.steps
    if not options.instruction.strip():
        raise ParamsError("instruction: is empty; say what to change")
    if not 2 <= steps <= 1000:
        raise ParamsError(f"--steps: {steps} is out of range, give 2 to 1000")
    s_text = section.text_guidance if options.text_guidance is None else options.text_guidance
    s_image = section.image_guidance if options.image_guidance is None else options.image_guidance
    for flag, scale in (("--text-guidance", s_text), ("--image-guidance", s_image)):
        if not 0 <= scale <= MAX_SCALE:
            raise ParamsError(f"{flag}: {scale:g} is out of range, give 0 to {MAX_SCALE:g}")
    if not 0 <= options.seed <= MAX_SEED:
        raise ParamsError(f"--seed: {options.seed} is out of range, give 0 to {MAX_SEED:,}")
    _require_writable(options.output)
    _require_fitting(options.output, picture.size, mask)
    from ip2p.model.edit import edit_pictures, load_editor
    from ip2p.models import placement

    device, dtype = placement(params.models)
    editor = load_editor(_editor_asked(options.model), device=device, dtype=dtype)
    request = EditRequest(options.instruction, s_text, s_image, options.seed)
    how = replace(edit_options(section), steps=steps)
    edited, *_ = edit_pictures(editor, [picture], [request], how, masks=[mask], on_step=lambda i: bar(i + 1, steps))
    jpeg = options.output.suffix.lower() in _JPEG
    how_written = {"quality": 95, "lossless": mask is not None, "exact": mask is not None}
    write_picture(on_white(edited) if jpeg else edited, options.output, **how_written)
    print(options.output)
    return 0


def _editor_asked(name: str | None) -> Path | str:
    """The editor that `--model` names; without it the trained one, or the embedded one, which is said."""
    from ip2p.models import editor_named
    from ip2p.records import TRAINED

    if name is not None:
        return editor_named(name)
    if Path(TRAINED).is_dir():
        return Path(TRAINED)
    print("ip2p: no models/editor here yet, the embedded editor edits (--model world)", file=sys.stderr)
    return "world"


def _model_options(parser: argparse.ArgumentParser) -> None:
    whats = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    check = whats.add_parser("check", help="look for known faults", description="Look for the known faults of an editor.")
    check.set_defaults(run=_check)
    export = whats.add_parser("export", help="save it for other programs", description="Save an editor for other programs.")
    export.set_defaults(run=_export)
    for each in (check, export):
        what = "editor folder, Hub id, or `world` or `world-128`: the embedded editor (default: %(default)s)"
        each.add_argument("folder", nargs="?", default="models/editor", help=what)
    check.add_argument("--dataset", type=Path, default=Path("data/dataset"), help="pairs to check it on (default: %(default)s)")
    forms = (
        "diffusers: folder with model card; single: one file with the original key names; hub: push the folder (HF_TOKEN); "
        "embedded: ship it with ip2p (default: %(default)s)"
    )
    export.add_argument("--to", choices=("diffusers", "single", "hub", "embedded"), default="single", help=forms)
    export.add_argument("-o", "--output", help="folder, file or Hub repository to write")


def _export(options: argparse.Namespace) -> int:
    from ip2p.models import editor_named
    from ip2p.release.export import export_editor

    print(export_editor(editor_named(options.folder), options.to, options.output, evaluation=Path("reports/evaluation/report.json")))
    return 0


def _check(options: argparse.Namespace) -> int:
    from ip2p.model.check import check
    from ip2p.model.edit import load_editor
    from ip2p.models import editor_folder, editor_named, load_diffusion, resolve_device
    from ip2p.params import load_params

    params = load_params(options.params)
    device = resolve_device(params.models.device)
    named = editor_named(options.folder)
    editor = load_editor(named, device=device)
    teacher = load_diffusion(params.models.teacher, device=device)
    findings = check(editor, teacher, options.dataset, editor_folder(named))
    print("\n".join(f.line() for f in findings))
    return int(any(f.good is False for f in findings))


def _require_fitting(output: Path, size: tuple[int, int], mask: Image.Image | None) -> None:
    """Raise `ParamsError` if a mask asks for nothing, or the file's format cannot hold what it is to hold."""
    from ip2p.errors import ParamsError
    from ip2p.model.edit import marks_nothing
    from ip2p.pictures import MAX_WEBP

    if mask is not None and marks_nothing(mask):
        raise ParamsError("--mask: nothing in it is white, so nothing would be edited; paint white where to edit")
    kind = output.suffix.lower()
    if mask is not None and kind in _JPEG:
        raise ParamsError(f"--output: {output.name}: JPEG changes every pixel, and --mask keeps those outside; name it .png or .webp")
    if kind == ".webp" and max(size) > MAX_WEBP:
        raise ParamsError(f"--output: {output.name}: WebP holds {MAX_WEBP:,} pixels a side, the picture has {max(size):,}; name it .png")


def _require_writable(path: Path) -> None:
    from ip2p.errors import ParamsError

    if path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise ParamsError(f"--output: {path.name!r} has no picture's ending; name it .png, .jpg or .webp")
    if not (folder := path.resolve().parent).is_dir():
        raise ParamsError(f"--output: no folder {folder}; make it first")
    if path.is_dir() or not os.access(path if path.exists() else folder, os.W_OK):
        raise ParamsError(f"--output: {path} cannot be written; name another file")


def _world_options(parser: argparse.ArgumentParser) -> None:
    whats = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    show = whats.add_parser("show", help="a contact sheet", description="Draw a contact sheet of what there is in the world.")
    draw = whats.add_parser("draw", help="the scene of a caption, to be edited", description="Draw the scene of a caption.")
    report = whats.add_parser("report", help="how good the embedded models are", description="Measure the embedded models.")
    draw.add_argument("caption", help='such as "a yellow car in the centre in a city in autumn"')
    for each, name in ((show, "world.png"), (draw, "drawn.png")):
        each.add_argument("-o", "--output", type=Path, default=Path(name), help="picture to write (default: %(default)s)")
        each.add_argument("--size", type=int, default=128, help="side of each scene, pixels (default: %(default)s)")
        each.set_defaults(run=_world_picture)
    report.add_argument("-o", "--output", type=Path, default=Path("docs/world.md"), help="page to write (default: %(default)s)")
    report.add_argument("--count", type=int, default=256, help="held-out scenes (default: %(default)s)")
    report.add_argument("--model", choices=("world", "world-128"), default="world", help="at 96 or at 128 pixels (default: %(default)s)")
    report.set_defaults(run=_world_report)


def _world_picture(options: argparse.Namespace) -> int:
    from ip2p.pictures import write_picture
    from ip2p.world.show import contact_sheet, drawn

    _require_writable(options.output)
    if not 16 <= options.size <= 1024:
        raise UserError(f"--size: {options.size} is out of range, give 16 to 1024")
    if options.what == "show":
        picture = contact_sheet(size=options.size)
    else:
        picture, understood = drawn(options.caption, size=options.size)
        print(f"drawn: {understood}", file=sys.stderr)
    write_picture(picture, options.output)
    print(options.output)
    return 0


def _world_report(options: argparse.Namespace) -> int:
    from ip2p.world.report import write_report

    if options.count < 1:
        raise UserError(f"--count: {options.count} scenes cannot be measured, give at least 1")
    print(write_report(options.output, count=options.count, model=options.model))
    return 0


def _pretrain(options: argparse.Namespace) -> int:
    from ip2p.params import load_params
    from ip2p.world.pretrain.pretrain import run

    report = run(load_params(options.params), work=Path("work/pretrain"), part=options.part)
    print(f"pretrain: {report.extra}")
    return 0


def add_to_stages(stages: dict[str, argparse.ArgumentParser]) -> None:
    """Options of the stages' own verbs."""
    _train_options(stages["train"])
    stages["train"].set_defaults(run=_train)
    _evaluate_options(stages["evaluate"])
    stages["evaluate"].set_defaults(run=_evaluate)


def add_verbs(verbs: Any) -> None:
    """Verbs that use what the stages made."""
    edit = verbs.add_parser("edit", help="edit a picture by an instruction")
    _edit_options(edit)
    edit.set_defaults(run=_edit)
    model = verbs.add_parser("model", help="an editor folder: find known faults (check), save it for other programs (export)")
    _model_options(model)
    world = verbs.add_parser("world", help="look at the illustrated world (show, draw) and measure its models (report)")
    _world_options(world)
    pretrain = verbs.add_parser("pretrain", help="train the embedded models from rendered scenes (hours; resumes)")
    parts = ("all", "tokenizer", "clip", "autoencoder", "teacher", "export", "adopt", "pack")
    what = "one part; adopt: go on from the weights of work/pretrain/pieces, or the shipped; pack: write them there, 16 MiB a file"
    pretrain.add_argument("--part", choices=parts, default="all", help=what)
    pretrain.set_defaults(run=_pretrain)
