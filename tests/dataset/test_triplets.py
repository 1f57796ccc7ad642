from collections import Counter

import pytest

from ip2p.dataset.captions import read_captions
from ip2p.dataset.read import read_triplets
from ip2p.dataset.triplets import run
from ip2p.dataset.world_writer import write_triplets
from ip2p.errors import DataError, ParamsError
from ip2p.params import Params
from ip2p.records import Caption
from ip2p.world.edits import EDIT_TYPES, apply_edit
from ip2p.world.language import read_caption, read_instruction


def test_triplets_are_true_distinct_and_balanced_over_edit_types():
    triplets = list(write_triplets(count=55, stream="t"))
    assert Counter(t.edit_type for t in triplets) == dict.fromkeys(EDIT_TYPES, 5)
    assert len({t.id for t in triplets}) == 55
    for t in triplets:
        assert apply_edit(read_caption(t.caption.text), read_instruction(t.instruction)) == read_caption(t.edited_caption)


def test_what_is_done_badly_can_be_asked_for_more_often():
    weights = {"replace": 3, "style": 0.5}
    triplets = list(write_triplets(count=50, stream="t", edit_types=("replace", "style", "season", "add"), weights=weights))
    got = Counter(t.edit_type for t in triplets)
    assert got["style"] < got["season"] == got["add"] < got["replace"]
    assert abs(got["replace"] - 3 * got["add"]) <= 3


def test_avoided_captions_are_not_used():
    first = {t.caption.text for t in write_triplets(count=11, stream="t")}
    again = {t.caption.text for t in write_triplets(count=11, stream="t", avoid=frozenset(first))}
    assert not first & again


def test_given_captions_are_used_and_what_they_lack_is_counted(tmp_path):
    path = tmp_path / "captions.jsonl"
    path.write_text(
        '{"caption": "a red cat on the left at the beach in summer"}\n\n{"input": "a blue car on the right in a city in winter"}\n'
    )
    params = Params.model_validate({"triplets": {"captions": str(path), "count": 40}})
    report = run(params, out=tmp_path / "out", work=tmp_path / "work")
    assert report.kept == 40
    triplets = read_triplets(tmp_path / "out")
    assert {t.caption.text.split()[1] for t in triplets} == {"red", "blue"}
    assert set(report.kept_by_edit_type) == set(EDIT_TYPES) - {"remove"}  # a single group cannot be removed


def test_captions_that_allow_no_more_are_counted_not_waited_for():
    captions = [Caption("a red cat on the left at the beach in summer", "here")]

    assert list(write_triplets(count=3, stream="t", captions=captions, edit_types=("remove",))) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"caption": "a"}\nnonsense\n', r"captions\.jsonl:2: not valid JSON"),
        ('{"title": "a"}\n', r"captions\.jsonl:1: no `caption`"),
        ('{"caption": "   "}\n', r"captions\.jsonl:1: no `caption`"),
        ("", "holds no captions"),
    ],
)
def test_a_bad_row_is_named(tmp_path, text, message):
    path = tmp_path / "captions.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_captions(str(path))


def test_a_caption_outside_the_world_is_named(tmp_path):
    path = tmp_path / "captions.jsonl"
    path.write_text('{"caption": "a zebra in the savannah"}\n')
    params = Params.model_validate({"triplets": {"captions": str(path), "count": 2}})
    with pytest.raises(DataError, match=r"captions\.jsonl:1: .*no setting is named"):
        run(params, out=tmp_path / "out", work=tmp_path / "work")


@pytest.mark.parametrize("asked", [{"edit_types": ["style"]}, {"per_caption": 2}, {"weights": {"style": 2}}])
def test_what_a_completion_model_cannot_be_told_is_refused(tmp_path, asked):
    params = Params.model_validate({"triplets": {"writer": "llm", "llm": {"format": "completion"}, **asked}})
    with pytest.raises(ParamsError, match=rf"triplets\.{next(iter(asked))}: a completion model cannot be asked"):
        run(params, out=tmp_path / "out", work=tmp_path / "work")
