"""Triplets to image pairs by Prompt-to-Prompt, as a Prefect flow: `python -m flows.pairs`."""

from __future__ import annotations

from flows.stage import main, stage_flow
from ip2p.params import Params
from ip2p.stages import Engine


def engine(params: Params) -> Engine | None:
    """Where the units are made: on a Ray cluster, or (none) on processes of this machine."""
    if params.pairs.engine == "processes":
        return None
    from flows.ray import make_on_ray

    return make_on_ray


pairs = stage_flow("pairs", "Triplets to image pairs by Prompt-to-Prompt", engine, gpu=True)

if __name__ == "__main__":
    main(pairs)
