import pytest

from ip2p.errors import UserError
from ip2p.parallel import launch


def fails(rank: int, workers: int) -> None:
    """What a worker does whose user has made a mistake."""
    if rank == 1:
        raise UserError("train.lr: too high; lower it")


def test_a_users_error_in_a_worker_is_told_as_such():
    with pytest.raises(UserError, match=r"^train\.lr: too high; lower it$"):
        launch(2, fails)
