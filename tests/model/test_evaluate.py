import json
import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image

from ip2p.dataset.exchange.move import export_dataset
from ip2p.dataset.llm.journal import Journal
from ip2p.errors import UserError
from ip2p.model import evaluate
from ip2p.model.bootstrap import bootstrap
from ip2p.model.examples import ranked
from ip2p.model.heldout import HeldOut, held_out, of_world
from ip2p.model.measure import Meter, Point, judged_by, measure, paired
from ip2p.model.sdedit import sdedit
from ip2p.model.seen import NONE, read_seen
from ip2p.models import EMBEDDED
from ip2p.params import EvaluateJudgeParams, EvaluateParams
from ip2p.world.truth import truth_of
from tests.dataset.llm.endpoint import endpoint


@pytest.fixture(scope="module")
def held(tiny, made):
    return held_out(tiny, triplets=made / "triplets", dataset=made / "dataset", size=96)


@pytest.fixture(scope="module")
def meter(clip):
    return Meter(clip)


def measured(held, meter, edit, *, batch):
    return Point("system", {}, measure(held, meter, edit, batch=batch))


def test_the_truth_scores_perfectly_and_the_source_does_nothing(held, meter):
    truth = measured(held, meter, held.targets, batch=4)
    source = measured(held, meter, held.sources, batch=4)
    assert (truth.mean("done"), truth.mean("stayed"), truth.mean("l1"), truth.mean("l2")) == (1.0, 1.0, 0.0, 0.0)
    assert (source.mean("done"), source.mean("stayed"), source.mean("outside"), source.mean("shift")) == (0.0, 1.0, 0.0, 0.0)
    assert source.mean("image_similarity") == pytest.approx(1.0, abs=1e-4)
    assert truth.mean("direction_similarity") > source.mean("direction_similarity")
    assert truth.mean("text_similarity") > source.mean("text_similarity")
    assert judged_by(truth.rows) == "success"


def test_the_batch_makes_no_difference(held, meter):
    one, other = (measured(held, meter, held.targets, batch=b) for b in (3, 8))
    assert one.rows["l1"] == other.rows["l1"]
    assert one.rows["direction_similarity"] == pytest.approx(other.rows["direction_similarity"], abs=1e-4)


def test_held_out_captions_were_not_trained_on(held, made):
    from ip2p.dataset.read import read_triplets

    assert not {e.caption for e in held.edits} & {t.caption.text for t in read_triplets(made / "triplets")}


def test_the_test_split_is_held_out_once_a_triplet_and_has_no_single_right_answer(tiny, made, clip):
    section = tiny.evaluate.model_copy(update={"held_out": "dataset"})
    of_test = held_out(tiny.model_copy(update={"evaluate": section}), triplets=made / "triplets", dataset=made / "dataset", size=96)
    assert of_test.edits
    assert len({e.id for e in of_test.edits}) == len(of_test.edits)
    rows = measured(of_test, Meter(clip), of_test.sources, batch=4).rows
    assert {"l1", "direction_similarity"} <= rows.keys()
    assert "success" not in rows
    assert judged_by(rows) == "direction_similarity"


def test_sdedit_changes_more_with_more_noise(held, teacher):
    sources = held.sources(slice(0, 3))
    captions, seeds = [e.edited_caption for e in held.edits[:3]], [1, 2, 3]
    weak, strong = (sdedit(teacher, sources, captions, seeds, strength=s, steps=8, guidance=3.0) for s in (0.2, 0.95))
    assert (weak - sources).abs().mean() < (strong - sources).abs().mean()


def test_the_interval_holds_the_mean():
    low, high = bootstrap([0.0, 1.0] * 40)
    assert 0.35 < low < 0.5 < high < 0.65


def test_sdedit_is_compared_where_it_keeps_as_much_of_the_picture():
    def point(system, direction, image):
        return Point(system, {}, {"direction_similarity": [direction], "image_similarity": [image]})

    attempts = [point("sdedit", 0.1, 0.9), point("sdedit", 0.15, 0.85), point("sdedit", 0.3, 0.5)]
    points = [point("source", 0.0, 1.0), *attempts]
    assert evaluate.best_baselines(points, point("editor", 0.2, 0.8))["sdedit"] is attempts[1]
    assert evaluate.best_baselines(points, point("editor", 0.2, 0.95))["sdedit"] is attempts[0]


def test_no_interval_has_no_width_where_all_edits_succeed_or_none():
    summary = Point("e", {}, {"done": [1.0] * 24, "stayed": [0.0] * 24, "l1": [0.1] * 24}).summary()
    assert summary["intervals"]["done"] == (pytest.approx(0.862, abs=1e-3), 1.0)
    assert summary["intervals"]["stayed"] == (0.0, pytest.approx(0.138, abs=1e-3))
    assert summary["intervals"]["l1"] == (pytest.approx(0.1), pytest.approx(0.1))


