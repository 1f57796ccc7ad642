import json

import pyarrow as pa
import pytest
import torch

from ip2p.dataset import calibrate
from ip2p.dataset.calibrate import Labels, _pictures, choose, measure, read_labels, run, world_labels
from ip2p.dataset.world_writer import write_triplets
from ip2p.errors import DataError
from ip2p.params import FilterParams
from ip2p.store import fingerprint, read_json, read_shards

OPEN = FilterParams(caption=-1, image=-1, direction=-1)


def labels(**types):
    """Labels of edit types, given the directions of their good and bad pairs."""
    same = {"triplet_id": "t", "edit_prompt": "", "sim_0": 1.0, "sim_1": 1.0, "sim_image": 1.0, "shift": 0.0, "zoom": 1.0, "outside": 0.0}
    rows = [
        same | {"pair_id": f"{t}{g}{i}", "edit_type": t, "sim_direction": d, "good": g}
        for t, (good, bad) in types.items()
        for g, ds in ((True, good), (False, bad))
        for i, d in enumerate(ds)
    ]
    table = pa.Table.from_pylist(rows)
    return Labels(table, table["good"].to_numpy(zero_copy_only=False))


def test_thresholds_part_good_from_bad_for_each_edit_type():
    known = labels(style=([0.6] * 12, [0.2] * 12), count=([0.2] * 12, [0.05] * 12))
    chosen = choose(known, OPEN)
    assert 0.2 < chosen.by_type["style"].direction <= 0.6 and 0.05 < chosen.by_type["count"].direction <= 0.2
    assert measure(known, chosen).f1 == 1
    few = labels(style=([0.6] * 12, [0.2] * 12), count=([0.2] * 12, [0.05] * 5))
    assert "count" not in choose(few, OPEN).by_type


def test_the_worlds_truth_is_told_apart_better_than_by_the_papers_thresholds(tiny):
    known = world_labels(tiny, 22)
    assert len(known.good) == 88 and known.good.sum() == 22
    calibrated = choose(known, OPEN)
    assert measure(known, calibrated).f1 > measure(known, FilterParams()).f1
    assert measure(known, calibrated).precision > 0.7


def test_a_persons_labels_are_joined_with_their_pairs(tiny, made, tmp_path):
    ids = read_shards(made / "pairs")["pair_id"].to_pylist()
    path = tmp_path / "labels.jsonl"
    path.write_text("".join(json.dumps({"pair_id": i, "good": n % 2 == 0}) + "\n" for n, i in enumerate(ids)))
    lines = run(tiny, labels=path, pairs=made / "pairs", out=tmp_path / "out", progress=lambda *_: None)
    assert any("calibrated" in x for x in lines)
    assert set(read_json(tmp_path / "out" / "calibration.json")) == {"reference", "params.yaml", "calibrated", "found"}
    assert (tmp_path / "out" / "calibration.png").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nonsense", r"labels\.jsonl:1: not valid JSON"),
        ('{"pair_id": "x", "good": 1}', r":1: not a label"),
        ('{"pair_id": "x", "good": true}', "1 of 1 labelled"),
    ],
)
def test_a_bad_label_is_named(made, tmp_path, line, message):
    path = tmp_path / "labels.jsonl"
    path.write_text(line)
    with pytest.raises(DataError, match=message):
        read_labels(path, made / "pairs")


def test_what_labels_do_not_tell_stays_as_it_is_and_halves_without_both_kinds_are_refused(tiny, made, tmp_path, monkeypatch):
    assert choose(labels(style=([0.9] * 12, [0.1] * 12)), OPEN).shift == OPEN.shift  # all lie still
    monkeypatch.setattr(calibrate, "FEWEST", 4)
    rows = read_shards(made / "pairs").select(["pair_id", "triplet_id"]).to_pylist()
    told = [{"pair_id": r["pair_id"], "good": int(fingerprint("calibrate", tiny.seed, r["triplet_id"]), 16) % 2 == 0} for r in rows]
    assert 4 <= sum(x["good"] for x in told) <= len(told) - 4
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(x) + "\n" for x in told))
    with pytest.raises(DataError, match="too few of one kind in either half"):
        run(tiny, labels=tmp_path / "labels.jsonl", pairs=made / "pairs", out=tmp_path / "out", progress=lambda *_: None)


def test_another_edit_is_another_edit():
    for number, t in enumerate(write_triplets(count=22, stream="0/calibrate")):
        _, edited, other, _, _ = _pictures(t.caption.text, t.instruction, number, 16)
        assert not torch.equal(edited, other), number
