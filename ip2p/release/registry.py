"""The MLflow registry lives only here: register an editor, give it `challenger`, and `champion` if the gate opens."""

from __future__ import annotations

import glob
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ip2p.errors import DataError, ModelError, first_line
from ip2p.params import Params
from ip2p.records import RECORD, StageReport
from ip2p.release.gate import Decision, Policy, comparable, decide
from ip2p.release.version import code_version, send_version, with_settings
from ip2p.store import digest, fingerprint, read_json
from ip2p.track import MADE, mlflow_in_reach, point_mlflow, run_tagged

_SHOWN = ("editor", "evaluation", "dataset", "code", "gate", "start", "start_digest", "training_run", "champion_then")
"""Tags of a version that the stage's report tells."""
_SAFE = {".safetensors", ".json", ".txt", ".md"}
"""Endings of the files that an editor's folder may hold."""


@mlflow_in_reach()
def run(params: Params, *, editor: Path, evaluation: Path, triplets: Path, dataset: Path, work: Path) -> StageReport:
    """Register the editor folder with its evaluation, and promote it if the gate says so.

    What this registry has already is not sent again. Only the gate is asked anew, unless that version is champion. An editor that was
    champion and is so no longer, a person took back: it stays so, however it is measured. What people do while it is sent (a hold, a
    promotion) counts. Raises `DataError` if the evaluation is another editor's, `ModelError` if the folder holds what no server loads,
    `UserError` if MLflow cannot be used.
    """
    began = time.monotonic()
    import mlflow

    _require_safe(editor, str(editor))
    client, name = point_mlflow(params.track), params.register_.name
    report, whole = read_json(evaluation / "report.json"), digest(editor)
    if report.get("editor") != whole:
        raise DataError(f"{evaluation / 'report.json'}: the evaluation of another editor than {editor}; run `dvc repro evaluate`")
    identity = {"editor": whole[:16], "evaluation": fingerprint(report)[:16]}
    known, champion = _known(client, name, identity), _champion(client, name)
    if known is not None and champion is not None and known.version == champion.version:
        if "promoted_by" not in champion.tags:
            _note(client, name, str(known.version), by="unknown", reason="made champion elsewhere, or when a run ended at once")
        return _told(name, known.version, Decision(True, tuple(known.tags["gate"].split(" | "))), known.tags)
    if (fallen := _fallen(client, name, identity["editor"], known, champion)) is not None:
        back = f"was champion before; `ip2p release promote {fallen.version}` makes it so again"
        return _told(name, fallen.version, Decision(False, (back,)), fallen.tags)
    section = params.register_
    theirs = None if champion is None else _report_of(client, champion)
    if theirs is not None and not comparable(theirs, report):
        theirs = _measured_now(params, champion, theirs, challenger=editor, triplets=triplets, dataset=dataset, work=work)
    decision = decide(report, theirs, Policy(section.margin, section.confidence, section.preserving))
    if known is None:
        made = {"gate": "not asked yet", "code": code_version()}
        tags = identity | made | _parents(client, params, editor)
        number = send_version(mlflow, client, params, editor, report, tags)
        tags["seconds"] = f"{time.monotonic() - began:.1f}"
    else:
        number, tags = str(known.version), dict(known.tags)
    if held := hold_of(params):
        decision = Decision(False, (*decision.reasons, f"held: {held}"))
    if (now := champion_number(params)) != (champion and str(champion.version)):
        decision = Decision(False, (*decision.reasons, f"version {now} became champion meanwhile: not compared with it, register again"))
    tags["gate"] = " | ".join(decision.reasons)
    for key in ("gate", "seconds"):
        client.set_model_version_tag(name, number, key, tags.get(key, "0"))
    client.set_registered_model_alias(name, "challenger", number)
    if decision.promoted:
        crown(client, name, number, by="gate", reason="the gate opened")
    return _told(name, number, decision, tags)


@dataclass(frozen=True, slots=True)
class EditorVersion:
    """A registered editor on this machine's disk, and the sampling parameters that it was evaluated with."""

    name: str
    number: str
    folder: Path
    defaults: dict[str, Any]


