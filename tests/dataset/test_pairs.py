import pytest
import torch

from ip2p.dataset import pairs, synthesis
from ip2p.dataset.read import read_triplets
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
    drawn = [pairs.draw_sample(triplet, n, tiny.pairs, 0) for n in range(3)]
    assert drawn == [pairs.draw_sample(triplet, n, tiny.pairs, 0) for n in range(3)]
    assert drawn[0] != pairs.draw_sample(triplet, 0, tiny.pairs, 1)
    low, high = tiny.pairs.p2p
    assert all(low <= d.p2p <= high for d in drawn)


def maker_for(tiny, **changes):
    return synthesis.load_synthesiser(ModelsParams(device="cpu", dtype="float32"), tiny.pairs.model_copy(update=changes), tiny.filter, 0)


@pytest.mark.parametrize("method", ["self_attention", "cross_attention", "both"])
def test_sharing_changes_the_edited_image_and_never_the_source(tiny, made, method):
    """Prompt-to-Prompt at work, from the first step to the last against not at all, same seeds."""
    maker = maker_for(tiny, steps=6, method=method)
    triplets = read_triplets(made / "triplets")[:6]
    alone, shared = (
        synthesis.sample_pairs(maker, triplets, [pairs.Draw(t.id, i, share, 3.0) for i, t in enumerate(triplets)]) for share in (0.0, 1.0)
    )
    assert (alone.before_BCHW - shared.before_BCHW).abs().max() < 0.05
    assert (alone.after_BCHW - shared.after_BCHW).abs().mean() > 0.002
    if method == "self_attention":
        assert (shared.before_BCHW - shared.after_BCHW).abs().mean() < (alone.before_BCHW - alone.after_BCHW).abs().mean()


def test_adaptive_sampling_stores_what_passes_counts_the_rest_and_stops_when_enough_or_hopeless(tiny, made, tmp_path):
    thresholds = tiny.filter.model_copy(update={"direction": 0.6, "keep": 1})
    section = tiny.pairs.model_copy(
        update={"strategy": "adaptive", "samples": 6, "patience": 3, "steps": 5, "abandon_at": 0.6, "abandon_margin": 0.0}
    )
    params = tiny.model_copy(update={"pairs": section, "filter": thresholds})
    report = pairs.run(params, triplets=made / "triplets", out=tmp_path / "pairs", work=tmp_path / "work")
    table = read_shards(tmp_path / "pairs")
    assert report.kept == len(table) > 0
    assert report.seen == report.kept + sum(report.dropped_by_reason.values()) < 6 * tiny.triplets.count
    assert min(table["sim_direction"].to_pylist()) >= 0.6
    assert synthesis.ABANDONED in report.dropped_by_reason


def test_a_negative_prompt_changes_the_picture(tiny, made):
    triplets = read_triplets(made / "triplets")[:1]
    drawn = [pairs.Draw(triplets[0].id, 0, 0.5, 4.0)]
    plain, led = (synthesis.sample_pairs(maker_for(tiny, negative_prompt=n), triplets, drawn).before_BCHW for n in ("", "a city at night"))
    assert (plain - led).abs().mean() > 0.01


def test_a_missing_teacher_is_named(tiny, made, tmp_path):
    from ip2p.errors import ModelError

    params = tiny.model_copy(update={"models": ModelsParams(teacher="./nowhere")})
    with pytest.raises(ModelError, match=r"models\.teacher: no folder \./nowhere; give"):
        pairs.run(params, triplets=made / "triplets", out=tmp_path / "pairs", work=tmp_path / "work")
