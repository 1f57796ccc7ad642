import base64
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import httpx
import mlflow
import pandas as pd
import pytest
import torch
from PIL import Image

from infra import local
from ip2p import track
from ip2p.errors import DataError, ModelError, ParamsError, UserError
from ip2p.model import evaluate, train
from ip2p.pictures import encoded
from ip2p.release import people, registry
from ip2p.store import digest
from tests.services import until


@pytest.fixture
def home(tiny, made, editor_folder, tmp_path, monkeypatch, track_in):
    """Paths and parameters of a registry of its own."""
    monkeypatch.chdir(tmp_path)
    params = tiny.model_copy(update={"track": track_in(tmp_path)})
    places = {"editor": editor_folder, "evaluation": tmp_path / "evaluation", "work": tmp_path / "register"}
    return params, places | {"triplets": made / "triplets", "dataset": made / "dataset"}


def evaluated(paths, success):
    folder = paths["evaluation"]
    folder.mkdir(exist_ok=True)
    report = {"editor": digest(paths["editor"]), "held_out": "h", "headline": {"success": success, "done": success}}
    report |= {"baselines": {"source": {"success": 0.1}}, "edit_types": ["season"] * 20}
    report |= {"rows": {"success": [success] * 20, "stayed": [1.0] * 20}}
    (folder / "report.json").write_text(json.dumps(report))


def another(paths, name):
    """Another editor, as far as the registry can tell."""
    folder = paths["work"].parent / f"editor-{name}"
    shutil.copytree(paths["editor"], folder)
    (folder / "README.md").write_text(name)
    paths["editor"] = folder


def test_a_good_editor_becomes_champion_and_is_served_from_the_registry(home):
    params, paths = home
    evaluated(paths, 0.5)
    report = registry.run(params, **paths)
    assert report.kept == 1
    client = mlflow.MlflowClient()
    version = client.get_model_version_by_alias("ip2p-editor", "champion")
    assert "dataset" not in version.tags  # the editor has no record of what it was trained on
    assert "beats" in version.tags["gate"]

    # a worse one is only a challenger
    evaluated(paths, 0.3)
    assert registry.run(params, **paths).kept == 0
    assert client.get_model_version_by_alias("ip2p-editor", "champion").version == version.version
    assert client.get_model_version_by_alias("ip2p-editor", "challenger").version != version.version

    # the champion edits a picture through MLflow alone
    model = mlflow.pyfunc.load_model("models:/ip2p-editor@champion")
    sizes = ((120, 90), (64, 64), (120, 90))
    pictures = [encoded(Image.new("RGB", size, "green")) for size in sizes]
    frame = pd.DataFrame({"image": pictures, "instruction": ["make it winter", "make it night", "make it night"]})
    edited = model.predict(frame, params={"steps": 2, "text_guidance": 3.0, "image_guidance": 1.2, "seed": 1})
    assert tuple(Image.open(io.BytesIO(x)).size for x in edited["image"]) == sizes  # in the order of the rows
    assert len(set(edited["image"])) == 3
    with pytest.raises(DataError, match="row 1: image"):
        model.predict(pd.DataFrame({"image": [pictures[0], b"none"], "instruction": ["make it winter"] * 2}))
    assert torch.is_grad_enabled()  # a loaded model leaves its host's torch alone