def test_paired_differences_are_surer_than_intervals_apart():
    hard = torch.linspace(0, 1, 60).tolist()
    ours, theirs = [x + 0.05 for x in hard], hard
    told = paired({"success": ours}, {"success": theirs, "else": hard})
    assert list(told) == ["success"]
    assert told["success"]["low"] == pytest.approx(0.05)
    assert bootstrap(ours)[0] < bootstrap(theirs)[1]


def test_edit_types_are_reported_apart(held, meter):
    types = [e.edit_type for e in held.edits]
    summary = measured(held, meter, held.sources, batch=4).summary(types)
    assert set(summary["by_type"]) == set(types)
    assert all(t["done"] == 0.0 and t["done_low"] == 0.0 for t in summary["by_type"].values())


def test_the_legacy_protocol_gives_other_figures(held, clip):
    right, wrong = (measured(held, Meter(clip, legacy=x), held.targets, batch=4) for x in (False, True))
    assert abs(right.mean("image_similarity") - wrong.mean("image_similarity")) > 1e-3


def test_the_best_and_the_worst_are_by_success_then_by_distance():
    point = Point("e", {}, {"done": [1, 1, 0, 0, 1], "stayed": [1, 0, 0, 1, 1], "l1": [0.2, 0.1, 0.3, 0.1, 0.1]})
    assert ranked(point, 2) == {"best": [4, 0], "median": [0, 1], "worst": [3, 2]}


@pytest.fixture(scope="module")
def evaluated(tiny, made, editor_folder, tmp_path_factory, track_in):
    root = tmp_path_factory.mktemp("evaluated")
    small = tiny.evaluate.model_copy(update={"count": 5, "steps": 2, "batch": 3, "previous": str(editor_folder)})
    params = tiny.model_copy(update={"evaluate": small, "track": track_in(root)})
    places = {"editor": editor_folder, "triplets": made / "triplets", "dataset": made / "dataset"}
    paths = places | {"out": root / "evaluation", "work": root / "work"}
    evaluate.run(params, **paths)
    return params, paths


def test_the_report_pairs_the_editor_with_every_baseline(evaluated, editor_folder):
    _, paths = evaluated
    report = json.loads((paths["out"] / "report.json").read_text())
    assert set(report["paired"]) == set(report["baselines"]) == {"source", "sdedit", "previous"}
    assert all(d["difference"] == 0 for d in report["paired"]["previous"].values())  # the same editor
    assert report["previous"] == editor_folder.name
    assert len(report["rows"]["success"]) == report["count"] == 5
    for name in ("grid.png", "extremes.png", "curve.png", "types.png"):
        assert Image.open(paths["out"] / name).width > 90


def test_what_the_editor_compared_with_was_trained_on_counts_as_seen(tiny, tmp_path):
    for name, caption in (("editor", "a red fox"), ("before", "a blue fox")):
        (tmp_path / name).mkdir()
        NONE.with_captions([caption]).write(tmp_path / name)
    section = tiny.evaluate.model_copy(update={"previous": str(tmp_path / "before")})
    seen = evaluate.seen_in(tmp_path / "editor", section)
    assert "a red fox" in seen and "a blue fox" in seen
    assert len(evaluate.seen_in(tmp_path / "editor", tiny.evaluate)) == 1
    shipped = evaluate.seen_in(tmp_path / "editor", section.model_copy(update={"previous": "world"}))
    assert len(shipped) == len(read_seen(EMBEDDED / "editor")) + 1


def test_an_evaluation_that_was_killed_measures_no_point_again(evaluated, monkeypatch, tmp_path):
    params, paths = evaluated
    before = (paths["out"] / "report.json").read_bytes()
    monkeypatch.setattr(evaluate, "measure", lambda *a, **k: pytest.fail("measured again"))
    evaluate.run(params, **{**paths, "out": tmp_path / "again"})
    assert (tmp_path / "again" / "report.json").read_bytes() == before


def test_a_benchmark_is_measured_beside_the_held_out_edits(evaluated, made, tmp_path):
    params, paths = evaluated
    export_dataset(made / "dataset", "hf", tmp_path / "hf")
    section = params.evaluate.model_copy(update={"benchmarks": {"hf": str(tmp_path / "hf")}})
    evaluate.run(params.model_copy(update={"evaluate": section}), **{**paths, "out": tmp_path / "out"})
    (told,) = json.loads((tmp_path / "out/report.json").read_text())["benchmarks"].values()
    assert 0 < told["count"] <= 5 and not told["masked"]
    assert told["source"]["change"] == 0 < told["editor"]["change"] == told["paired"]["change"]["difference"]


def test_other_scales_of_the_sweep_can_become_the_headlines(evaluated, tmp_path):
    params, paths = evaluated
    kept = []
    swept = params.evaluate.model_copy(update={"image_guidance_sweep": (1.2, 1.5), "sdedit_strengths": (), "previous": None})
    for place, scale in enumerate((1.5, 1.2)):
        section = swept.model_copy(update={"image_guidance": scale})
        evaluate.run(params.model_copy(update={"evaluate": section}), **{**paths, "out": tmp_path / str(place)})
        assert (tmp_path / str(place) / "extremes.png").exists()
        kept.append({p.parent for p in paths["work"].glob("*/pictures")})
    assert len(kept[1]) == 1 and kept[0].isdisjoint(kept[1])  # numbers stay, pictures of earlier evaluations go
    assert all((folder / "rows.json").exists() for folder in kept[0])


