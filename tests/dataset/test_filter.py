from collections import Counter

import pyarrow as pa
import pytest

from ip2p.dataset.filter import run, split_of
from ip2p.dataset.filters.chain import KEPT, Chain
from ip2p.dataset.thresholds import Similar, reject_reason
from ip2p.errors import DataError
from ip2p.params import FilterParams
from ip2p.records import PAIRS
from ip2p.store import read_json, read_shards, write_shard

PAPER = FilterParams()
GOOD = {"sim_0": 0.3, "sim_1": 0.3, "sim_image": 0.8, "sim_direction": 0.3, "shift": 0.0, "zoom": 1.0, "outside": 0.01}
GOOD |= {"contrast": 0.2, "burnt": 0.0, "hash_0": 1, "triplet_id": "t", "edit_type": "style"}


def table(*rows):
    """Scores of pairs named p0, p1 …, good but for what a row says."""
    return pa.Table.from_pylist([GOOD | {"pair_id": f"p{i}", "hash_1": i} | row for i, row in enumerate(rows)])


def reasons(section, *rows):
    return Chain(section).judge(table(*rows)).reasons.tolist()


def test_the_defaults_are_the_papers():
    assert (PAPER.caption, PAPER.image, PAPER.direction, PAPER.keep) == (0.2, 0.7, 0.2, 4)


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        ({}, KEPT),
        ({"sim_0": 0.19}, "source unlike its caption"),
        ({"sim_1": 0.19}, "edit unlike its caption"),
        ({"sim_image": 0.69}, "images too different"),
        ({"sim_image": 0.999}, "images the same"),
        ({"sim_direction": 0.19}, "change is not the one asked for"),
        ({"sim_direction": float("nan")}, "change is not the one asked for"),
        ({"shift": 0.06}, "images shifted"),
        ({"zoom": 0.9}, "images zoomed"),
        ({"outside": 0.3}, "too much changed elsewhere"),
        ({"contrast": 0.001}, "an image is flat"),
        ({"burnt": 0.95}, "an image is burnt"),
        ({"hash_1": 0}, "looks like an earlier pair"),
    ],
)
def test_each_filter_has_its_reason_and_the_same_thresholds_hold_for_one_pair(scores, reason):
    section = FilterParams.model_validate({"copy": 0.99, "shift": 0.05, "zoom": 0.05, "outside": 0.2})
    assert reasons(section, {}, scores) == [KEPT, reason]
    names = ("sim_0", "sim_1", "sim_image", "sim_direction")
    if set(scores) & set(names):
        assert reject_reason(Similar(*((GOOD | scores)[n] for n in names)), section) == reason


def test_an_edit_type_can_have_thresholds_of_its_own():
    section = FilterParams.model_validate({"by_type": {"count": {"direction": 0.4}, "style": {"image": 0.9}}})
    rows = ({"edit_type": "count"}, {"edit_type": "style"}, {"edit_type": "time"})
    assert reasons(section, *rows) == ["change is not the one asked for", "images too different", KEPT]
    assert reject_reason(Similar(0.3, 0.3, 0.8, 0.3), section, "count") == "change is not the one asked for"


def test_filters_decide_in_the_order_of_the_parameters_and_one_left_out_decides_nothing():
    bad = {"sim_direction": 0.0, "contrast": 0.0}
    assert reasons(FilterParams(chain=("degenerate", "clip")), bad) == ["an image is flat"]
    assert reasons(FilterParams(chain=("clip", "degenerate")), bad) == ["change is not the one asked for"]
    assert reasons(FilterParams(chain=("duplicates",)), bad) == [KEPT]


def test_a_dropped_pair_makes_no_later_one_a_duplicate():
    assert reasons(PAPER, {"sim_direction": 0.0, "hash_1": 7}, {"hash_1": 7}, {"hash_1": 7})[1:] == [KEPT, "looks like an earlier pair"]


def test_the_best_k_of_a_triplet_are_kept_by_direction():
    rows = [{"sim_direction": 0.2 + i / 100, "triplet_id": t} for i in range(6) for t in ("t", "u")]
    verdicts = Chain(PAPER).judge(table(*rows))
    assert verdicts.ranks.tolist() == [5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0]
    assert Counter(verdicts.reasons) == {KEPT: 8, "beyond the best 4 of its triplet": 4}


def test_a_shard_without_the_scores_that_a_filter_reads_is_named(tiny, tmp_path):
    write_shard(tmp_path / "pairs" / "pairs-00000.parquet", PAIRS.empty_table().drop_columns(["shift"]), "m")
    with pytest.raises(DataError, match=r"pairs-00000\.parquet: no column shift; make the pairs again"):
        run(tiny, pairs=tmp_path / "pairs", out=tmp_path / "dataset")


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
    survival = read_json(tmp_path / "dataset" / "survival" / "survival.json")
    assert sum(sum(v.values()) for v in survival.values()) == report.seen
    assert (tmp_path / "dataset" / "survival" / "survival.png").read_bytes().startswith(b"\x89PNG")
