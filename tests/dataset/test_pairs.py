import pytest
import torch

from ip2p.dataset import pairs
from ip2p.dataset.triplets import read_triplets
from ip2p.params import ModelsParams
from ip2p.store import digest, read_shards


def remake(tiny, made, tmp_path, **changes):
    section = tiny.pairs.model_copy(update=changes)
    params = tiny.model_copy(update={"pairs": section})
    return pairs.run(params, triplets=made / "triplets", out=tmp_path / "pairs", work=tmp_path / "work")


def test_one_worker_and_two_give_the_same_bits(tiny, made, tmp_path):
    torch.set_num_threads(1)
    remake(tiny, made, tmp_path, workers=2)
    assert digest(tmp_path / "pairs") == digest(made / "pairs")


def test_whole_shards_are_skipped_and_torn_ones_made_again(tiny, made, tmp_path):
    remake(tiny, made, tmp_path)
    shards = sorted((tmp_path / "work").glob("*.parquet"))
    before = digest(tmp_path / "pairs")
    torn = shards[1]
    data = torn.read_bytes()
    torn.unlink()  # the assembled copy is a hard link: replace, do not write through
    torn.write_bytes(data[: len(data) // 2])
    report = remake(tiny, made, tmp_path)
    assert report.extra["shards_made"] == 1
    assert report.extra["shards_resumed"] == len(shards) - 1
    assert digest(tmp_path / "pairs") == before


def test_a_change_of_parameters_makes_every_shard_anew(tiny, made, tmp_path):
    remake(tiny, made, tmp_path)
    assert remake(tiny, made, tmp_path, steps=2).extra["shards_resumed"] == 0


def test_rows_lead_with_the_reference_columns_and_scores_are_cosines(made):
    table = read_shards(made / "pairs")
    assert table.column_names[:5] == ["original_prompt", "original_image", "edit_prompt", "edited_prompt", "edited_image"]
    for name in ("sim_0", "sim_1", "sim_image", "sim_direction"):
        assert all(-1.001 <= x <= 1.001 for x in table[name].to_pylist())
    assert len(set(table["pair_id"].to_pylist())) == len(table)


def test_draws_depend_on_run_seed_and_triplet_alone(tiny, made):
    triplet = read_triplets(made / "triplets")[0]
    drawn = pairs.draws(triplet, tiny.pairs, 0)
    assert drawn == pairs.draws(triplet, tiny.pairs, 0)
    assert drawn != pairs.draws(triplet, tiny.pairs, 1)
    low, high = tiny.pairs.p2p
    assert all(low <= d.p2p <= high for d in drawn)


def test_sharing_from_the_first_step_to_the_last_keeps_more_of_the_source(tiny, made):
    """Prompt-to-Prompt at work: with p2p 1 the two images are nearer than with p2p 0, same seeds."""
    section = tiny.pairs.model_copy(update={"steps": 6})
    maker = pairs.load_synthesiser(ModelsParams(device="cpu"), section, 0)
    triplets = read_triplets(made / "triplets")[:6]
    distances = []
    for share in (0.0, 1.0):
        drawn = [pairs.Draw(t.id, i, share, 3.0) for i, t in enumerate(triplets)]
        before, after = pairs.sample_pairs(maker, triplets, drawn)
        distances.append((before - after).abs().mean().item())
    assert distances[1] < distances[0]


def test_a_missing_teacher_is_named(tiny, made, tmp_path):
    from ip2p.errors import ModelError

    params = tiny.model_copy(update={"models": ModelsParams(teacher="./nowhere")})
    with pytest.raises(ModelError, match=r"models\.teacher: no folder \./nowhere; give"):
        pairs.run(params, triplets=made / "triplets", out=tmp_path / "pairs", work=tmp_path / "work")