def crown(client: Any, name: str, number: str, *, by: str, reason: str, back: bool = False) -> None:
    """Make a version champion; it remembers who said so, why, and (unless it comes back) who was champion before.

    What tells that it was champion is written when it is: killed in between, it may still become so.
    """
    before = _champion(client, name)
    if not back and before is not None and str(before.version) != number:
        client.set_model_version_tag(name, number, "previous", str(before.version))
    client.set_registered_model_alias(name, "champion", number)
    _note(client, name, number, by=by, reason=reason)


def _note(client: Any, name: str, number: str, *, by: str, reason: str) -> None:
    for key, value in {"promoted_by": by, "promotion_reason": reason}.items():
        client.set_model_version_tag(name, number, key, value)


def hold_of(params: Params) -> str | None:
    """Why a person holds promotions back, or None."""
    from mlflow import MlflowException

    try:
        return point_mlflow(params.track).get_registered_model(params.register_.name).tags.get("hold") or None
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def champion_number(params: Params) -> str | None:
    """The champion's version number, or None if there is none."""
    number, _ = champion_and_run(params)
    return number


def champion_and_run(params: Params) -> tuple[str | None, str | None]:
    """The champion's version number and the run that registered it (of another registry a number may be equal); None if there is none."""
    version = _champion(point_mlflow(params.track), params.register_.name)
    return (None, None) if version is None else (str(version.version), str(version.run_id))


def version_numbers(params: Params) -> dict[str, tuple[str, ...]]:
    """All registered versions, newest first, with their aliases."""
    client, name = point_mlflow(params.track), params.register_.name
    found = client.search_model_versions(f"name='{name}'")
    model = client.get_registered_model(name) if found else None
    aliases: dict[str, list[str]] = {}
    for alias, number in (model.aliases if model else {}).items():
        aliases.setdefault(str(number), []).append(alias)
    numbers = sorted((str(v.version) for v in found), key=int, reverse=True)
    return {n: tuple(sorted(aliases.get(n, ()))) for n in numbers}


