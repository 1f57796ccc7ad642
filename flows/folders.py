"""What lies in the files and folders here that parameters name: DVC follows their names, and by what this writes their content.

`python -m flows.folders` writes one file for each stage that reads some, so that a changed model makes stale what is made with it alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ip2p.errors import UserError
from ip2p.params import Params, load_params
from ip2p.records import TRAINED
from ip2p.store import digest, write_json

OUT = Path("data/folders")
NAMED = {
    "triplets": ("triplets.captions",),
    "pairs": ("models.teacher", "models.clip", "models.safety"),
    "validate": ("validate.benchmarks",),
    "train": ("models.teacher", "train.start"),
    "evaluate": ("models.teacher", "models.clip", "evaluate.previous", "evaluate.dino", "evaluate.benchmarks"),
}
"""The parameters of each stage that may name some; of preferences the parameter itself tells the version."""


def main() -> int:
    """Write them; exit code 2 if params.yaml cannot be read."""
    argparse.ArgumentParser(prog="python -m flows.folders", description=__doc__).parse_args()
    try:
        params = load_params(Path("params.yaml"))
        for stage, names in NAMED.items():
            write_json(OUT / f"{stage}.json", found(params, names))
    except UserError as error:
        print(f"ip2p: error: {error}", file=sys.stderr)
        return 2
    return 0


def found(params: Params, names: tuple[str, ...]) -> dict[str, str]:
    """The content of what lies here of that, by its name; but of the editor that is trained here, which DVC knows."""
    texts = sorted({text for name in names for text in _texts(params, name) if Path(text) != Path(TRAINED)})
    return {text: digest(path) for text in texts if (path := Path(text).expanduser()).exists()}


def _texts(params: Params, name: str) -> Iterator[str]:
    """All that a parameter names: one, several, or by kind; of a caption file without its column."""
    section, field = name.split(".")
    value: Any = params.model_dump(by_alias=True)[section][field]
    several = value.values() if isinstance(value, dict) else [value] if isinstance(value, str) else value or ()
    for text in several:
        yield text if Path(text).expanduser().exists() else text.partition(":")[0]


if __name__ == "__main__":
    sys.exit(main())
