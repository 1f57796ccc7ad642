import pytest

from tests.torture import torture


@pytest.mark.timeout(900)
def test_killed_at_random_instants_all_ends_with_the_same_data_losses_and_editor_and_pays_nothing_twice(track_in, tmp_path):
    track_in(tmp_path)
    torture(tmp_path, kills=2, train_kills=2)
