import json

import pyarrow.parquet as pq
import pytest
import torch

from ip2p.errors import ParamsError
from ip2p.model import ablate, train
from ip2p.pictures import from_bytes
from ip2p.store import digest
from ip2p.world.truth import truth_of


@pytest.fixture
def setup(tiny, made, tmp_path, track_in):
    small = {"evaluate": tiny.evaluate.model_copy(update={"count": 3, "steps": 2})}
    params = tiny.model_copy(update={"track": track_in(tmp_path), **small})
    sources = {"pairs": made / "pairs", "dataset": made / "dataset", "triplets": made / "triplets"}
    return params, sources | {"out": tmp_path / "ablation", "work": tmp_path / "work"}


def test_editors_are_trained_on_each_variant_and_compared_on_the_same_edits(setup, monkeypatch):
    params, paths = setup
    variants = ("filtered", "random")
    lines = ablate.run(params, variants=variants, steps=2, **paths)
    assert len(lines) == 4
    report = json.loads((paths["out"] / "report.json").read_text())
    assert report["pairs"]["random"] == report["pairs"]["filtered"]
    assert report["steps"] == 2
    assert set(report["paired"]) == {"random"}
    assert (paths["out"] / "curve.png").stat().st_size > 1000
    # again: nothing is trained or measured anew
    monkeypatch.setattr(train.Trainer, "advance", lambda self: pytest.fail("trained again"))
    assert ablate.run(params, variants=variants, steps=2, **paths) == lines


def test_a_tenth_is_a_tenth_of_the_triplets(setup, tmp_path):
    params, paths = setup
    ids = {t for p in paths["dataset"].glob("train-*") for t in pq.read_table(p, columns=["triplet_id"])["triplet_id"].to_pylist()}
    ablate._make("tenth", params, pairs=paths["pairs"], dataset=paths["dataset"], out=tmp_path / "tenth")
    few = {t for p in (tmp_path / "tenth").glob("train-*") for t in pq.read_table(p, columns=["triplet_id"])["triplet_id"].to_pylist()}
    assert few < ids and len(few) == max(1, len(ids) // 10)


def test_an_editor_that_was_trained_on_the_dataset_is_not_trained_again(setup, tmp_path, monkeypatch):
    params, paths = setup
    marker, editor = tmp_path / "validated.json", tmp_path / "editor"
    marker.write_text(json.dumps({"dataset": digest(paths["dataset"])}))
    train.run(params, dataset=paths["dataset"], marker=marker, out=editor, work=tmp_path / "train")
    monkeypatch.setattr(train.Trainer, "advance", lambda self: pytest.fail("trained again"))
    assert len(ablate.run(params, variants=("filtered",), trained=editor, **paths)) == 3
    for other, steps in ((params, 2), (params.model_copy(update={"seed": 1}), None)):  # with other parameters it is another editor
        with pytest.raises(pytest.fail.Exception):
            ablate.run(other, variants=("filtered",), trained=editor, steps=steps, **paths)


def test_the_truth_variant_holds_the_true_pictures(setup, tmp_path):
    params, paths = setup
    count = ablate._make("truth", params, pairs=paths["pairs"], dataset=paths["dataset"], out=tmp_path / "truth")
    rows = [r for p in sorted((tmp_path / "truth").glob("train-*")) for r in pq.read_table(p).to_pylist()]
    assert len(rows) == count
    row = rows[0]
    truth = truth_of(row["original_prompt"], row["edit_prompt"], seed=int(row["triplet_id"][:7], 16), size=96)
    assert torch.equal(from_bytes(row["edited_image"]["bytes"], where="row"), truth.target_CHW)
    larger = params.model_copy(update={"models": params.models.model_copy(update={"teacher": "world-128"})})
    ablate._make("truth", larger, pairs=paths["pairs"], dataset=paths["dataset"], out=tmp_path / "larger")
    row = pq.read_table(min((tmp_path / "larger").glob("train-*"))).to_pylist()[0]
    assert from_bytes(row["edited_image"]["bytes"], where="row").shape == (3, 128, 128)


def test_an_unknown_variant_is_refused(setup):
    params, paths = setup
    with pytest.raises(ParamsError, match="half unknown; choose among filtered"):
        ablate.run(params, variants=["half"], **paths)


def test_going_on_from_an_editor_is_refused_for_it_hides_what_the_data_are_worth(setup):
    params, paths = setup
    started = params.model_copy(update={"train": params.train.model_copy(update={"start": "world"})})
    with pytest.raises(ParamsError, match=r"train\.start: .* give --params params/teacher\.yaml"):
        ablate.run(started, variants=("filtered",), **paths)


def test_where_nobody_knows_the_truth_the_variant_is_refused_before_anything_is_trained(setup, tmp_path, monkeypatch):
    params, paths = setup
    for path in sorted(paths["dataset"].glob("train-*")):
        rows = pq.read_table(path)
        rows = rows.set_column(rows.schema.get_field_index("original_prompt"), "original_prompt", [["a photo of a bear"] * len(rows)])
        (tmp_path / "photos").mkdir(exist_ok=True)
        pq.write_table(rows, tmp_path / "photos" / path.name)
    monkeypatch.setattr(train.Trainer, "advance", lambda self: pytest.fail("trained"))
    with pytest.raises(ParamsError, match=r"--variants: nobody knows the truth .* give --variants filtered random tenth"):
        ablate.run(params, variants=ablate.VARIANTS, **{**paths, "dataset": tmp_path / "photos"})
