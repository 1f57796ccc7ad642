"""Training of the embedded models, one tracked task a part: `python -m flows.pretrain` (hours; resumes; not part of a run)."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from ip2p.errors import UserError
from ip2p.params import load_params
from ip2p.world.pretrain.pretrain import PARTS, run


@task
def train_part(part: str, params_path: str) -> Any:
    """One part: tokenizer, clip, autoencoder, teacher or export."""
    try:
        return run(load_params(Path(params_path)), work=Path("work/pretrain"), part=part).as_dict()
    except UserError as error:
        return Failed(message=str(error), data=error)


@flow(name="pretrain", flow_run_name="pretrain", description="Embedded models from rendered scenes")
def pretrain(params_path: str = "params.yaml", parts: tuple[str, ...] = PARTS) -> Any:
    """Train the parts in order and export their weights; stops at the first that fails."""
    for part in parts:
        state = train_part.with_options(name=part, task_run_name=part)(part, params_path, return_state=True)
        if not state.is_completed():
            return Failed(message=state.message)
    return Completed(message="exported")


if __name__ == "__main__":
    argparse.ArgumentParser(prog="python -m flows.pretrain", description=__doc__).parse_args()
    ended: State[Any] = pretrain(return_state=True)  # type: ignore[assignment]
    if not ended.is_completed():
        print(f"ip2p: error: {ended.message}", file=sys.stderr)
        sys.exit(2)
