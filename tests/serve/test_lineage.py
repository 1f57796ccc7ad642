"""A served edit is traced to the editor that made it and to the captions that taught that."""

import json
import re
import shutil
from pathlib import Path

import mlflow
import pytest
import yaml
from sqlalchemy import create_engine, text

from ip2p import cli
from ip2p.errors import DataError
from ip2p.params import ServeParams
from ip2p.records import RECORD
from ip2p.release.lineage import trace_version
from ip2p.serve.history import open_history
from ip2p.serve.lineage import trace_edit
from ip2p.store import digest, read_shards
from tests.serve.conftest import ready, running, serving
from tests.serve.test_champion import register


@pytest.fixture
def home(tiny, made, editor_folder, tmp_path, monkeypatch, track_in):
    """A project of one run: data, an editor with the record of its training, a registry."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made / "dataset", "data/dataset")
    shutil.copytree(editor_folder, "models/editor")
    record = {"start": "world", "start_digest": "5" * 64, "dataset": digest(Path("data/dataset"))}
    Path("models/editor", RECORD).write_text(json.dumps(record))
    Path("dvc.lock").write_text("schema: '2.0'\n")
    return serving(tiny.model_copy(update={"track": track_in(tmp_path)}), tmp_path, "", editor=None, fallback=None)


def test_an_edit_is_traced_to_its_version_its_dataset_and_the_pairs_of_its_instruction(home, tmp_path, capsys):
    editor, dataset = Path("models/editor"), Path("data/dataset")
    register(home, dataset, editor, tmp_path)
    taught = read_shards(dataset, "train-").to_pylist()[0]
    with running(home, tmp_path) as server:
        edit = ready(server).edit(instruction=taught["edit_prompt"])["id"]
        assert server.client.get(f"/api/v1/edits/{edit}").json()["version"] == "1"
        assert server.client.get("/api/v1/edits").json()["edits"][0]["editor"] == digest(editor)[:16]
    Path("params.yaml").write_text(yaml.safe_dump(home.model_dump(mode="json", by_alias=True)))
    assert cli.main(["trace", edit]) == 0
    told = capsys.readouterr().out
    for part in (
        taught["edit_prompt"],
        digest(editor)[:16],
        "promoted by gate",
        f"from world ({'5' * 16})",
        digest(dataset)[:16],
        taught["pair_id"],
    ):
        assert part in told
    # of data that are no longer here it says how they come back
    shutil.rmtree(dataset)
    told = "\n".join(trace_version("1", home, dataset=dataset))
    run = re.search(r"mlflow artifacts download -r (\w+) -a dvc.lock", told)[1]
    assert "not the one in data/dataset" in told
    assert Path(mlflow.artifacts.download_artifacts(run_id=run, artifact_path="dvc.lock")).read_text() == "schema: '2.0'\n"
    # a version of the same number in another registry made it not
    history = open_history(home.serve)
    with history.session() as session:
        session.merge(history.edit(edit)).editor = "another"
    with pytest.raises(DataError, match=f"version 1 is the editor {digest(editor)[:16]}, not another, which"):
        trace_edit(edit, home, editor=editor, dataset=dataset)
    with pytest.raises(DataError, match="no version 7"):
        trace_version("7", home, dataset=dataset)
    assert cli.main(["trace", "0" * 32]) == 2 and "no edit of the history" in capsys.readouterr().err


def test_an_edit_of_a_folder_is_traced_by_its_record(home, tmp_path):
    editor, dataset = Path("models/editor"), Path("data/dataset")
    own = home.model_copy(update={"serve": home.serve.model_copy(update={"editor": "models/editor"})})
    with running(own, tmp_path) as server:
        edit = ready(server).edit()["id"]
    assert "trained      from world" in "\n".join(trace_edit(edit, own, editor=editor, dataset=dataset))
    assert "trained      elsewhere" in "\n".join(trace_edit(edit, own, editor=tmp_path / "none", dataset=dataset))


def test_a_history_of_before_is_brought_up_to_date(tmp_path):
    section = ServeParams(database=f"sqlite:///{tmp_path}/edits.db", pictures=str(tmp_path / "pictures"))
    open_history(section)
    engine = create_engine(section.database)
    with engine.begin() as connection:
        for name in ("unvoted", "source", "mask", "picture"):
            connection.execute(text(f"DROP INDEX ix_edits_{name}"))
        for name in ("editor", "voted"):
            connection.execute(text(f"ALTER TABLE edits DROP COLUMN {name}"))
        connection.execute(text("UPDATE alembic_version SET version_num = '0001'"))
        names = "id, created, door, version, instruction, text_guidance, image_guidance, steps, solver, guidance_from, guidance_until"
        names += ", guidance_every, seed, width, height, source, picture"
        for id in "ab":
            values = "1, 'api', '1', 'x', 1, 1, 2, 's', 0, 1, 1, 7, 8, 8, 's', 'p'"
            connection.execute(text(f"INSERT INTO edits ({names}) VALUES ('{id}', {values})"))
        vote = "id, created, kind, edit, value, comment, voter"
        connection.execute(text(f"INSERT INTO votes ({vote}) VALUES ('v', 1, 'thumb', 'a', 1, '', 'me')"))
    engine.dispose()
    history = open_history(section)
    assert [(history.edit(id).seed, history.edit(id).editor, history.edit(id).voted) for id in "ab"] == [(7, None, True), (7, None, False)]
    with history.session() as session:  # an index answers what is asked at each new edit
        plan = "EXPLAIN QUERY PLAN SELECT id FROM edits WHERE voted = 0 AND id != 'a' ORDER BY created DESC LIMIT 1 OFFSET 3"
        assert "ix_edits_unvoted" in str(session.execute(text(plan)).all())
