"""Files of tensors: written whole or not at all, read memory-mapped. Nothing is pickled."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ip2p.errors import UserError


def write_tensors(tensors: dict[str, Tensor], path: Path, *, kept: str, metadata: Mapping[str, str] | None = None) -> None:
    """Write under a temporary name, flush, rename. Raises `UserError`, which tells what is `kept`, if the disk does not take it."""
    temporary = path.with_suffix(".tmp")
    try:
        save_file(tensors, temporary, dict(metadata or {}) or None)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written ({error}); make room on the disk and run again, {kept} kept") from error
    temporary.replace(path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A file of a cache, memory-mapped. Raises `UserError` if it was cut off."""
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path}: is damaged ({error}); delete it and run again, it is encoded anew") from error
    return tensors