def fetch_version(params: Params, number: str, into: Path) -> EditorVersion:
    """Bring a registered editor into a folder of its own. Raises `ModelError` if it is none, or holds anything but safetensors and text;
    what fails for now (registry, storage) raises what it raises.
    """
    import mlflow
    import yaml

    client, name = point_mlflow(params.track), params.register_.name
    made_by = client.get_model_version(name, number).run_id  # of another registry a version has the same number, not the same run
    folder = into / f"{name}-{number}-{made_by[:12]}"
    if not (folder / "MLmodel").exists():
        into.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{number}-", dir=into))
        try:
            mlflow.artifacts.download_artifacts(artifact_uri=f"models:/{name}/{number}", dst_path=str(staging))
            shutil.rmtree(folder, ignore_errors=True)
            staging.replace(folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    told = yaml.safe_load((folder / "MLmodel").read_text(encoding="utf-8"))
    artifacts = told.get("flavors", {}).get("python_function", {}).get("artifacts") or {}
    editor = (folder / artifacts.get("editor", {}).get("path", "editor")).resolve()
    if not editor.is_dir() or not editor.is_relative_to(folder.resolve()):
        raise ModelError(f"models:/{name}/{number}: holds no editor folder; register editors with `ip2p register`")
    _require_safe(editor, f"models:/{name}/{number}")
    defaults = json.loads((told.get("signature") or {}).get("params") or "[]")
    return EditorVersion(name, number, editor, {p["name"]: p["default"] for p in defaults})


def _require_safe(editor: Path, name: str) -> None:
    """Raise `ModelError` naming the files of an editor's folder that no server would load."""
    if strange := [p.name for p in editor.rglob("*") if p.is_file() and p.suffix not in _SAFE]:
        raise ModelError(f"{name}: holds {', '.join(sorted(strange))}; only safetensors, JSON and text are loaded")


def forget_version(params: Params, number: str, into: Path) -> None:
    """Delete what `fetch_version` brought here of a version, that it be fetched anew."""
    for folder in into.glob(f"{glob.escape(params.register_.name)}-{number}-*"):
        shutil.rmtree(folder, ignore_errors=True)


def forget_unfinished(into: Path) -> None:
    """Delete what a process that was ended left of a version that it fetched; nobody else may be fetching there."""
    for folder in into.glob(".*-*"):
        shutil.rmtree(folder, ignore_errors=True)


def forget_versions(into: Path, keep: Collection[Path]) -> None:
    """Delete editors that `fetch_version` brought here, but those to keep."""
    kept = {p.resolve() for p in keep}
    for folder in into.iterdir() if into.is_dir() else ():
        if (folder / "MLmodel").exists() and not any(p.is_relative_to(folder.resolve()) for p in kept):
            shutil.rmtree(folder, ignore_errors=True)


def _parents(client: Any, params: Params, editor: Path) -> dict[str, str]:
    """What a version came from: its dataset, the model its training started from, the run that trained it, the champion of that day."""
    champion = _champion(client, params.register_.name)
    record = read_json(editor / RECORD) if (editor / RECORD).exists() else {}  # an editor of others has none
    found = {
        "dataset": record.get("dataset", "")[:16],
        "start": record.get("start"),
        "start_digest": record.get("start_digest"),
        "training_run": run_tagged(client, params.track, MADE, digest(editor)),
        "champion_then": champion and champion.version,
    }
    return {name: str(value) for name, value in found.items() if value}


def _champion(client: Any, name: str) -> Any:
    from mlflow import MlflowException

    try:
        return client.get_model_version_by_alias(name, "champion")
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # no such model, no such alias
            return None
        raise


def _known(client: Any, name: str, identity: Mapping[str, str]) -> Any:
    """The newest version of the same editor with the same evaluation, or None."""
    same = [v for v in client.search_model_versions(f"name='{name}'") if identity.items() <= v.tags.items()]
    return max(same, key=lambda v: int(v.version), default=None)


def _fallen(client: Any, name: str, editor: str, known: Any, champion: Any) -> Any:
    """The very version, if it was champion; else the newest of its editor that was, unless the editor is champion now; or None."""
    if known is not None and "promoted_by" in known.tags:
        return known
    if champion is not None and champion.tags.get("editor") == editor:
        return None
    was = [v for v in client.search_model_versions(f"name='{name}'") if v.tags.get("editor") == editor and "promoted_by" in v.tags]
    return max(was, key=lambda v: int(v.version), default=None)


def _told(name: str, number: str, decision: Decision, tags: Mapping[str, str]) -> StageReport:
    shown = {k: tags[k] for k in _SHOWN if k in tags}
    return StageReport(
        stage="register",
        seen=1,
        kept=int(decision.promoted),
        seconds=float(tags.get("seconds", 0.0)),
        dropped_by_reason={} if decision.promoted else dict.fromkeys(decision.reasons, 1),
        extra={"model": name, "version": str(number), "promoted": str(decision.promoted), **shown},
    )


def _measured_now(params: Params, champion: Any, report: dict[str, Any], *, challenger: Path, work: Path, **data: Path) -> dict[str, Any]:
    """The champion, sampled as it is served, on the challenger's edits; its old report, comparable with none, if it cannot be had."""
    from mlflow import MlflowException
    from torch import OutOfMemoryError

    from ip2p.model.evaluate import measure_again

    try:
        version = fetch_version(params, str(champion.version), work / "versions")
        forget_versions(work / "versions", [version.folder])
        return measure_again(with_settings(params, version.defaults), editor=version.folder, challenger=challenger, work=work, **data)
    except (MlflowException, ModelError, OSError, OutOfMemoryError) as error:
        print(f"register: version {champion.version} cannot be measured again: {first_line(error)}", file=sys.stderr)
        return report


def _report_of(client: Any, version: Any) -> dict[str, Any]:
    """A version's report; an empty one, comparable with none, if it came without."""
    from mlflow import MlflowException
    from mlflow.artifacts import load_dict

    try:
        report: dict[str, Any] = load_dict(f"{client.get_run(version.run_id).info.artifact_uri}/report.json")
    except (MlflowException, OSError) as error:
        print(f"register: version {version.version} has no report.json to be had: {error}", file=sys.stderr)
        return {}
    return report
