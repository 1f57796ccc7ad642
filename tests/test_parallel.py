import pytest
import torch

from ip2p.errors import UserError
from ip2p.parallel import agree, launch


def fails(rank: int, workers: int) -> None:
    """What a worker does whose user has made a mistake."""
    if rank == 1:
        raise UserError("train.lr: too high; lower it")


def test_a_users_error_in_a_worker_is_told_as_such():
    with pytest.raises(UserError, match=r"^train\.lr: too high; lower it$"):
        launch(2, fails)


def compares(rank: int, workers: int) -> None:
    """What workers do that found different checkpoints."""
    cpu = torch.device("cpu")
    if not agree(7, cpu) or agree(rank, cpu):
        raise UserError("mistaken")
    raise UserError("they differ and know it")


def test_workers_know_whether_they_agree():
    assert agree(3, torch.device("cpu"))
    with pytest.raises(UserError, match="they differ and know it"):
        launch(2, compares)
