import contextlib
import io
import time

import httpx
import pytest
from PIL import Image

from ip2p.serve.history import History
from ip2p.world.language import read_instruction
from tests.serve.conftest import png
from tests.services import until


def test_an_edit_runs_as_a_job_and_is_in_the_history(server):
    told = server.edit(seed=11, text_guidance=2.0)
    assert told["state"] == "done" and told["seed"] == 11
    newest = server.client.get("/api/v1/edits?count=1").json()["edits"][0]
    assert newest["id"] == told["id"] and newest["text_guidance"] == 2.0
    made = Image.open(io.BytesIO(server.client.get(f"/api/v1/edits/{told['id']}/picture").content))
    source = Image.open(io.BytesIO(server.client.get(f"/api/v1/edits/{told['id']}/source").content))
    assert made.size == source.size == (120, 90)
    assert '"seed": 11' in made.text["parameters"]


def test_what_is_told_as_done_can_be_fetched_at_once(server, monkeypatch):
    store = History.store
    monkeypatch.setattr(History, "store", lambda *a, **k: (time.sleep(0.5), store(*a, **k))[1])
    edit = {"files": {"image": png()}, "data": {"instruction": "make it night", "steps": "2"}}
    id = server.client.post("/api/v1/edits", **edit).json()["id"]
    with contextlib.suppress(httpx.ReadTimeout), httpx.stream("GET", f"{server.url}/api/v1/edits/{id}/events", timeout=0.3) as events:
        list(events.iter_lines())  # who goes away while it is stored does not stop that
    while (told := server.client.get(f"/api/v1/edits/{id}").json())["state"] != "done":
        time.sleep(0.01)
    assert told["mask"] is None and told["width"] == 120
    assert server.client.get(f"/api/v1/edits/{id}/picture").status_code == 200
    assert server.client.get(f"/api/v1/edits/{id}/mask").status_code == 404
    assert server.app.state.board.job(id) is None and server.client.delete(f"/api/v1/edits/{id}").json()["state"] == "done"


@pytest.mark.parametrize("instruction", ["make it winter\r\nand night", "冬に\u3000する", "می\u200cخواهم", "add a 👨‍👩‍👧", "a\u00a0cat"])
def test_what_people_write_is_text(server, instruction):
    assert server.edit(instruction=instruction)["instruction"] == instruction.replace("\r\n", "\n")


def test_events_tell_progress_with_previews_and_the_end(server):
    id = server.client.post("/api/v1/edits", files={"image": png()}, data={"instruction": "make it night", "steps": "40"}).json()["id"]
    with server.client.stream("GET", f"/api/v1/edits/{id}/events") as stream:
        lines = [x for x in stream.iter_lines() if x]
    kinds = [x.removeprefix("event: ") for x in lines if x.startswith("event: ")]
    assert kinds[-1] == "done" and set(kinds[:-1]) == {"progress"}
    assert any('"preview"' in x for x in lines)
    assert server.client.get(f"/api/v1/edits/{id}/picture").status_code == 200  # there as soon as its end is told
    late = server.client.get(f"/api/v1/edits/{id}/events")  # who asks later hears of the end
    assert late.text.startswith("event: done") and late.headers["content-type"].startswith("text/event-stream")
    assert server.app.state.board.job(id) is None  # its pictures are on disk, not in memory


def test_a_cancelled_edit_ends_at_its_next_step(server):
    id = server.client.post("/api/v1/edits", files={"image": png()}, data={"instruction": "x", "steps": "100"}).json()["id"]
    server.wait(id, "running")
    server.client.delete(f"/api/v1/edits/{id}")
    told = server.wait(id)
    assert told["state"] == "cancelled" and told["step"] < 100


def test_a_client_that_goes_away_takes_its_edit_along(server):
    with pytest.raises(httpx.ReadTimeout):
        data = {"prompt": "x", "num_inference_steps": "100", "n": "4"}
        httpx.post(f"{server.url}/v1/images/edits", files={"image": png((256, 256))}, data=data, timeout=0.5)
    until(lambda: server.desk.engine.load == (0, 0), seconds=30)


def test_votes_are_stored_replaced_and_refused_for_what_cannot_be_compared(server):
    one, two, other = server.edit(seed=1), server.edit(seed=2), server.edit(seed=1, instruction="make it night")
    vote = server.client.post
    assert vote("/api/v1/feedback", json={"kind": "thumb", "edit": one["id"], "value": -1}).status_code == 201
    assert vote("/api/v1/feedback", json={"kind": "thumb", "edit": one["id"], "value": 1, "reason": "quality"}).status_code == 201
    assert vote("/api/v1/feedback", json={"kind": "pair", "edit": one["id"], "other": two["id"], "value": 1}).status_code == 201
    mine = [v for v in server.desk.history.votes() if v.edit == one["id"]]
    assert sorted((v.kind, v.value, v.reason) for v in mine) == [("pair", 1, None), ("thumb", 1, "quality")]
    assert vote("/api/v1/feedback", json={"kind": "pair", "edit": one["id"], "other": other["id"], "value": 1}).status_code == 409
    assert vote("/api/v1/feedback", json={"kind": "thumb", "edit": "0" * 32, "value": 1}).status_code == 404
    assert vote("/api/v1/feedback", json={"kind": "thumb", "edit": one["id"], "value": 5}).status_code == 422
    nothing = "is no JSON object"
    for wrong, told in (({"json": {"edit": "x"}}, "kind: give `thumb`"), ({"content": b"up"}, nothing), ({"json": 3}, nothing)):
        refused = vote("/api/v1/feedback", **wrong)
        assert refused.status_code == 422 and told in refused.text


@pytest.mark.parametrize("id", ["..%2f..%2fetc%2fpasswd", "....//", "0" * 31, "G" * 32, "%00" * 8])
def test_ids_from_outside_name_nothing_but_edits(server, id):
    for path in (f"/api/v1/edits/{id}", f"/api/v1/edits/{id}/picture", f"/api/v1/edits/{id}/events"):
        assert server.client.get(path).status_code in (404, 422)


def test_a_small_form_of_a_picture_is_to_be_had_and_one_that_is_gone_is_not(server):
    path = f"/api/v1/edits/{server.edit()['id']}/picture"
    small = server.client.get(path, params={"side": 32})
    assert small.status_code == 200 and Image.open(io.BytesIO(small.content)).size == (32, 24)
    assert server.client.get(path, params={"side": 4}).status_code == 422
    server.desk.history.picture_path(server.desk.history.edits(count=1)[0].picture).unlink()
    told = server.client.get(path)
    assert told.status_code == 404 and "not to be had" in told.json()["error"]["message"]


def test_the_status_tells_what_is_served_and_what_one_click_does(server):
    server.edit()
    told = server.client.get("/api/v1/status").json()
    assert told["ready"] and told["version"] == "folder"
    for group in told["one_click"]:
        assert {read_instruction(i).type for i in group["instructions"]} == {group["name"].lower()}  # what the shipped editor was taught
    assert server.client.get("/metrics").text.count("ip2p_edits_total{") >= 1