def test_a_version_knows_its_parents_and_mlflow_serves_it_by_its_own_example(home, tmp_path):
    params, paths = home
    marker = tmp_path / "validated.json"
    marker.write_text(json.dumps({"dataset": digest(paths["dataset"])}))
    paths["editor"] = tmp_path / "editor"
    train.run(params, dataset=paths["dataset"], marker=marker, out=paths["editor"], work=tmp_path / "train")
    evaluated(paths, 0.5)
    registry.run(params, **paths)
    evaluated(paths, 0.6)
    registry.run(params, **paths)
    client = mlflow.MlflowClient()
    tags = client.get_model_version("ip2p-editor", "2").tags
    assert tags["dataset"] == digest(paths["dataset"])[:16]
    assert tags["start"] == "world" and len(tags["start_digest"]) == 64 and tags["champion_then"] == "1"
    trained = client.get_run(tags["training_run"])
    assert trained.info.run_name == "train" and trained.data.params["train.steps"] == str(params.train.steps)

    folder = Path(mlflow.artifacts.download_artifacts("models:/ip2p-editor/2"))
    port = local._free_port(0, set())
    environment = {**os.environ, "MLFLOW_TRACKING_URI": params.track.uri, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = ["models", "serve", "-m", "models:/ip2p-editor/2", "--env-manager", "local", "-h", "127.0.0.1", "-p", str(port)]
    log = (tmp_path / "serve.log").open("wb")
    server = subprocess.Popen([sys.executable, "-m", "mlflow", *command], env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        until(lambda: server.poll() is not None or local._answers(f"http://127.0.0.1:{port}/ping"), seconds=240)
        assert server.poll() is None, (tmp_path / "serve.log").read_text()
        assert httpx.get(f"http://127.0.0.1:{port}/ping", timeout=60).status_code == 200
        example = (folder / "serving_input_example.json").read_bytes()
        told = httpx.post(f"http://127.0.0.1:{port}/invocations", content=example, headers={"Content-Type": "application/json"}, timeout=60)
        assert told.status_code == 200, told.text
        edited = base64.b64decode(told.json()["predictions"][0]["image"])
        assert Image.open(io.BytesIO(edited)).size == (32, 32)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        server.wait(120)
        log.close()


def test_an_editor_that_no_server_would_load_is_not_registered(home, tmp_path):
    params, paths = home
    another(paths, "2")
    (paths["editor"] / "optimizer.bin").write_bytes(b"x")
    evaluated(paths, 0.5)
    with pytest.raises(ModelError, match=r"editor-2: holds optimizer\.bin; only safetensors"):
        registry.run(params, **paths)
    assert registry.version_numbers(params) == {}


def test_without_an_evaluation_nothing_is_registered(home):
    params, paths = home
    with pytest.raises(DataError, match=r"report\.json: no such file; run the stage"):
        registry.run(params, **paths)


def test_an_evaluation_of_another_editor_registers_nothing(home):
    params, paths = home
    evaluated(paths, 0.5)
    another(paths, "2")
    with pytest.raises(DataError, match=r"report\.json: the evaluation of another editor .*; run `dvc repro evaluate`"):
        registry.run(params, **paths)
    assert registry.version_numbers(params) == {}


def test_a_registry_out_of_reach_is_said_in_one_line(home, monkeypatch):
    params, paths = home
    evaluated(paths, 0.5)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match=r"MLflow \(track\.uri, MLFLOW_TRACKING_URI\) cannot be used: "):
        registry.run(params, **paths)
    with pytest.raises(UserError, match="cannot be used"), track.track(params.track, "train", {}):
        pass


def test_a_promotion_that_was_killed_halfway_is_made_good(home, monkeypatch):
    params, paths = home
    evaluated(paths, 0.5)

    def killed(*arguments, **told):
        raise KeyboardInterrupt

    with monkeypatch.context() as now:
        now.setattr(mlflow.MlflowClient, "set_registered_model_alias", killed)
        with pytest.raises(KeyboardInterrupt):
            registry.run(params, **paths)
    with monkeypatch.context() as now:
        now.setattr(registry, "_note", killed)
        with pytest.raises(KeyboardInterrupt):
            registry.run(params, **paths)
    assert registry.champion_number(params) == "1"
    assert registry.run(params, **paths).kept == 1
    assert mlflow.MlflowClient().get_model_version("ip2p-editor", "1").tags["promoted_by"] == "unknown"


def test_people_promote_roll_back_and_hold_and_it_is_recorded(home):
    params, paths = home
    evaluated(paths, 0.5)
    registry.run(params, **paths)
    evaluated(paths, 0.3)
    registry.run(params, **paths)  # not promoted by the gate
    with pytest.raises(ParamsError, match="say why"):
        people.promote(params, "2", None)
    with pytest.raises(ParamsError, match="one of 2, 1"):
        people.promote(params, "7", "x")
    people.promote(params, "2", "its snow is better")
    assert registry.champion_number(params) == "2"
    told = "\n".join(people.status(params))
    assert "its snow is better" in told and "source: success 0.300 beats 0.100" in told
    people.rollback(params, "it was not")
    assert registry.champion_number(params) == "1"
    told = registry.run(params, **paths)  # the stage runs each time, and does not undo what a person did
    assert told.extra["version"] == "2" and told.kept == 0 and registry.champion_number(params) == "1"
    evaluated(paths, 0.5 + 1e-9)  # as good by the gate's word: what a person took back stays so all the same
    registry.run(params, **paths)
    assert registry.champion_number(params) == "3"
    people.rollback(params, "no")
    assert registry.run(params, **paths).kept == 0 and registry.champion_number(params) == "1"
    with pytest.raises(ParamsError, match="no champion before"):
        people.rollback(params, None)
    people.hold(params, "holidays")
    another(paths, "2")
    evaluated(paths, 0.9)
    report = registry.run(params, **paths)
    assert report.kept == 0 and "held: holidays" in report.extra["gate"]
    people.hold(params, None)
    again = registry.run(params, **paths)  # the version is known: only the gate is asked again
    assert again.kept == 1 and again.extra["version"] == report.extra["version"] == registry.champion_number(params)
    people.rollback(params, "people did not like it")
    evaluated(paths, 0.95)  # the same editor measured otherwise: a person took it back, and so it stays
    told = registry.run(params, **paths)
    assert told.kept == 0 and "was champion before" in told.extra["gate"] + str(told.dropped_by_reason)
    assert registry.champion_number(params) == "1"


@pytest.mark.parametrize(
    ("meanwhile", "told", "then"),
    [
        (lambda p: people.hold(p, "customer demo"), "held: customer demo", "2"),
        (lambda p: people.promote(p, "1", "today"), "version 1 became", "1"),
    ],
)
def test_what_people_do_while_a_version_is_sent_counts(home, monkeypatch, meanwhile, told, then):
    params, paths = home
    for number, score in (("1", 0.3), ("2", 0.5)):
        another(paths, number)
        evaluated(paths, score)
        registry.run(params, **paths)
    assert registry.champion_number(params) == "2"
    another(paths, "3")
    evaluated(paths, 0.9)
    sent = registry.send_version

    def slowly(*arguments):
        number = sent(*arguments)
        meanwhile(params)
        return number

    monkeypatch.setattr(registry, "send_version", slowly)
    report = registry.run(params, **paths)
    assert report.kept == 0 and told in report.extra["gate"] and registry.champion_number(params) == then


def test_what_a_registry_has_is_not_sent_again_and_another_registry_gets_it(home, tmp_path, track_in, monkeypatch):
    params, paths = home
    evaluated(paths, 0.5)
    first = registry.run(params, **paths)
    assert registry.run(params, **paths) == first  # to the last digit: what depends on its report is fresh
    evaluated(paths, 0.05)
    shut = registry.run(params, **paths)
    assert shut.kept == 0 and registry.run(params, **paths) == shut
    assert list(registry.version_numbers(params)) == ["2", "1"]
    evaluated(paths, 0.5)
    (tmp_path / "other").mkdir()
    other = params.model_copy(update={"track": track_in(tmp_path / "other")})
    assert registry.run(other, **paths).kept == 1 and registry.champion_number(other) == "1"


def test_a_champion_of_other_edits_is_measured_anew_on_the_challengers_as_it_is_served(home, editor_folder, tmp_path, monkeypatch):
    params, paths = home
    evaluated(paths, 0.5)
    registry.run(params, **paths)
    small = {"evaluate": params.evaluate.model_copy(update={"count": 3, "steps": 2, "sdedit_strengths": ()})}
    params = params.model_copy(update=small)
    shutil.copytree(editor_folder, tmp_path / "challenger")
    config = tmp_path / "challenger" / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"sample_size": 16}))  # of larger pictures than the champion's
    paths["editor"] = tmp_path / "challenger"
    data = {k: paths[k] for k in ("triplets", "dataset")}
    evaluate.run(params, editor=paths["editor"], out=paths["evaluation"], work=tmp_path / "evaluate", **data)
    asked, measure_again = [], evaluate.measure_again
    monkeypatch.setattr(evaluate, "measure_again", lambda p, **k: (asked.append(p.evaluate.steps), measure_again(p, **k))[1])
    gate = registry.run(params, **paths).extra["gate"]
    assert "not compared" not in gate
    assert asked == [3]
    assert "champion: success +0.000 [+0.000, +0.000], in 100% of resamples" in gate  # the same weights
    # as is one whose report is gone
    for told in tmp_path.rglob("report.json"):
        if told.parent.name == "artifacts":
            told.unlink()
    assert "100% of resamples" in registry.run(params, **paths).extra["gate"]
    # one that cannot be had is not compared, and the gate stays shut
    shutil.rmtree(tmp_path / "register" / "versions")
    params = params.model_copy(update={"evaluate": params.evaluate.model_copy(update={"steps": 3})})
    evaluate.run(params, editor=paths["editor"], out=paths["evaluation"], work=tmp_path / "evaluate", **data)
    for folder in tmp_path.rglob("artifacts/editor/unet"):
        shutil.rmtree(folder)
    report = registry.run(params, **paths)
    assert report.kept == 0 and "not compared" in report.extra["gate"]
