import json
from collections import Counter

import pytest

from ip2p.dataset.edit_types import TAXONOMY
from ip2p.dataset.llm.client import EndpointError
from ip2p.dataset.llm.finetune import finetune, read_examples, training_file
from ip2p.dataset.llm.prompt import parse
from ip2p.errors import DataError
from ip2p.params import LlmParams
from tests.conftest import ROOT
from tests.dataset.llm.endpoint import endpoint

SEED = ROOT / "captions" / "seed.jsonl"


def test_the_seed_set_is_diverse_and_reads_back():
    examples = read_examples(SEED)
    counts = Counter(e.edit_type for e in examples)
    assert len(examples) >= 100 and set(counts) == set(TAXONOMY) and min(counts.values()) >= 5
    for line in training_file(examples, completion=False).splitlines():
        assert parse(json.loads(line)["messages"][-1]["content"], "add", "json_schema").edit_type in TAXONOMY
    row = json.loads(training_file(examples, completion=True).splitlines()[0])
    assert row["prompt"].endswith("\n##\n")
    assert parse(row["completion"], "replace", "completion").instruction == examples[0].instruction


def test_a_job_is_uploaded_followed_and_recorded_and_a_stopped_command_goes_on_with_it(tmp_path):
    said = []
    with endpoint() as server:
        section = LlmParams(base_url=server.url)
        assert finetune(section, SEED, work=tmp_path, base="toy", say=said.append, wait=0.01) == "toy:ip2p"
        assert len(server.jobs) == 1 and server.jobs["job-0"]["training_file"] == "file-0"
        assert server.files["file-0"].count(b"\n") == len(read_examples(SEED))
        assert finetune(section, SEED, work=tmp_path, base="toy", say=said.append, wait=0.01) == "toy:ip2p"
        assert len(server.jobs) == 1
    record = json.loads(next(tmp_path.glob("finetune-*.json")).read_text())
    assert record["model"] == "toy:ip2p" and record["job"] == "job-0"
    assert any("going on with job" in s for s in said)


def test_a_page_instead_of_the_api_is_told(tmp_path):
    with endpoint() as server:
        server.page = True
        with pytest.raises(EndpointError, match=r"http://.*/v1 answered with something else than the fine-tuning API"):
            finetune(LlmParams(base_url=server.url), SEED, work=tmp_path, base="toy")


def test_a_crash_between_making_a_job_and_recording_it_makes_no_second_one(tmp_path):
    with endpoint() as server:
        section = LlmParams(base_url=server.url)
        finetune(section, SEED, work=tmp_path, base="toy", say=lambda _: None, wait=0.01)
        record = next(tmp_path.glob("finetune-*.json"))
        record.write_text(json.dumps({"file": "file-0"}))
        assert finetune(section, SEED, work=tmp_path, base="toy", say=lambda _: None, wait=0.01) == "toy:ip2p"
        assert len(server.jobs) == len(server.files) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nonsense", r"mine\.jsonl:11: not valid JSON"),
        ('{"caption": "a", "edit": "b", "edit_type": "add"}', r"mine\.jsonl:11: no `edited_caption` or `output`"),
        ('{"input": "a cat", "instruction": "b", "output": "A cat.", "edit_type": "add"}', "equals the caption"),
        ('{"input": "a cat", "instruction": "b", "output": "c", "edit_type": "bend"}', "edit_type 'bend' is unknown"),
        ('{"input": "a cat", "instruction": "b", "output": "c", "edit_type": []}', r"edit_type \[\] is unknown"),
        ('["a cat"]', r"mine\.jsonl:11: holds no object"),
        ('{"input": "c0", "instruction": "do 0", "output": "d", "edit_type": "add"}', "same as an earlier line"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    good = [{"caption": f"c{i}", "edit": f"do {i}", "output": f"d{i}", "edit_type": "add"} for i in range(10)]
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(g) + "\n" for g in good) + line)
    with pytest.raises(DataError, match=message):
        read_examples(path)
