"""The verb of a stage: run it on the project's own paths and tell what it saw, kept and dropped."""

from __future__ import annotations

import argparse
import sys

from ip2p.errors import ParamsError


def bar(done: int, of: int) -> None:
    """Tell on standard error how far it is, over and over on one line."""
    print(f"\r{done}/{of}", end="\n" if done == of else "", file=sys.stderr, flush=True)


def require_belonging(options: argparse.Namespace, what: str, **flags: str) -> None:
    """Raise `ParamsError` if an option was given that belongs to another thing to do of the verb, and would be ignored."""
    for name, flag in flags.items():
        if options.what != what and getattr(options, name) is not None:
            raise ParamsError(f"{flag}: belongs to `ip2p {options.verb} {what}`; leave it out, or say `{what}`")


def stage(options: argparse.Namespace) -> int:
    """Run the stage that the verb names; returns the exit code."""
    from ip2p.params import load_params
    from ip2p.stages import TELLS, run_stage

    progress = (lambda done, of: None) if options.verb in TELLS else bar
    report = run_stage(options.verb, load_params(options.params), progress=progress)
    print("\n".join(report.lines()))
    return 0
