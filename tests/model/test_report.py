import json

import pytest
from PIL import Image

from ip2p.model import report

STAGES = ("triplets", "pairs", "filter", "validate", "train", "evaluate", "register")


@pytest.fixture
def finished(tmp_path):
    """What a run leaves behind, with hostile texts in it."""
    told = {"seen": 2, "kept": 1, "seconds": 1.0, "dropped_by_reason": {"<i>": 1}, "kept_by_edit_type": {"<b>type": 1}, "extra": {}}
    for stage in STAGES:
        (tmp_path / f"{stage}.json").write_text(json.dumps(told))
    registered = {"model": "m", "version": "1", "promoted": "True", "gate": "<u>", "code": "c"}  # of unknown data
    (tmp_path / "register.json").write_text(json.dumps(told | {"extra": registered}))
    evaluation = tmp_path / "evaluation"
    means = {"success": 0.5, "done": 0.5, "stayed": 1.0, "l1": 0.1}
    differences = {n: {"difference": 0.1, "low": 0.0, "high": 0.2} for n in means}
    types = {"<b>type": {"count": 2, "done": 0.5, "done_low": 0.0, "done_high": 1.0, "stayed": 1.0}}
    spans = {n: [0.4, 0.6] for n in means}
    ours = means | {"intervals": spans, "by_type": types}
    result = {
        "count": 2,
        "protocol": "legacy",
        "judged_by": "success",
        "headline": ours,
        "baselines": {"source": means | {"done": 0.0, "success": 0.0}, "previous": means},
        "previous": "<p",
        "paired": {"source": differences},
        "truth": means | {"success": 0.987},
        "benchmarks": {"<em>": {"count": 2, "masked": True, "editor": ours, "source": means}},
        "judge": {"judge mean": "0.700 [0.60, 0.80]", "judge models": "<s>"},
    }
    (evaluation / "examples").mkdir(parents=True)
    (evaluation / "report.json").write_text(json.dumps(result))
    (evaluation / "examples.json").write_text(json.dumps([{"instruction": "<script>", "edit_type": "<b>type"}]))
    (evaluation / "extremes.json").write_text(json.dumps({"best": []}))
    for name in ("curve.png", "types.png", "examples/00-source.png", "examples/00-editor.png"):
        Image.new("RGB", (8, 8)).save(evaluation / name)
    return tmp_path


def test_the_page_tells_how_to_read_it_and_text_stays_text(finished, tiny):
    report.run(tiny, reports=finished, evaluation=finished / "evaluation", out=finished / "report.html")
    page = (finished / "report.html").read_text()
    assert "98.7% of the true edits" in page and "0.0% of the untouched sources" in page
    assert "protocol legacy" in page
    assert "0.700 [0.60, 0.80]" in page
    assert "previous: &lt;p" in page
    assert "2 edits</h3>" in page and "mean change beyond the benchmark's masks" in page
    for hostile in ("<em>", "<script>", "<i>", "<u>", "<s>", "<b>type"):
        assert hostile not in page
    assert page.count("data:image/png;base64,") == 4
