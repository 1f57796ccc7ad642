"""`ip2p`: one verb a stage in pipeline order, then the verbs that use what the stages made. Heavy imports wait for a verb."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ip2p.errors import UserError
from ip2p.startup import start_quickly
from ip2p.verbs import data, model, operate
from ip2p.verbs.stage import stage

_EPILOG = """\
The stages read params.yaml and each other's outputs; `dvc repro` runs whatever is stale, `make run` does all of it.
Examples:
  ip2p world draw "a yellow car in the centre in a city in autumn" -o picture.png
  ip2p edit picture.png "make it winter" -o out.png
  ip2p edit picture.png "swap the car for a boat" --text-guidance 2 --image-guidance 1.1 --seed 7 -o out.png
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
    parser.add_argument("--version", action="version", version=f"ip2p {version('ip2p')}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    stages = {name: verbs.add_parser(name, help=text, description=text) for name, text in STAGE_HELP.items()}
    for own in stages.values():
        own.set_defaults(run=stage)
    data.add_to_stages(stages)
    model.add_to_stages(stages)
    for kind in (data, model, operate):
        kind.add_verbs(verbs)
    _let_params_follow(verbs)
    return parser


def _let_params_follow(verbs: Any) -> None:
    """`--params` may stand behind a verb, too, and behind what it is told to do."""
    for verb in verbs.choices.values():
        verb.add_argument("--params", type=Path, default=argparse.SUPPRESS, help="parameters of the run (default: params.yaml)")
        for action in verb._actions:
            if isinstance(action, argparse._SubParsersAction):
                _let_params_follow(action)


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
    start_quickly()
    options = build_parser().parse_args(arguments)
    try:
        code: int = options.run(options)
    except UserError as error:
        print(f"ip2p: error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read the output wants no more
        sys.stdout = None
        return 1
    except KeyboardInterrupt:
        print("ip2p: interrupted; what was made is kept", file=sys.stderr)
        return 130
    except OSError as error:
        if error.strerror is None:
            raise
        where = "" if error.filename is None else f"{error.filename}: "
        print(f"ip2p: error: {where}{error.strerror}", file=sys.stderr)
        return 2
    return code


if __name__ == "__main__":
    sys.exit(main())
