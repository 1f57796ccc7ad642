from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.optimize import linprog

from ip2p.muon import _QUINTICS, Muon, orthogonalised
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


def test_each_quintic_brings_singular_values_as_near_to_1_as_any_can():
    low, high = 0.005, 1.0
    for quintic in _QUINTICS:
        x = np.geomspace(low, high, 4000)
        powers = np.stack([x, x**3, x**5, -np.ones_like(x)], axis=1)
        bounds, signs = [(None, None)] * 4, np.array([1, 1, 1, -1])
        best = linprog(
            [0, 0, 0, 1], np.concatenate([powers, -powers * signs]), np.concatenate([np.ones_like(x), -np.ones_like(x)]), bounds=bounds
        )
        ours = abs(powers[:, :3] @ quintic - 1).max()
        assert ours == pytest.approx(best.fun, rel=1e-3)
        low, high = 1 - ours, 1 + ours
    assert (low, high) == pytest.approx((0.505, 1.495), abs=1e-3)


@pytest.mark.parametrize("shape", [(48, 48), (48, 400), (400, 48)])
def test_singular_vectors_stay_and_values_become_what_the_quintics_make_of_them(shape):
    torch.manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    values = torch.logspace(0, -2, 48)
    wanted = values / values.norm() / 1.01
    for a, b, c in _QUINTICS:
        wanted = a * wanted + b * wanted**3 + c * wanted**5
    made = u.T @ orthogonalised(u @ values.diag() @ v).float() @ v.T
    assert (made.diag() - wanted).abs().max() < 0.05
    assert (made - made.diag().diag()).abs().max() < 0.05


def test_orthogonalised_singular_values_are_near_one_whatever_the_shape():
    torch.manual_seed(0)
    for shape in ((32, 100), (100, 32), (3, 32, 100), (3, 100, 32)):
        values = torch.linalg.svdvals(orthogonalised(torch.randn(shape)).float())
        assert 0.45 < values.min() < values.max() < 1.55