def test_an_evaluation_leaves_nothing_of_the_one_before(evaluated, tmp_path):
    params, paths = evaluated
    out = tmp_path / "out"
    for name in ("examples/00-sdedit.png", "extremes/best-9-editor.png", "judgements.json"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(b"of another")
    section = params.evaluate.model_copy(update={"sdedit_strengths": (), "previous": None})
    evaluate.run(params.model_copy(update={"evaluate": section}), **{**paths, "out": out})
    assert not [p for p in out.rglob("*") if p.is_file() and p.read_bytes() == b"of another"]
    assert (out / "examples" / "00-editor.png").exists()


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"previous": "./nowhere"}, r"evaluate\.previous: nowhere is no editor's folder"),
        ({"benchmarks": {"magicbrush": "./nowhere"}}, r"evaluate\.benchmarks: no folder nowhere"),
        ({"benchmarks": {"pie_bench": "."}}, r"mapping_file\.json: missing"),
        ({"judge": EvaluateJudgeParams(key_env="NOPE_KEY")}, r"^evaluate\.judge\.key_env: NOPE_KEY is not set"),
    ],
)
def test_what_is_wanted_at_the_end_is_missed_before_anything_is_sampled(evaluated, tmp_path, section, told):
    params, paths = evaluated
    changed = params.model_copy(update={"evaluate": params.evaluate.model_copy(update=section)})
    with pytest.raises(UserError, match=told):
        evaluate.run(changed, **{**paths, "work": tmp_path / "work", "out": tmp_path / "out"})
    assert not list((tmp_path / "work").rglob("rows.json"))


@pytest.mark.parametrize("section", [{"guidance_interval": [0.8, 0.2]}, {"sdedit_strengths": [0.0]}])
def test_what_would_guide_or_change_nothing_is_refused(section):
    with pytest.raises(ValueError, match=next(iter(section))):
        EvaluateParams.model_validate(section)


def test_dino_reads_a_local_vision_transformer(held, clip, tmp_path):
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    from ip2p.model.measure import load_dino

    config = ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8)
    ViTModel(config).save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    meter = replace(Meter(clip), dino=load_dino(str(tmp_path), device=torch.device("cpu")))
    rows = measured(held, meter, held.sources, batch=4).rows
    assert rows["dino_similarity"] == pytest.approx([1.0] * len(held.edits), abs=1e-4)


def test_the_world_is_rendered_without_loss(made):
    few = of_world(count=3, stream="x", triplets=made / "triplets", size=96)
    assert isinstance(few, HeldOut)
    for edit, source, target in zip(few.edits, few.sources(slice(None)), few.targets(slice(None)), strict=True):
        truth = truth_of(edit.caption, edit.instruction, seed=edit.seed, size=96)
        assert torch.equal(truth.source_CHW, source) and torch.equal(truth.target_CHW, target)


def test_a_judge_is_asked_once_about_each_edit_and_its_raw_replies_are_kept(evaluated, made, tmp_path):
    params, paths = evaluated
    marks = json.dumps({"why": "I see", "followed": 9, "kept": 4, "quality": 9})
    with endpoint(reply=lambda asked: marks, faults=0.2) as server:
        judge = EvaluateJudgeParams(base_url=server.url, model="eye-1", backoff=0.01, retries=12, timeout=1.5)
        judged = params.model_copy(update={"evaluate": params.evaluate.model_copy(update={"judge": judge})})
        for _ in range(2):
            evaluate.run(judged, **{**paths, "out": tmp_path / "judged"})
        assert len(server.paid) == 5
        with Journal(paths["work"] / "judge.jsonl") as kept:
            assert server.paid_again <= server.stalled(kept.lost)
    report = json.loads((tmp_path / "judged" / "report.json").read_text())
    assert report["judge"]["judge mean"].startswith("0.600")
    replies = json.loads((tmp_path / "judged" / "judgements.json").read_text())
    assert [r["reply"] for r in replies] == [marks] * 5


def test_other_pictures_are_other_edits(held):
    assert len({e.seed for e in held.edits}) == len(held.edits) > 1
    changed = replace(held.edits[0], source=held.edits[1].source)
    assert replace(held, edits=(changed, *held.edits[1:])).mark != held.mark == replace(held).mark


def test_other_models_measure_otherwise(tiny, tmp_path):
    bench = evaluate.open_bench(tiny, tmp_path)
    legacy = tiny.model_copy(update={"evaluate": tiny.evaluate.model_copy(update={"protocol": "legacy"})})
    assert bench.mark == replace(bench).mark != replace(bench, params=legacy).mark
    shutil.copytree(EMBEDDED / "clip", tmp_path / "clip")
    (tmp_path / "clip" / "note").write_text("another")
    clip = tiny.model_copy(update={"models": tiny.models.model_copy(update={"clip": str(tmp_path / "clip")})})
    assert replace(bench, params=clip).mark != bench.mark
