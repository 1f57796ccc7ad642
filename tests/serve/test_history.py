import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pyarrow.parquet as pq
import pytest
import yaml

from ip2p.errors import DataError
from ip2p.params import ServeParams
from ip2p.serve import preferences as served_preferences
from ip2p.serve.history import EditRow, open_history
from ip2p.serve.preferences import export
from tests.serve.conftest import png, serving
from tests.services import here, service

ROOT = Path(__file__).parents[2]


@pytest.fixture
def history(tmp_path):
    return open_history(ServeParams(database=f"sqlite:///{tmp_path}/edits.db", pictures=str(tmp_path / "pictures"), keep=3))


def row(history, number, *, source="teal", instruction="make it winter"):
    return EditRow(
        id=f"{number:032x}",
        created=float(number),
        door="api",
        version="1",
        instruction=instruction,
        text_guidance=2.0,
        image_guidance=1.2,
        steps=2,
        solver="euler_ancestral",
        guidance_from=0.0,
        guidance_until=1.0,
        guidance_every=1,
        seed=2**62 + number,
        width=120,
        height=90,
        source=history.keep_picture(png(color=source)),
        mask=None,
        picture=history.keep_picture(png(color=(number % 256, 0, 0))),
    )


def thumb(history, number, value):
    history.vote(kind="thumb", edit=f"{number:032x}", other=None, value=value, reason=None, comment="", voter="me")


@pytest.mark.skipif(not here("postgres"), reason="no Postgres: apt-get install postgresql")
def test_votes_and_forgetting_at_once_lose_no_vote_and_no_edit_on_postgres(tmp_path):
    with service("postgres") as topology:
        section = ServeParams(database=topology.database("ip2p", "psycopg"), pictures=str(tmp_path / "pictures"), keep=1)
        history, known, acknowledged, refused, broken = open_history(section), [], [], [], []
        done = threading.Event()

        def vote():
            while not done.is_set():
                for number in known[-3:]:
                    try:
                        thumb(history, number, 1)
                        acknowledged.append(number)
                    except DataError:
                        refused.append(number)
                    except Exception as error:  # the test's subject
                        broken.append(error)

        voters = [threading.Thread(target=vote) for _ in range(3)]
        for voter in voters:
            voter.start()
        try:
            for number in range(150):
                history.add(row(history, number))
                known.append(number)
        finally:
            done.set()
            for voter in voters:
                voter.join()
        assert broken == [] and acknowledged and refused
        assert {int(v.edit, 16) for v in history.votes()} == set(acknowledged)
        assert all(history.edit(f"{n:032x}") for n in acknowledged)
        history.engine.dispose()


@pytest.mark.skipif(not here("postgres"), reason="no Postgres: apt-get install postgresql")
def test_a_voters_votes_at_once_leave_one_on_postgres(tmp_path):
    with service("postgres") as topology:
        history = open_history(ServeParams(database=topology.database("ip2p", "psycopg"), pictures=str(tmp_path / "pictures")))
        history.add(row(history, 0))
        for _ in range(20):
            both = [threading.Thread(target=thumb, args=(history, 0, value)) for value in (1, -1)]
            for voter in both:
                voter.start()
            for voter in both:
                voter.join()
            assert len(history.votes()) == 1
        history.engine.dispose()


def test_the_oldest_edits_without_a_vote_are_forgotten_with_their_pictures(history):
    for number in range(3):
        history.add(row(history, number))
    thumb(history, 0, 1)
    gone = history.edit(f"{1:032x}").picture
    for number in (3, 4):
        history.add(row(history, number))
    assert [int(e.id, 16) for e in history.edits()] == [4, 3, 2, 0]
    assert not history.picture_path(gone).exists()
    assert history.picture_path(history.edit(f"{0:032x}").source).exists()  # others have the same source


def test_where_the_clock_was_set_back_the_newest_edits_are_kept(history):
    for number in (3600, 3601, 3602, 7, 8, 9):  # an hour back after the third
        history.add(row(history, number))
    assert [int(e.id, 16) for e in history.edits()] == [9, 8, 7]
    assert [int(e.id, 16) for e in history.edits(before=history.edits()[0].created)] == [8, 7]


