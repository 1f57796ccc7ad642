"""Where a registered version comes from: what it was trained from, by which run, and on which pairs of which captions."""

from __future__ import annotations

from pathlib import Path

from ip2p.errors import DataError
from ip2p.params import Params
from ip2p.release.registry import version_numbers
from ip2p.store import digest, read_shards
from ip2p.track import mlflow_in_reach, point_mlflow

_SHOWN = 3
"""Pairs of an edit's instruction that are named."""


def trace_version(number: str, params: Params, *, dataset: Path, made: str | None = None, instruction: str | None = None) -> list[str]:
    """What is known of a version, a line each; of an edit that the editor `made` by an `instruction` also which pairs taught that.

    Raises `DataError` if there is no such version, or it is another editor.
    """
    name = params.register_.name
    with mlflow_in_reach():
        if number not in version_numbers(params):
            raise DataError(f"{name}: no version {number}; `ip2p release status` lists them")
        client = point_mlflow(params.track)
        version = client.get_model_version(name, number)
        kept = [f.path for f in client.list_artifacts(version.run_id)]
    tags = version.tags
    if made is not None and tags.get("editor") != made:
        raise DataError(f"{name}: version {number} is the editor {tags.get('editor')}, not {made}, which a version of another registry was")
    promoted = f", promoted by {tags['promoted_by']}: {tags['promotion_reason']}" if "promoted_by" in tags else ""
    lines = [f"version      {number} of {name}{promoted}", f"editor       {tags.get('editor', '?')}, code {tags.get('code', '?')}"]
    if "start" in tags:
        by = f" by MLflow run {tags['training_run']}" if "training_run" in tags else ""
        lines.append(f"trained      from {tags['start']} ({tags['start_digest'][:16]}){by}")
    if "dataset" not in tags:
        return [*lines, "dataset      not known: the editor came without a record of its training"]
    fetch = f"`mlflow artifacts download -r {version.run_id} -a dvc.lock -d .`"
    back = f"; {fetch}, then `dvc checkout` brings it back" if "dvc.lock" in kept else ""
    return lines + taught(tags["dataset"], dataset, instruction, back=back)


def taught(mark: str, dataset: Path, instruction: str | None, *, back: str = "") -> list[str]:
    """The dataset of that digest, if it is the one here, and which of its pairs have the instruction."""
    if not dataset.is_dir() or digest(dataset)[:16] != mark:
        return [f"dataset      {mark}: not the one in {dataset}{back}"]
    rows = read_shards(dataset, "train-", columns=["pair_id", "original_prompt", "edit_prompt"]).to_pylist()
    lines = [f"dataset      {mark}: {dataset}, {len(rows)} pairs of {len({r['original_prompt'] for r in rows})} captions trained on"]
    if instruction is not None:
        same = [r for r in rows if r["edit_prompt"].casefold().strip() == instruction.casefold().strip()]
        lines.append("taught       that very instruction by " + (f"{len(same)} pairs, such as" if same else "none of them"))
        lines += [f"  pair       {r['pair_id']}: {r['original_prompt']}" for r in same[:_SHOWN]]
    return lines
