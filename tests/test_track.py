import os

import pytest
from mlflow import MlflowClient, MlflowException
from PIL import Image

from flows.stage import link
from ip2p.errors import UserError
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