def test_the_pictures_keep_within_their_room_and_a_start_knows_what_they_take(tmp_path):
    section = ServeParams(database=f"sqlite:///{tmp_path}/edits.db", pictures=str(tmp_path / "pictures"), keep_gb=1e-9)
    room = 5 * len(png()) * 1e-9
    history = open_history(section.model_copy(update={"keep_gb": room}))
    for number in range(9):
        history.add(row(history, number))
        if number == 0:
            thumb(history, 0, 1)
    kept = [int(e.id, 16) for e in history.edits()]
    assert kept[0] == 8 and kept[-1] == 0 and 3 <= len(kept) <= 6  # the newest ones, and the one with a vote
    assert history.disk.used - sum(history.disk.voted.values()) <= room * 1e9
    assert open_history(section).disk.used == history.disk.used == sum(p.stat().st_size for p in (tmp_path / "pictures").rglob("*.png"))
    history.add(row(open_history(section), 9))  # a picture greater than the room there is stays till the next


def test_edits_with_votes_take_no_room_from_new_ones(tmp_path):
    section = ServeParams(database=f"sqlite:///{tmp_path}/edits.db", pictures=str(tmp_path / "pictures"), keep_gb=5 * len(png()) * 1e-9)
    history = open_history(section)
    for number in range(8):
        history.add(row(history, number))
        thumb(history, number, 1)
    for number in range(8, 12):
        history.add(row(history, number))
        history = open_history(section) if number == 9 else history
    assert [int(e.id, 16) for e in history.edits()] == list(range(11, -1, -1))


