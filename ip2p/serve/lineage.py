"""Where a served edit comes from: the editor that made it, and what taught that."""

from __future__ import annotations

from pathlib import Path

from ip2p.errors import DataError
from ip2p.params import Params
from ip2p.records import RECORD
from ip2p.release.lineage import taught, trace_version
from ip2p.serve.history import open_history
from ip2p.store import digest, read_json


def trace_edit(id: str, params: Params, *, editor: Path, dataset: Path) -> list[str]:
    """What is known of an edit in the history, a line each. Raises `DataError` if it is not there, or its version is another editor now."""
    row = open_history(params.serve).edit(id)
    if row is None:
        raise DataError(f"{id}: no edit of the history in serve.database; it was forgotten for want of room, or is another server's")
    how = f"seed {row.seed}, {row.steps} steps, s_T {row.text_guidance:g}, s_I {row.image_guidance:g}"
    made = f"made by      version {row.version}, editor {row.editor or '?'}"
    lines = [f"edit         {row.id}: {how}", f"instruction  {row.instruction}", made]
    if row.version.isdecimal():
        return lines + trace_version(row.version, params, dataset=dataset, made=row.editor, instruction=row.instruction)
    if not (editor / RECORD).is_file() or not digest(editor).startswith(row.editor or "none"):
        return [*lines, f"trained      elsewhere: {editor} is not that editor, and it is under no number in the registry"]
    record = read_json(editor / RECORD)
    trained = f"trained      from {record['start']} ({record['start_digest'][:16]})"
    return [*lines, trained, *taught(record["dataset"][:16], dataset, row.instruction)]
