import itertools
import random
import statistics
from collections import Counter

import pyarrow as pa
import pytest
import torch

from ip2p.clip import embedding_codes, image_features
from ip2p.dataset.filter import run, split_of
from ip2p.dataset.filters import duplicates
from ip2p.dataset.filters.chain import KEPT, Chain
from ip2p.dataset.thresholds import Similar, reject_reason
from ip2p.errors import DataError
from ip2p.params import FilterParams, TypeThresholds
from ip2p.pictures import from_pillow
from ip2p.records import PAIRS, triplet_of
from ip2p.store import read_json, read_shards, write_shard
from ip2p.world.render import render
from ip2p.world.scenes import sample_scene

PAPER = FilterParams()
GOOD = {"sim_0": 0.3, "sim_1": 0.3, "sim_image": 0.8, "sim_direction": 0.3, "shift": 0.0, "zoom": 1.0, "outside": 0.01}
GOOD |= {"contrast": 0.2, "burnt": 0.0, "hash_0": 1, "triplet_id": "t", "edit_type": "style", "edit_prompt": "as a sketch"}


def table(*rows):
    """Scores of pairs named p0, p1 …, good but for what a row says."""
    return pa.Table.from_pylist([GOOD | {"pair_id": f"p{i}", "hash_1": i} | row for i, row in enumerate(rows)])


def reasons(section, *rows):
    return Chain(section).decide(table(*rows)).reasons.tolist()


def test_the_defaults_are_the_reference_codes():
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


def test_of_a_pair_without_captions_its_pictures_alone_are_judged():
    bare = dict.fromkeys(("sim_0", "sim_1", "sim_direction"))
    assert reasons(PAPER, bare, bare | {"sim_image": 0.69}, {"sim_image": None}) == [KEPT, "images too different", "images too different"]


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


@pytest.mark.parametrize("fresh", [2, 1000])
def test_small_edits_of_one_picture_are_no_duplicates_of_each_other(monkeypatch, fresh):
    monkeypatch.setattr(duplicates, "_FRESH", fresh)
    same = {"hash_1": 7}
    rows = [same, same | {"edit_prompt": "a"}, same | {"edit_prompt": "a"}, same | {"triplet_id": "u", "edit_prompt": "b"}]
    again = "looks like an earlier pair"
    chain = Chain(PAPER)
    assert chain.decide(table(*rows)).reasons.tolist() == [KEPT, KEPT, again, again]
    others = [same, same | {"edit_prompt": "c"}, same | {"edit_prompt": "c"}, same | {"triplet_id": "u", "edit_prompt": "d"}]
    assert chain.decide(table(*others)).reasons.tolist() == [again, KEPT, again, again]  # nor in another shard


def test_a_dropped_pair_makes_no_later_one_a_duplicate():
    assert reasons(PAPER, {"sim_direction": 0.0, "hash_1": 7}, {"hash_1": 7}, {"hash_1": 7})[1:] == [KEPT, "looks like an earlier pair"]


def brute_near(codes, triplets, most):
    """What the embedding filter drops, row after row."""
    kept, dropped = [], []
    for code, triplet in zip(codes, triplets, strict=True):
        near = any(t != triplet and ((code ^ c) & (2**64 - 1)).bit_count() <= most for c, t in kept)
        dropped.append(near)
        if not near:
            kept.append((code, triplet))
    return dropped


@pytest.mark.parametrize("most", [0, 3, 8])
def test_embedding_near_duplicates_are_those_of_a_search_through_all(most):
    rng = random.Random(most)
    seeds = [rng.getrandbits(64) - 2**63 for _ in range(12)]
    codes = []
    for _ in range(300):
        code = rng.choice(seeds)
        for bit in rng.sample(range(63), rng.randrange(10)):
            code ^= 1 << bit
        codes.append(code)
    triplets = [f"t{rng.randrange(40)}" for _ in codes]
    section = FilterParams(chain=("embedding",), near_bits=most, keep=99)
    chain = Chain(section)
    found = []
    for first in range(0, 300, 70):  # what is remembered goes from shard to shard
        rows = [{"hash_clip": c, "triplet_id": t} for c, t in zip(codes[first : first + 70], triplets[first : first + 70], strict=True)]
        found += [r != KEPT for r in chain.decide(table(*rows)).reasons]
    assert found == brute_near(codes, triplets, most) and 20 < sum(found) < 300


