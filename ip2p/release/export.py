"""An editor for other programs: a diffusers folder with its card, one file for AUTOMATIC1111 and its like, or the Hub.

Or for this one: the embedded editor, which edits and serves before anything is trained, is a trained one put into the package.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from ip2p.errors import ModelError, ParamsError, UserError, first_line
from ip2p.model.edit import load_editor
from ip2p.model.folder import forget_origin, model_card, save_editor
from ip2p.model.seen import NONE, read_seen
from ip2p.models import EMBEDDED, editor_folder, load_diffusion
from ip2p.records import RECORD
from ip2p.release.single_file import save_single_file
from ip2p.store import digest, read_json, replace_folder, share, staging_of, write_bytes, write_json


def export_editor(folder: Path | str, to: str, output: str | None, *, evaluation: Path | None = None) -> str:
    """Write the editor in the form `to`; returns where it is. Nothing that exists is overwritten.

    Raises `ParamsError` if `output` is missing or taken, `ModelError` if the folder is no editor's.
    """
    if to == "embedded":
        if output is not None:
            raise ParamsError("--output: `--to embedded` writes into ip2p itself; leave it out")
        return _embed(Path(folder))
    if output is None:
        raise ParamsError(f"--output: say where to write, such as {'name/repository' if to == 'hub' else 'editor.safetensors'}")
    if to != "hub" and Path(output).exists():
        raise ParamsError(f"--output: {output} exists; give another name")
    editor = load_editor(folder, device=torch.device("cpu"))
    if isinstance(folder, str) and to != "single":  # not a folder here
        if to == "hub":
            raise ParamsError(f"{folder}: export it `--to diffusers` first, then that folder `--to hub`")
        trained = editor_folder(folder)
        record = read_json(trained / RECORD) if trained and (trained / RECORD).is_file() else None
        save_editor(editor.unet, editor, Path(output), record=record, seen=read_seen(trained) if trained else NONE)
        return output
    if to == "single":
        if Path(output).suffix != ".safetensors":
            raise ParamsError(f"--output: {output} must end with .safetensors")
        path = save_single_file(editor, Path(output))
        kind, shape = editor.prediction, editor.unet.config
        told = [] if kind == "epsilon" else [f"of {kind}, which the file cannot say: tell its reader"]
        if (shape.in_channels, shape.cross_attention_dim) != _USUAL:
            told.append("not of Stable Diffusion 1's shape: only readers that are given the configuration of its folder load it")
        return f"{path} ({'; '.join(told)})" if told else str(path)
    folder = Path(folder)
    if to == "diffusers":
        staging = staging_of(Path(output))
        shutil.copytree(folder, staging, dirs_exist_ok=True)
        _write_card(staging, folder, evaluation)
        staging.rename(output)
        return output
    return _push(folder, output, evaluation)


_USUAL = 8, 768
"""Input channels and width of texts of an editor of Stable Diffusion 1's shape."""


def _embed(folder: Path) -> str:
    """Put a trained editor's UNet into the package, in fp16, with its record and card; the embedded teacher has the other parts.

    Raises `ModelError` if there is none, or if it is not of the embedded teacher.
    """
    if not (folder / RECORD).is_file():
        raise ModelError(f"{folder}: no trained editor; run `dvc repro train`")
    record = read_json(folder / RECORD)
    cpu = torch.device("cpu")
    editor, teacher = load_editor(folder, device=cpu), load_diffusion("world", device=cpu)
    for part in ("vae", "text_encoder"):
        if not _same(getattr(editor, part), getattr(teacher, part)):
            raise ModelError(f"{folder}: its {part} is not the embedded teacher's, which an embedded editor gets; train it from `world`")
    ours, theirs = (x.prediction for x in (editor, teacher))
    if ours != theirs:
        raise ModelError(f"{folder}: predicts {ours}, an embedded editor {theirs} as its teacher does; leave `train.prediction` out")
    target = EMBEDDED / "editor"
    staging = staging_of(target)
    editor.unet.half().save_pretrained(staging / "unet", safe_serialization=True)
    forget_origin(staging)
    share(*(staging / "unet").iterdir())
    write_json(staging / RECORD, record)
    read_seen(folder).write(staging)
    write_bytes(staging / "README.md", model_card(record, embedded=True).encode())
    replace_folder(staging, target)
    return str(target)


def _same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def _write_card(target: Path, folder: Path, evaluation: Path | None) -> None:
    """The card with figures, if the evaluation is this editor's."""
    if not (folder / RECORD).exists():
        return
    report = read_json(evaluation) if evaluation is not None and evaluation.exists() else None
    own = report if report is not None and report.get("editor") == digest(folder) else None
    write_bytes(target / "README.md", model_card(read_json(folder / RECORD), own).encode())


def _push(folder: Path, repository: str, evaluation: Path | None) -> str:
    import tempfile

    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    with tempfile.TemporaryDirectory() as work:
        shutil.copytree(folder, Path(work) / "editor")
        _write_card(Path(work) / "editor", folder, evaluation)
        try:
            api = HfApi()
            api.create_repo(repository, private=True, exist_ok=True)
            return str(api.upload_folder(repo_id=repository, folder_path=Path(work) / "editor", commit_message="Editor"))
        except (HfHubHTTPError, OSError, ValueError) as error:
            raise UserError(f"{repository}: cannot be pushed: {first_line(error)}; set HF_TOKEN in the environment") from error
