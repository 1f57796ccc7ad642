from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from ip2p.muon import Muon
from ip2p.parallel import launch


def two_steps(rank: int, workers: int, folder: str) -> None:
    """Train a small model on the same gradients in every process, and write what became of it."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(24, 16), torch.nn.Conv2d(16, 32, 3), torch.nn.Linear(32, 40), torch.nn.LayerNorm(40))
    optimizer = Muon(model, lr=0.1, weight_decay=0.01)
    for _ in range(2):
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        optimizer.step()
    state = {f"{i}.{k}": v for i, s in optimizer.state_dict()["state"].items() for k, v in s.items()}
    save_file({**model.state_dict(), **state}, Path(folder) / f"{workers}-{rank}.safetensors")


def test_processes_that_share_the_work_take_the_steps_of_one(tmp_path):
    for workers in (1, 2):
        launch(workers, two_steps, str(tmp_path))
    alone, *others = (load_file(tmp_path / f"{n}.safetensors") for n in ("1-0", "2-0", "2-1"))
    assert all(torch.equal(alone[k], other[k]) for other in others for k in alone)