def test_codes_of_embeddings_are_near_for_the_same_scene_and_far_for_another(clip):
    scenes = [sample_scene(random.Random(i)) for i in range(24)]
    again, once = (torch.stack([from_pillow(render(s, seed=1, size=n)) for s in scenes]) for n in (96, 104))
    features = [image_features(clip, x) for x in (again, once)]
    same, other = ([c & (2**64 - 1) for c in embedding_codes(f, f)] for f in features)
    near = [(a ^ b).bit_count() for a, b in zip(same, other, strict=True)]
    far = [(a ^ b).bit_count() for a, b in itertools.pairwise(same)]
    assert statistics.median(near) <= 4 and statistics.median(far) >= 12


def test_pairs_that_were_never_rated_are_not_taken_for_safe():
    section = FilterParams(chain=("unsafe",))
    assert reasons(section, {"unsafe": 0.2}, {"unsafe": 0.9}) == [KEPT, "an image is unsafe"]
    with pytest.raises(DataError, match=r"set models\.safety"):
        reasons(section, {"unsafe": 0.2}, {"unsafe": None})


def test_the_best_k_of_a_triplet_are_kept_by_direction():
    rows = [{"sim_direction": 0.2 + i / 100, "triplet_id": t} for i in range(6) for t in ("t", "u")]
    verdicts = Chain(PAPER).decide(table(*rows))
    assert verdicts.ranks.tolist() == [5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0]
    assert Counter(verdicts.reasons) == {KEPT: 8, "beyond the best 4 of its triplet": 4}


def test_a_shard_without_the_scores_that_a_filter_reads_is_named(tiny, tmp_path):
    write_shard(tmp_path / "pairs" / "pairs-00000.parquet", PAIRS.empty_table().drop_columns(["shift"]), "m")
    with pytest.raises(DataError, match=r"pairs-00000\.parquet: no column shift; make the pairs again"):
        run(tiny, pairs=tmp_path / "pairs", out=tmp_path / "dataset", work=tmp_path / "work")


def test_splits_are_by_caption_stable_and_of_the_right_size():
    shares = (0.05, 0.05)
    texts = [(f"caption {i}", f"edit {k}", f"edited {i} {k}") for i in range(500) for k in range(4)]
    own = {t[0]: {split_of(triplet_of(*u), *u, shares) for u in texts if u[0] == t[0]} for t in texts[::40]}
    assert {len(splits) for splits in own.values()} == {1}  # all edits of a caption; what one learns, another must not test
    sessions = {split_of("session-7", *u, shares) for u in texts}
    assert len(sessions) == 1  # and all of people's edits of one picture, whatever they call it
    counts = Counter(split_of(f"triplet-{i}", "", "edit", "", shares) for i in range(4000))
    assert 0.04 < counts["validation"] / 4000 < 0.06
    assert 0.04 < counts["test"] / 4000 < 0.06


def test_no_reject_vanishes(tiny, made, tmp_path, capsys):
    own = {"style": TypeThresholds(), "sytle": TypeThresholds(direction=0.9)}
    params = tiny.model_copy(update={"filter": FilterParams(caption=-1, image=-1, direction=-1, keep=1, by_type=own)})
    report = run(params, pairs=made / "pairs", out=tmp_path / "dataset", work=tmp_path / "work")
    assert report.kept == 11
    assert "no pair is of the edit types sytle, which filter.by_type names" in capsys.readouterr().out
    assert report.seen == report.kept + sum(report.dropped_by_reason.values())
    verdicts = read_shards(tmp_path / "dataset" / "verdicts").to_pylist()
    assert sum(v["kept"] for v in verdicts) == report.kept
    assert len(verdicts) == report.seen
    survival = read_json(tmp_path / "dataset" / "survival" / "survival.json")
    assert sum(sum(v.values()) for v in survival.values()) == report.seen
    assert (tmp_path / "dataset" / "survival" / "survival.png").read_bytes().startswith(b"\x89PNG")
