import json
import math

import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file

from ip2p.errors import DataError, ParamsError
from ip2p.model import objective, plan, preferences, train
from ip2p.model.data import TrainBatch
from ip2p.params import TrainParams
from ip2p.pictures import from_bytes
from ip2p.store import digest, read_json, read_shards, write_json, write_shard
from tests.grown import grow_unet


@pytest.fixture
def folder(made, tmp_path):
    """Somebody preferred the edit to nothing done, whichever came first; once neither, once pictures are gone, once a part was edited."""
    rows = read_shards(made / "dataset", "train-").slice(0, 6).to_pylist()
    told = []
    for number, row in enumerate(rows):
        edit, source = row["edited_image"]["bytes"], row["original_image"]["bytes"]
        pictures, label = ((edit, source), 1.0) if number % 2 else ((source, edit), 0.0)
        told.append(
            {"jpg_0": pictures[0], "jpg_1": pictures[1], "label_0": label, "caption": row["edit_prompt"], "source": source, "mask": None}
        )
    told[5]["mask"] = b"a mask"
    told[3]["label_0"] = 0.5
    told[4]["jpg_1"] = None
    out = tmp_path / "preferences"
    write_shard(out / "train-00000.parquet", pa.Table.from_pylist(told), "v")
    write_json(out / "dataset.json", {"version": "abc123", "pairs": 6, "votes": 6})
    return out


@pytest.fixture
def setup(tiny, made, folder, tmp_path, track_in):
    marker = tmp_path / "validated.json"
    marker.write_text(json.dumps({"dataset": digest(made / "dataset")}))
    exact = tiny.models.model_copy(update={"dtype": "float32"})
    section = {
        "preferences": f"{folder}@abc",
        "preference_loss": "dpo",
        "preference_batch": 4,
        "lr": 1e-4,
        "ema": 0.0,
        "steps": 3,
        "grid_every": 100,
    }
    params = tiny.model_copy(update={"track": track_in(tmp_path), "models": exact, "train": tiny.train.model_copy(update=section)})
    return params, {"dataset": made / "dataset", "marker": marker, "out": tmp_path / "editor", "work": tmp_path / "work"}


def test_dpo_in_bfloat16_measures_nothing_where_nothing_was_learned(setup):
    params, paths = setup
    models = params.models.model_copy(update={"dtype": "bfloat16"})
    train_ = params.train.model_copy(update={"steps": 1, "lr": 1e-30})
    report = train.run(params.model_copy(update={"models": models, "train": train_}), **paths)
    (progress,) = paths["work"].glob("*/progress.json")
    assert report.stage == "train" and read_json(progress)["preference_loss"] == pytest.approx(math.log(2), abs=1e-4)


def test_dpo_wants_the_prediction_of_its_start(setup):
    params, paths = setup
    other = params.model_copy(update={"train": params.train.model_copy(update={"prediction": "epsilon"})})
    with pytest.raises(ParamsError, match=r"train\.prediction: leave it out, for DPO .* `v_prediction`"):
        train.run(other, **paths)


def weights(out):
    return load_file(out / "unet" / "diffusion_pytorch_model.safetensors")


def halves(batch):
    """The better edits, and the worse."""
    return (TrainBatch(*(t.chunk(2)[i] for t in vars(batch).values())) for i in range(2))


def test_only_what_was_preferred_is_learned_from_and_the_better_is_the_better(folder, teacher, tmp_path):
    known = preferences.load_preferences(folder, teacher, model_digest="t", cache=tmp_path)
    rows = list(preferences._preferred(folder))
    assert len(known) == len(rows) == 3
    for row, source, better, worse in zip(rows, known.source_NCHW, known.better_NCHW, known.worse_NCHW, strict=True):
        picture = preferences.encode_images(teacher, from_bytes(row["better"], where="x")[None])[0][0]
        assert torch.allclose(better.float(), picture * teacher.vae.config.scaling_factor, atol=5e-3)
        assert torch.allclose(worse.float(), source.float() * teacher.vae.config.scaling_factor, atol=5e-3)  # nothing was done there
    part = preferences.draw_preferences(known, batch=8, seed=0, step=3, first=2, count=2)
    whole = preferences.draw_preferences(known, batch=8, seed=0, step=3, first=0, count=8)
    assert torch.equal(part.noise_BCHW[:2], whole.noise_BCHW[2:4]) and torch.equal(part.clean_BCHW[:2], whole.clean_BCHW[2:4])


