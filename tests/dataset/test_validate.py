import re
import shutil

import pyarrow as pa
import pytest

from ip2p.dataset.validate import run
from ip2p.errors import ValidationFailedError
from ip2p.records import EXAMPLES
from ip2p.store import read_shards, write_shard


def test_a_sound_dataset_passes_and_leaves_docs(tiny, made, tmp_path):
    report = run(tiny, dataset=made / "dataset", docs=tmp_path / "docs", marker=tmp_path / "validated.json")
    assert report.seen == 22
    assert (tmp_path / "validated.json").exists()
    pages = [p.read_text() for p in (tmp_path / "docs").rglob("*.html")]
    assert len(pages) >= 3
    assert not any(re.search(r"<(script|link|img)[^>]*https?://", page) for page in pages)  # readable offline


def test_a_broken_dataset_fails_and_names_the_rows(tiny, made, tmp_path):
    dataset = tmp_path / "dataset"
    shutil.copytree(made / "dataset", dataset)
    path = next(dataset.glob("train-*.parquet"))
    rows = read_shards(dataset, path.stem).to_pylist()
    rows[0]["original_image"]["bytes"] = rows[0]["original_image"]["bytes"][:200]  # truncated picture
    rows[1]["edit_prompt"] = ""
    rows[2]["edited_prompt"] = rows[2]["original_prompt"]
    write_shard(path, pa.Table.from_pylist(rows, schema=EXAMPLES), "spoilt")
    with pytest.raises(ValidationFailedError) as error:
        run(tiny, dataset=dataset, docs=tmp_path / "docs", marker=tmp_path / "validated.json")
    text = str(error.value)
    for row, column in ((0, "width"), (1, "edit_prompt"), (2, "prompts_differ")):
        assert column in text
        assert rows[row]["pair_id"] in text
    assert not (tmp_path / "validated.json").exists()
    assert (tmp_path / "docs" / "index.html").exists()
