import json
import re
import shutil

import pyarrow as pa
import pytest

from ip2p.dataset.captions import repetition_key
from ip2p.dataset.validate import benchmark_keys, run
from ip2p.errors import ValidationFailedError
from ip2p.params import TypeThresholds
from ip2p.records import EXAMPLES, triplet_of
from ip2p.store import read_shards, write_shard

_TEXTS = ("original_prompt", "edit_prompt", "edited_prompt")


def test_a_sound_dataset_passes_and_leaves_docs(tiny, made, tmp_path):
    report = run(tiny, dataset=made / "dataset", docs=tmp_path / "docs", marker=tmp_path / "validated.json", work=tmp_path / "work")
    assert report.seen == 22
    assert (tmp_path / "validated.json").exists()
    pages = [p.read_text() for p in (tmp_path / "docs").rglob("*.html")]
    assert len(pages) >= 3
    assert not any(re.search(r"<(script|link|img)[^>]*https?://", page) for page in pages)  # readable offline


def test_a_broken_dataset_fails_and_names_the_rows(tiny, made, tmp_path):
    dataset = tmp_path / "dataset"
    shutil.copytree(made / "dataset", dataset)
    path = min(dataset.glob("train-*.parquet"))
    rows = read_shards(dataset, path.stem).to_pylist()
    rows[0]["original_image"]["bytes"] = rows[0]["original_image"]["bytes"][:200]  # truncated picture
    rows[1]["edit_prompt"] = "   "
    rows[2]["edited_prompt"] = rows[2]["original_prompt"]
    write_shard(path, pa.Table.from_pylist(rows, schema=EXAMPLES), "spoilt")
    with pytest.raises(ValidationFailedError) as error:
        run(tiny, dataset=dataset, docs=tmp_path / "docs", marker=tmp_path / "validated.json", work=tmp_path / "work")
    text = str(error.value)
    for row, column in ((0, "width"), (1, "edit_prompt"), (2, "prompts_differ")):
        assert column in text
        assert rows[row]["pair_id"] in text
    assert not (tmp_path / "validated.json").exists()
    assert (tmp_path / "docs" / "index.html").exists()


def validate(tiny, made, tmp_path, *, filter=None, **section):
    update = {"validate_": tiny.validate_.model_copy(update=section)} | ({"filter": filter} if filter else {})
    params = tiny.model_copy(update=update)
    return run(params, dataset=made / "dataset", docs=tmp_path / "docs", marker=tmp_path / "validated.json", work=tmp_path / "work")


def test_a_caption_of_a_benchmark_in_the_dataset_is_leakage(tiny, made, tmp_path):
    row = read_shards(made / "dataset", "train-").to_pylist()[0]
    path = tmp_path / "benchmark.jsonl"
    path.write_text(json.dumps({"caption": row["original_prompt"].upper() + "!"}))
    with pytest.raises(ValidationFailedError, match=f"leaked: .*{row['pair_id']}"):
        validate(tiny, made, tmp_path, benchmarks=(str(path),))


def test_a_type_that_grew_since_the_last_dataset_is_drift(tiny, made, tmp_path):
    assert validate(tiny, made, tmp_path, max_drift=0.3).extra["drift"] == 0
    (tmp_path / "work" / "last.json").write_text('{"style": 1.0}')
    with pytest.raises(ValidationFailedError, match="drift: "):
        validate(tiny, made, tmp_path, max_drift=0.3)
    assert json.loads((tmp_path / "work" / "last.json").read_text()) == {"style": 1.0}


def test_thresholds_are_promises_those_of_an_edit_type_too(tiny, made, tmp_path):
    rows = read_shards(made / "dataset", "train-").to_pylist()
    row = min((r for r in rows if r["edit_type"] == "style"), key=lambda r: r["sim_direction"])
    own = TypeThresholds(direction=min(1.0, row["sim_direction"] + 0.01))
    thresholds = tiny.filter.model_copy(update={"by_type": {"style": own}})
    with pytest.raises(ValidationFailedError, match=f"spare_sim_direction: .*{row['pair_id']}"):
        validate(tiny, made, tmp_path, filter=thresholds)
    validate(tiny, made, tmp_path, filter=thresholds.model_copy(update={"by_type": {"time": TypeThresholds(direction=-1)}}))


def test_an_instruction_too_long_is_named(tiny, made, tmp_path):
    with pytest.raises(ValidationFailedError, match="edit_prompt: "):
        validate(tiny, made, tmp_path, max_instruction=5)


def test_examples_to_train_on_are_counted_and_thresholds_hold_only_where_clip_filters(tiny, made, tmp_path):
    train = len(read_shards(made / "dataset", "train-", columns=["pair_id"]))
    assert train < len(read_shards(made / "dataset", columns=["pair_id"]))
    validate(tiny, made, tmp_path, min_pairs=train)
    with pytest.raises(ValidationFailedError, match=rf"{train} pairs to train on, validate.min_pairs wants {train + 1}"):
        validate(tiny, made, tmp_path, min_pairs=train + 1)
    strict = tiny.filter.model_copy(update={"direction": 0.999})
    with pytest.raises(ValidationFailedError, match="spare_sim_direction"):
        validate(tiny, made, tmp_path, filter=strict)
    validate(tiny, made, tmp_path, filter=strict.model_copy(update={"chain": tuple(c for c in strict.chain if c != "clip")}))


def test_what_belongs_together_lies_in_one_split(tiny, made, tmp_path):
    dataset = tmp_path / "dataset"
    shutil.copytree(made / "dataset", dataset)
    one, two = read_shards(dataset, "train-").to_pylist()[:2]
    texts = {n: one[n] for n in ("original_prompt", "edited_prompt")} | {"edit_prompt": "do something else"}
    caption = two | texts | {"pair_id": "same-caption", "triplet_id": triplet_of(*(texts[n] for n in _TEXTS))}
    caption["original_image"] = two["edited_image"]
    picture = one | {"pair_id": "same-picture", "triplet_id": "a-session", "original_prompt": "a", "edited_prompt": "b"}
    rows = [row | {"split": "test"} for row in (caption, picture)]
    write_shard(dataset / "test-00099.parquet", pa.Table.from_pylist(rows, schema=EXAMPLES), "leaks")
    with pytest.raises(ValidationFailedError) as error:
        run(tiny, dataset=dataset, docs=tmp_path / "docs", marker=tmp_path / "validated.json", work=tmp_path / "work")
    broken = {told.split(":")[0]: told for told in str(error.value).split("; ") if "splits_of" in told}
    assert broken.keys() == {"splits_of_caption", "splits_of_picture"}
    assert "same-caption" in broken["splits_of_caption"] and "same-picture" not in broken["splits_of_caption"]
    assert "same-picture" in broken["splits_of_picture"] and "one triplet_id" in broken["splits_of_picture"]


def test_all_captions_of_a_benchmark_count(tmp_path):
    path = tmp_path / "benchmark.jsonl"
    captions = ["a small boat", "A small boat floats at dawn", "see www.boats.example", "boat " * 100]
    path.write_text("".join(json.dumps({"caption": c, "url": "http://x/1.jpg"}) + "\n" for c in captions))
    assert benchmark_keys((str(path),)) == {repetition_key(c) for c in captions}