def test_the_loss_is_that_of_the_paper(folder, teacher, tmp_path):
    known = preferences.load_preferences(folder, teacher, model_digest="t", cache=tmp_path)
    drawn = preferences.draw_preferences(known, batch=4, seed=0, step=0, first=0, count=4)
    start, other = grow_unet(teacher.unet).eval(), grow_unet(teacher.unet).eval()
    same = objective.dpo_loss(start, start, drawn, teacher, beta=2500.0)
    assert same.item() == pytest.approx(math.log(2), abs=1e-6)
    with torch.no_grad():
        other.conv_out.weight *= 1.05
    better, worse = ([objective._errors(unet, half, teacher) for unet in (start, other)] for half in halves(drawn))
    (better_0, better_1), (worse_0, worse_1) = better, worse
    wanted = -torch.log(torch.sigmoid(-100 / 2 * ((better_1 - better_0) - (worse_1 - worse_0)))).mean()
    assert torch.allclose(objective.dpo_loss(other, start, drawn, teacher, beta=100.0), wanted, rtol=1e-3)


@pytest.mark.parametrize(("loss", "most"), [("better", 1.0), ("dpo", 0.9)])
def test_training_comes_to_prefer_what_people_preferred_and_says_how_many(loss, most, setup, folder, teacher, tmp_path):
    params, paths = setup
    known = preferences.load_preferences(folder, teacher, model_digest="t", cache=tmp_path)
    drawn = preferences.draw_preferences(known, batch=32, seed=9, step=0, first=0, count=32)
    start = grow_unet(teacher.unet).eval()

    def loss_of(out):
        trained = grow_unet(teacher.unet).eval()
        trained.load_state_dict(weights(out))
        with torch.no_grad():
            return objective.dpo_loss(trained, start, drawn, teacher, beta=100.0).item()

    section = {"steps": 4, "lr": 3e-5, "preference_loss": loss, "preference_beta": 100.0, "preference_weight": 10.0}
    preferring = params.model_copy(update={"train": params.train.model_copy(update=section)})
    train.run(preferring, **paths)
    told = loss_of(paths["out"])
    assert "3 preferences" in (paths["out"] / "README.md").read_text()
    assert json.loads((paths["out"] / "training.json").read_text())["preferences"] == 3
    assert json.loads(next(paths["work"].glob("*/progress.json")).read_text())["preference_loss"] > 0
    assert told < most * math.log(2)


def test_parts_of_a_step_are_shared_out_as_one(setup, tmp_path):
    """By accumulation, as by processes: each part draws its own rows of the step's preferences."""
    params, paths = setup
    params = params.model_copy(update={"train": params.train.model_copy(update={"steps": 1, "preference_weight": 1.0})})
    train.run(params, **paths)
    parts = params.model_copy(update={"train": params.train.model_copy(update={"accumulate": 2})})
    train.run(parts, **{**paths, "work": tmp_path / "work2", "out": tmp_path / "editor2"})
    whole, shared = (json.loads(next(work.glob("*/progress.json")).read_text()) for work in (paths["work"], tmp_path / "work2"))
    for name in ("gradient_norm", "loss", "preference_loss"):  # not the weights: Adam's first step has one length whatever the gradient
        assert whole[name] == pytest.approx(shared[name], rel=1e-3), name


def test_what_is_wrong_with_preferences_is_said(setup, folder, teacher, tmp_path):
    params, paths = setup

    def with_train(**changes):
        return params.model_copy(update={"train": params.train.model_copy(update=changes)})

    with pytest.raises(DataError, match="is version abc123, not other; name that one"):
        train.run(with_train(preferences=f"{folder}@other"), **paths)
    with pytest.raises(DataError, match=r"nowhere holds no export of feedback; run `ip2p feedback export -o nowhere`"):
        train.run(with_train(preferences="nowhere"), **paths)
    with pytest.raises(ParamsError, match=r"train\.preference_batch: 3 cannot be shared by 1 processes × train.accumulate = 2"):
        train.run(with_train(preference_batch=3, accumulate=2), **paths)
    rows = read_shards(folder, "train-").slice(3, 1)
    write_shard(folder / "train-00000.parquet", rows, "v")
    with pytest.raises(DataError, match="no edit was preferred to another there; gather votes first"):
        preferences.load_preferences(folder, teacher, model_digest="t", cache=tmp_path)


def test_the_plan_counts_the_start_that_dpo_measures_preferences_against(teacher):
    ways = ({}, {"preferences": "data/preferences"}, {"preferences": "data/preferences", "preference_loss": "dpo"})
    plain, better, dpo = (plan.estimate(teacher, TrainParams(**told), gpu=False) for told in ways)
    assert better.frozen == plain.frozen and dpo.frozen - plain.frozen == pytest.approx(plain.weights)
    assert plain.total <= better.total < dpo.total
