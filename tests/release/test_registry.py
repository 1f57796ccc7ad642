import io
import json

import mlflow
import pandas as pd
import pytest
import torch
from PIL import Image

from ip2p.errors import DataError, ParamsError
from ip2p.params import TrackParams
from ip2p.release import people, registry


@pytest.fixture
def home(tiny, made, editor_folder, tmp_path, monkeypatch):
    """Paths and parameters of a registry of its own."""
    monkeypatch.chdir(tmp_path)
    params = tiny.model_copy(update={"track": TrackParams(uri=f"sqlite:///{tmp_path}/mlflow.db")})
    return params, {"editor": editor_folder, "evaluation": tmp_path / "evaluation", "dataset": made / "dataset"}


def evaluated(folder, success):
    folder.mkdir(exist_ok=True)
    report = {"held_out": "h", "headline": {"success": success, "done": success}, "baselines": {"source": {"success": 0.1}}}
    report |= {"rows": {"success": [success] * 20, "stayed": [1.0] * 20}, "edit_types": ["season"] * 20}
    (folder / "report.json").write_text(json.dumps(report))


def test_a_good_editor_becomes_champion_and_is_served_from_the_registry(home):
    params, paths = home
    evaluated(paths["evaluation"], 0.5)
    report = registry.run(params, **paths)
    assert report.kept == 1
    client = mlflow.MlflowClient()
    version = client.get_model_version_by_alias("ip2p-editor", "champion")
    assert version.tags["dataset"] == report.extra["dataset"]
    assert "beats" in version.tags["gate"]

    # a worse one is only a challenger
    evaluated(paths["evaluation"], 0.3)
    assert registry.run(params, **paths).kept == 0
    assert client.get_model_version_by_alias("ip2p-editor", "champion").version == version.version
    assert client.get_model_version_by_alias("ip2p-editor", "challenger").version != version.version

    # the champion edits a picture through MLflow alone
    model = mlflow.pyfunc.load_model("models:/ip2p-editor@champion")
    buffer = io.BytesIO()
    Image.new("RGB", (120, 90), "green").save(buffer, "PNG")
    frame = pd.DataFrame({"image": [buffer.getvalue()], "instruction": ["make it winter"]})
    edited = model.predict(frame, params={"steps": 2, "text_guidance": 3.0, "image_guidance": 1.2, "seed": 1})
    assert Image.open(io.BytesIO(edited["image"][0])).size == (120, 90)
    assert torch.is_grad_enabled()  # a loaded model leaves its host's torch alone


def test_without_an_evaluation_nothing_is_registered(home):
    params, paths = home
    with pytest.raises(DataError, match=r"report\.json: no such file; run the stage"):
        registry.run(params, **paths)


def test_people_promote_roll_back_and_hold_and_it_is_recorded(home):
    params, paths = home
    evaluated(paths["evaluation"], 0.5)
    registry.run(params, **paths)
    evaluated(paths["evaluation"], 0.3)
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
    with pytest.raises(ParamsError, match="no champion before"):
        people.rollback(params, None)
    people.hold(params, "holidays")
    evaluated(paths["evaluation"], 0.9)
    report = registry.run(params, **paths)
    assert report.kept == 0 and "held: holidays" in report.extra["gate"]
    people.hold(params, None)
    assert registry.run(params, **paths).kept == 1
