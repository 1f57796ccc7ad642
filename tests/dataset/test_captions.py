import json

import pandas as pd
import pytest

from ip2p.dataset.captions import clean, read_captions
from ip2p.errors import DataError

TEXTS = ["a red boat on a lake", "two cats, sleeping"]


@pytest.mark.parametrize("ending", ["jsonl", "csv", "tsv", "parquet"])
def test_every_kind_of_file_gives_the_same_captions(tmp_path, ending):
    path = tmp_path / f"mine.{ending}"
    frame = pd.DataFrame({"id": [1, 2], "title": TEXTS})
    if ending == "jsonl":
        path.write_text("".join(json.dumps({"title": t}) + "\n" for t in TEXTS))
    elif ending == "parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, sep="\t" if ending == "tsv" else ",", index=False)
    captions, dropped = read_captions(f"{path}:title")
    assert [c.text for c in captions] == TEXTS and dropped == {}
    assert captions[0].source.startswith(f"{path}:")
    with pytest.raises(DataError, match=r"mine\.\w+:\d: no `caption`; .*name the column as FILE:COLUMN"):
        read_captions(str(path))


def test_a_hugging_face_dataset_is_read_from_a_folder(tmp_path):
    (tmp_path / "data").mkdir()
    pd.DataFrame({"TEXT": TEXTS}).to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    captions, _ = read_captions(f"hf:{tmp_path / 'data'}")
    assert [c.text for c in captions] == TEXTS
    with pytest.raises(DataError, match="split 'nowhere' cannot be loaded"):
        read_captions(f"hf:{tmp_path / 'data'}:nowhere")


def test_captions_are_cleaned_and_what_is_unusable_is_counted(tmp_path):
    rows = [" A <b>red</b>\tboat &amp; a\u200b dog \n", "a red boat, & a dog!", "x", "see https://example.com now", "w " * 300]
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps({"caption": r}) + "\n" for r in rows))
    captions, dropped = read_captions(str(path))
    assert [c.text for c in captions] == ["A red boat & a dog"]
    assert dropped == {"caption repeated": 1, "caption too short": 1, "caption holds a link": 1, "caption too long": 1}
    assert clean("a\x00b\u202ec") == "abc"


def test_of_one_pictures_captions_the_first_is_taken(tmp_path):
    rows = [("a red boat", "u/1"), ("the red boat", "u/1"), ("a red boat!", "u/2"), ("a blue boat", "u/2"), ("a green boat", None)]
    (tmp_path / "laion.jsonl").write_text("".join(json.dumps({"TEXT": t, "URL": u}) + "\n" for t, u in rows))
    captions, dropped = read_captions(str(tmp_path / "laion.jsonl"))
    assert [c.text for c in captions] == ["a red boat", "a blue boat", "a green boat"]
    assert dropped == {"picture repeated": 1, "caption repeated": 1}


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(DataError, match="no such caption file"):
        read_captions(str(tmp_path / "none.jsonl"))
    with pytest.raises(DataError, match="cannot tell what this holds"):
        read_captions("captions.xlsx")
    path = tmp_path / "c.parquet"
    path.write_bytes(b"PAR1 nonsense")
    with pytest.raises(DataError, match=r"c\.parquet: cannot be read as Parquet"):
        read_captions(str(path))
    path = tmp_path / "c.jsonl"
    path.write_bytes(b'{"caption": "fine one"}\n{"caption": "\xff"}\n')
    with pytest.raises(DataError, match=r"c\.jsonl:2: not UTF-8"):
        read_captions(str(path))


def test_no_more_is_read_than_is_wanted_and_empty_cells_of_a_hub_dataset_are_counted(tmp_path):
    texts = ["a red boat", None, "", "a blue boat", *(f"boat {n}" for n in range(50))]
    pd.DataFrame({"caption": texts}).to_parquet(tmp_path / "train.parquet")
    captions, dropped = read_captions(f"hf:{tmp_path}", most=3)
    assert [c.text for c in captions] == ["a red boat", "a blue boat", "boat 0"] and dropped == {"caption too short": 2}
    with pytest.raises(DataError, match=r"train\.parquet:2: no `caption`"):  # a file of one's own can be mended
        read_captions(str(tmp_path / "train.parquet"))
