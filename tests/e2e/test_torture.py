from tests.torture import torture


def test_killed_at_random_instants_the_dataset_stages_make_the_same_data_and_pay_nothing_twice(track_in, tmp_path):
    track_in(tmp_path)
    torture(tmp_path, kills=2, train_kills=0)
