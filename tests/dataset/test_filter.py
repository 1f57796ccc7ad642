from collections import Counter

import pytest

from ip2p.dataset.filter import Scored, judge, reject_reason, run, split_of
from ip2p.params import FilterParams
from ip2p.store import read_shards

PAPER = FilterParams()


def pair(name="p", triplet="t", **scores):
    good = {"sim_0": 0.3, "sim_1": 0.3, "sim_image": 0.8, "sim_direction": 0.3}
    return Scored(name, triplet, "style", **(good | scores))


def test_the_defaults_are_the_papers():
    assert (PAPER.caption, PAPER.image, PAPER.direction, PAPER.keep) == (0.2, 0.7, 0.2, 4)


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        ({}, None),
        ({"sim_0": 0.19}, "source unlike its caption"),
        ({"sim_1": 0.19}, "edit unlike its caption"),
        ({"sim_image": 0.69}, "images too different"),
        ({"sim_direction": 0.19}, "change is not the one asked for"),
        ({"sim_direction": float("nan")}, "change is not the one asked for"),
    ],
)
def test_each_threshold_has_its_reason(scores, reason):
    assert reject_reason(pair(**scores), PAPER) == reason


def test_copies_are_rejected_when_a_limit_is_set():
    assert reject_reason(pair(sim_image=0.999), FilterParams.model_validate({"copy": 0.99})) == "images the same"


def test_the_best_k_of_a_triplet_are_kept_by_direction():
    scored = [pair(f"p{i}", sim_direction=0.2 + i / 100) for i in range(6)]
    verdicts = judge(scored, PAPER)
    assert [v.pair.pair_id for v in verdicts if v.kept] == ["p2", "p3", "p4", "p5"]
    assert [v.rank for v in verdicts] == [5, 4, 3, 2, 1, 0]
    assert verdicts[0].reason == "beyond the best 4 of its triplet"


def test_splits_are_by_triplet_stable_and_of_the_right_size():
    counts = Counter(split_of(f"triplet-{i}", (0.05, 0.05)) for i in range(4000))
    assert 0.04 < counts["validation"] / 4000 < 0.06
    assert 0.04 < counts["test"] / 4000 < 0.06


def test_no_reject_vanishes(tiny, made, tmp_path):
    params = tiny.model_copy(update={"filter": FilterParams(caption=-1, image=-1, direction=-1, keep=1)})
    report = run(params, pairs=made / "pairs", out=tmp_path / "dataset")
    assert report.kept == 11
    assert report.seen == report.kept + sum(report.dropped_by_reason.values())
    verdicts = read_shards(tmp_path / "dataset" / "verdicts").to_pylist()
    assert sum(v["kept"] for v in verdicts) == report.kept
    assert len(verdicts) == report.seen
