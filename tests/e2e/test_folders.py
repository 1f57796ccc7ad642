"""What parameters name and DVC does not see by itself."""

from __future__ import annotations

import json

from flows import folders
from ip2p.params import Params


def named(**sections):
    params = Params.model_validate(sections)
    return {stage: folders.found(params, names) for stage, names in folders.NAMED.items()}


def test_content_is_followed_where_it_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("teacher", "start", "models/editor", "brush", "previous"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "weights").write_text(name)
    (tmp_path / "mine.csv").write_text("text\na red boat")
    sections = {
        "models": {"teacher": "./teacher", "clip": "ViT-L-14-quickgelu:openai"},
        "triplets": {"captions": "mine.csv:text"},
        "train": {"start": "./start"},
        "validate": {"benchmarks": ["mine.csv", "hf:who/what"]},
        "evaluate": {"previous": "models/editor", "benchmarks": {"magicbrush": "./brush"}},
    }
    before = named(**sections)
    told = {stage: set(found) for stage, found in before.items()}
    assert told == {
        "triplets": {"mine.csv"},
        "pairs": {"./teacher"},
        "validate": {"mine.csv"},
        "train": {"./teacher", "./start"},
        "evaluate": {"./teacher", "./brush"},
    }
    (tmp_path / "teacher" / "weights").write_text("finer")
    after = named(**sections)
    assert [stage for stage in before if before[stage] != after[stage]] == ["pairs", "train", "evaluate"]
    assert set().union(*named().values()) == set()  # of the embedded models nothing


def test_each_stage_has_its_file_and_the_same_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["folders"])
    (tmp_path / "params.yaml").write_text("seed: 0\n")
    written = []
    for _ in range(2):
        assert folders.main() == 0
        written.append({p.name: p.read_bytes() for p in (tmp_path / folders.OUT).iterdir()})
    assert written[0] == written[1] and all(json.loads(x) == {} for x in written[0].values())
    assert sorted(written[0]) == sorted(f"{stage}.json" for stage in folders.NAMED)
    (tmp_path / "params.yaml").write_text("")
    assert folders.main() == 2
