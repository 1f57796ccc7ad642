import os
import subprocess
import sys
from types import SimpleNamespace as Of

import pytest
from mlflow import MlflowClient, MlflowException
from PIL import Image

from flows.stage import link
from ip2p import track as tracking
from ip2p.errors import UserError, first_line
from ip2p.params import TrackParams
from ip2p.track import Run, track


def test_numbers_wait_while_mlflow_cannot_be_reached_and_nothing_ends(track_in, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with track(track_in(tmp_path), "train", {}) as run:
        away = Run(MlflowClient("http://127.0.0.1:9"), run.id, run.unsent)
        away.metrics({"loss": 1.0}, 1)
        away.picture(Image.new("RGB", (4, 4)), "grids/000001.png")
        run.metrics({"loss": 0.5}, 2)
        away.metrics({"loss": 0.25}, 3)
    assert [(m.step, m.value) for m in run.client.get_metric_history(run.id, "loss")] == [(1, 1.0), (2, 0.5), (3, 0.25)]
    told = capsys.readouterr().out.splitlines()
    assert "numbers are kept and sent with the next" in told[0] and "grids/000001.png is lost" in told[1]
    assert run.client.get_run(run.id).info.status == "FINISHED"


def test_an_error_is_told_whether_mlflow_answers_or_not(track_in, tmp_path, monkeypatch):
    def away(*arguments):
        waited.append(os.environ.get("MLFLOW_HTTP_REQUEST_MAX_RETRIES"))
        raise MlflowException("no answer")

    for name in ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)  # a server that was started in this process sets them
    waited = []
    with pytest.raises(UserError, match=r"MLflow .* cannot be used: no answer"), track(track_in(tmp_path), "train", {}):
        monkeypatch.setattr(MlflowClient, "set_terminated", away)
    with pytest.raises(ValueError, match="the cause"), track(track_in(tmp_path), "train", {}) as run:
        monkeypatch.setattr(MlflowClient, "set_tag", away)
        run.tag("made", "something")  # said, and no more
        raise ValueError("the cause")
    assert waited == [None, "1", "1"] and "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ  # by itself it tries for minutes


def test_a_stage_that_is_done_stays_so_if_mlflow_does_not_answer_at_its_end(monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    link("train", TrackParams(uri="http://127.0.0.1:9"), "some-run")
    assert "train: no link to its run: MLflow (track.uri, MLFLOW_TRACKING_URI) cannot be used" in capsys.readouterr().err


def test_the_password_of_an_address_is_told_to_nobody(monkeypatch):
    section = TrackParams(uri="https://team:s3cret@mlflow.example:5000/")
    monkeypatch.setattr(tracking, "point_mlflow", lambda s: Of(get_run=lambda run: Of(info=Of(experiment_id="7"))))
    assert tracking.address_of(section, "r") == "https://mlflow.example:5000/#/experiments/7/runs/r"
    monkeypatch.undo()
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    for uri in ("http://team:s3cret@127.0.0.1:9", "postgres://team:s3cret@127.0.0.1/mlflow"):
        with pytest.raises(UserError) as told, track(TrackParams(uri=uri), "train", {}):
            pass
        assert "s3cret" not in str(told.value) and "127.0.0.1" in str(told.value)
    assert first_line(OSError("to http://a@b/c: no\nmore")) == "to http://***@b/c: no"


def test_a_stage_goes_on_while_prefects_server_is_away():
    script = "from flows.stage import _progress; tell = _progress('pairs'); tell(1, 2); tell(2, 2)"
    away = os.environ | {"PREFECT_API_URL": "http://127.0.0.1:9/api", "PREFECT_CLIENT_MAX_RETRIES": "0"}
    done = subprocess.run([sys.executable, "-c", script], env=away, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines() == ["pairs 1/2", "pairs 2/2"]
    assert done.stderr.count("pairs: not told to Prefect's server, which is away") == 2
