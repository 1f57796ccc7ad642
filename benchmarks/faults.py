"""Does `ip2p model check` find editors that were trained wrong? Trains some, each with one fault, and prints what is found.

`python benchmarks/faults.py --steps 200` after `make run` (its dataset is used), from the teacher. Faults: no conditioning dropped, as
if the four ranges were forgotten; a new bias in conv_in, which a well-known training script leaves.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch

from ip2p.model import train, trainer
from ip2p.model.check import check
from ip2p.model.edit import load_editor
from ip2p.models import load_diffusion, resolve_device
from ip2p.params import load_params
from ip2p.store import digest

NONE_DROPPED = {"drop_text": 0.0, "drop_both": 0.0, "drop_image": 0.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--dataset", type=Path, default=Path("data/dataset"))
    options = parser.parse_args()
    params = load_params(Path("params.yaml"))
    device = resolve_device(params.models.device)
    teacher, grow = load_diffusion(params.models.teacher, device=device), trainer.new_editor_unet
    for name, changes, start in (("sound", {}, grow), ("nothing dropped", NONE_DROPPED, grow), ("new bias", {}, with_new_bias(grow))):
        with tempfile.TemporaryDirectory() as work:
            root = Path(work)
            (root / "validated.json").write_text(json.dumps({"dataset": digest(options.dataset)}))
            section = params.train.model_copy(update={"steps": options.steps, "grid_every": 10**6, "workers": 1, "start": None, **changes})
            track = params.track.model_copy(update={"uri": f"sqlite:///{root}/mlflow.db"})
            told = params.model_copy(update={"train": section, "track": track})
            trainer.new_editor_unet = start
            places = {"dataset": options.dataset, "marker": root / "validated.json", "out": root / "editor", "work": root / "work"}
            train.run(told, **places)
            trainer.new_editor_unet = grow
            print(f"\n{name}, {options.steps} steps")
            for finding in check(load_editor(root / "editor", device=device), teacher, options.dataset, root / "editor"):
                print(finding.line(), flush=True)


def with_new_bias(grow):
    """What the well-known script does: `conv_in` made anew, only its weights copied."""

    def grown(start, latent_channels):
        unet = grow(start, latent_channels)
        torch.manual_seed(0)
        unet.conv_in.bias.data.uniform_(-1, 1).mul_(unet.conv_in.weight[0].numel() ** -0.5)
        return unet

    return grown


if __name__ == "__main__":
    main()
