"""dvc.lock outlives a kill: DVC writes it in place, and one that is cut off would end every later run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

from ip2p.store import write_bytes

LOCK = Path("dvc.lock")
KEPT, BROKEN = Path("work/dvc.lock.kept"), Path("work/dvc.lock.broken")


def keep_lock() -> None:
    """Before DVC is called: keep a copy of dvc.lock, or put the last copy in the place of a broken one.

    What such a copy lacks is the record of one stage, which runs again and takes what it had made. A merge's conflict is left to people.
    """
    lock = LOCK.resolve()  # in a container a link to the volume that work/ is
    if not lock.exists():
        return
    content = lock.read_bytes()
    if _whole(content):
        write_bytes(KEPT, content)
    elif b"<<<<<<<" not in content:
        before = KEPT.read_bytes() if KEPT.exists() else b"schema: '2.0'\n"
        write_bytes(BROKEN, content)
        write_bytes(lock, before)
        print(f"{LOCK}: broken, as by a run that was ended while it wrote; that of before is used (this one: {BROKEN})", file=sys.stderr)


def _whole(content: bytes) -> bool:
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA  # a second
    from voluptuous import Invalid

    try:
        told: Any = yaml.safe_load(content)
        COMPILED_LOCKFILE_SCHEMA(told)
    except (yaml.YAMLError, UnicodeDecodeError, Invalid):
        return False
    return content.endswith(b"\n")