def test_where_the_database_takes_no_edit_the_disk_takes_no_pictures(history, monkeypatch):
    history.add(row(history, 0))
    used = history.disk.used
    monkeypatch.setattr(type(history), "_added", lambda self, row: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        history.store(row(history, 0), source=png(color="teal"), mask=png(color="red"), picture=png(color="blue"))
    assert history.disk.used == used == sum(p.stat().st_size for p in history.pictures.rglob("*.png"))


def test_pictures_that_no_edit_names_take_no_room_and_are_told(history, tmp_path, caplog):
    history.add(row(history, 0))
    history.keep_picture(png(color="red"))  # killed before its row was written
    with caplog.at_level("WARNING"):
        again = open_history(ServeParams(database=f"sqlite:///{tmp_path}/edits.db", pictures=str(tmp_path / "pictures"), keep=3))
    assert "pictures of no edit" in caplog.text
    assert again.disk.used == history.disk.used - len(png(color="red"))


def test_however_many_edits_have_votes_new_ones_are_kept(history):
    for number in range(5):
        history.add(row(history, number))
        thumb(history, number, 1)
    history.add(row(history, 9))
    assert [int(e.id, 16) for e in history.edits()] == [9, 4, 3, 2, 1, 0]


def test_votes_become_preference_pairs_in_the_fields_columns(history, tiny, tmp_path):
    section = ServeParams(database=f"sqlite:///{tmp_path}/edits.db", pictures=str(tmp_path / "pictures"))
    kept = open_history(section)
    for number in range(4):
        kept.add(row(kept, number))
    kept.add(row(kept, 9, instruction="make it night"))
    for number, value in ((0, 1), (1, 1), (2, -1), (9, -1)):
        thumb(kept, number, value)
    kept.vote(kind="pair", edit=f"{3:032x}", other=f"{0:032x}", value=-1, reason=None, comment="", voter="me")
    assert export(tiny.model_copy(update={"serve": section}), tmp_path / "out") == (3, 5)
    table = pq.read_table(tmp_path / "out" / "train-00000.parquet")
    assert table.column_names[:5] == ["jpg_0", "jpg_1", "label_0", "label_1", "caption"]
    rows = table.to_pylist()
    assert [(r["origin"], r["label_0"], int(r["id_0"], 16), int(r["id_1"], 16)) for r in rows] == [
        ("choice", 0.0, 3, 0),
        ("thumbs", 1.0, 0, 2),
        ("thumbs", 1.0, 1, 2),
    ]
    assert rows[0]["source"] == png(color="teal") and rows[0]["seed_0"] == 2**62 + 3
    assert len(pq.read_table(tmp_path / "out" / "votes.parquet")) == 5


def test_thumbs_give_no_more_pairs_than_edits_and_large_pictures_fill_a_file_soon(tiny, tmp_path, monkeypatch):
    section = ServeParams(database=f"sqlite:///{tmp_path}/edits.db", pictures=str(tmp_path / "pictures"))
    history = open_history(section)
    for number in range(9):
        history.add(row(history, number))
        thumb(history, number, 1 if number < 5 else -1)
    monkeypatch.setattr(served_preferences, "_SHARD_BYTES", 5 * len(png()))
    assert export(tiny.model_copy(update={"serve": section}), tmp_path / "out") == (5, 9)  # five liked, four disliked
    files = sorted((tmp_path / "out").glob("train-*.parquet"))
    rows = [r for f in files for r in pq.read_table(f).to_pylist()]
    assert len(files) > 2 and len({r["id_0"] for r in rows}) == 5 and len({r["id_1"] for r in rows}) == 4


def test_an_export_without_the_pictures_is_refused(history, tiny, tmp_path):
    for number, value in ((0, 1), (1, -1)):
        history.add(row(history, number))
        thumb(history, number, value)
    away = ServeParams(database=f"sqlite:///{tmp_path}/edits.db", pictures=str(tmp_path / "away"))
    params = tiny.model_copy(update={"serve": away})
    with pytest.raises(DataError, match="a picture that was voted on is not here"):
        export(params, tmp_path / "out")


def test_an_export_replaces_an_earlier_one_and_nothing_else(tiny, tmp_path):
    section = ServeParams(database=f"sqlite:///{tmp_path}/edits.db", pictures=str(tmp_path / "pictures"))
    params = tiny.model_copy(update={"serve": section})
    for _ in range(2):
        export(params, tmp_path / "out")
    (tmp_path / "data" / "sub").mkdir(parents=True)
    (tmp_path / "data" / "sub" / "precious.txt").write_text("kept")
    with pytest.raises(DataError, match="holds something that is no export of feedback"):
        export(params, tmp_path / "data")
    assert (tmp_path / "data" / "sub" / "precious.txt").read_text() == "kept"


def test_a_choice_made_again_the_other_way_round_replaces_the_first(history):
    for number in range(2):
        history.add(row(history, number))
    one, two = (f"{n:032x}" for n in range(2))
    told = {"kind": "pair", "reason": None, "comment": "", "voter": "me"}
    history.vote(edit=one, other=two, value=1, **told)
    history.vote(edit=two, other=one, value=1, **told)
    assert [(v.edit, v.value) for v in history.votes()] == [(two, 1)]
    with pytest.raises(DataError, match="with itself"):
        history.vote(edit=one, other=one, value=1, **told)


def test_a_database_that_is_away_is_told(tmp_path):
    (tmp_path / "edits.db").write_text("no database")
    with pytest.raises(DataError, match=r"serve\.database: cannot be opened"):
        open_history(ServeParams(database=f"sqlite:///{tmp_path}/edits.db"))


def start(folder, log):
    command = [sys.executable, "-m", "ip2p.cli", "serve", "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    with log.open("wb") as out:
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
    for _ in range(2400):
        address = next((x for x in log.read_text().splitlines() if x.startswith("http://")), None)
        if address:
            client = httpx.Client(base_url=address, timeout=60)
            try:
                if client.get("/readyz").status_code == 200:
                    return server, client
            except httpx.TransportError:
                pass
        assert server.poll() is None, log.read_text()
        time.sleep(0.1)
    raise AssertionError(log.read_text())


@pytest.mark.timeout(600)
def test_every_acknowledged_vote_is_there_after_a_kill_and_sigterm_lets_edits_end(tiny, editor_folder, tmp_path):
    params = serving(tiny, tmp_path, editor_folder.resolve())
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"serve": params.serve.model_dump(mode="json") | {"hosts": []}}))
    server, client = start(tmp_path, tmp_path / "log")
    data = {"instruction": "make it winter", "steps": "2"}
    ids = [client.post("/api/v1/edits", files={"image": png()}, data=data).json()["id"] for _ in range(3)]
    history = open_history(params.serve)
    while not all(history.edit(i) for i in ids):
        time.sleep(0.05)
    acknowledged = []
    for number in range(30):
        told = client.post(
            "/api/v1/feedback", json={"kind": "thumb", "edit": ids[number % 3], "value": (-1) ** number, "comment": str(number)}
        )
        assert told.status_code == 201
        acknowledged.append(told.json()["id"])
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()
    assert set(acknowledged[-3:]) == {v.id for v in history.votes()}  # each edit's latest; earlier ones were replaced

    # started again it has them; SIGTERM lets an edit under way end, and then the server
    server, client = start(tmp_path, tmp_path / "log2")
    id = client.post("/api/v1/edits", files={"image": png()}, data=data | {"steps": "40"}).json()["id"]
    server.send_signal(signal.SIGTERM)
    assert server.wait(timeout=60) in (0, -signal.SIGTERM)
    assert history.edit(id).steps == 40
