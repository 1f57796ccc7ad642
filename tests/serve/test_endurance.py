"""What would wear a server out over months: silence, of databases and of clients, faults that stay, and requests made to cost."""

import json
import socket
import threading
import time
from base64 import b64encode
from contextlib import closing, suppress
from types import SimpleNamespace as Of

import httpx
import pytest
from PIL import Image
from sqlalchemy.exc import OperationalError

from ip2p.params import ServeParams
from ip2p.pictures import encoded
from ip2p.serve import desk, guard, jobs, wire
from ip2p.serve.history import History
from tests.serve.conftest import png, ready, running, serving
from tests.services import until

EDIT = {"prompt": "make it winter", "num_inference_steps": "2"}


def edit(server, **headers):
    return server.client.post("/v1/images/edits", files={"image": png()}, data=EDIT, headers=headers)


def test_a_database_that_says_nothing_keeps_no_edit_back(server, monkeypatch):
    silent = threading.Event()
    monkeypatch.setattr(History, "store", lambda *a, **k: silent.wait(60))
    monkeypatch.setattr(desk, "_PATIENCE", 0.5)
    try:
        answers = []
        clients = [threading.Thread(target=lambda: answers.append(edit(server).status_code)) for _ in range(4)]
        for client in clients:
            client.start()
        for client in clients:
            client.join(120)
        assert answers == [200] * 4
        told = server.client.post("/api/v1/edits", files={"image": png()}, data={"instruction": "make it winter", "steps": "2"})
        assert told.status_code == 202  # pictures are still decoded
        assert server.wait(told.json()["id"])["state"] == "failed"  # and it is said that this one is lost
    finally:
        silent.set()


def test_a_history_out_of_reach_is_said_to_be(server, monkeypatch):
    def broken(*arguments, **named):
        raise OperationalError("select", {}, Exception("gone"))

    monkeypatch.setattr(History, "edits", broken)
    told = server.client.get("/api/v1/edits")
    assert told.status_code == 503 and "retry-after" in told.headers and "cannot be reached" in told.text


def test_a_body_of_very_many_parts_is_refused_before_it_is_read(server):
    body = {"prompt": "make it winter", "steps": 2, "init_images": [b64encode(png()).decode()], "x": [[]] * 30_000}
    told = server.client.post("/sdapi/v1/img2img", json=body)
    assert told.status_code == 422 and "20,000 parts" in told.json()["detail"]
    body["x"] = [[]] * 3_000
    assert server.client.post("/sdapi/v1/img2img", json=body).status_code == 200


@pytest.fixture
def impatient(tiny, editor_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(wire, "PATIENCE", 1.5)
    params = serving(tiny, tmp_path, editor_folder, batch=1, queue=1, max_pixels=16_000_000, max_megabytes=32)
    with running(params, tmp_path) as server:
        yield ready(server)


def test_connections_that_say_nothing_are_ended(impatient):
    host, port = impatient.url.removeprefix("http://").split(":")
    with closing(socket.create_connection((host, int(port)))) as idle, closing(socket.create_connection((host, int(port)))) as half:
        half.sendall(b"GET /healthz HTTP/1.1\r\nHost: local")
        for connection in (idle, half):
            connection.settimeout(10)
            with suppress(ConnectionResetError):
                assert connection.recv(1) == b""  # the end; without it the time is out
    assert impatient.client.get("/healthz").status_code == 200


def test_who_takes_no_answer_keeps_no_place(impatient):
    host, port = impatient.url.removeprefix("http://").split(":")
    noise = Image.effect_noise((2600, 2600), 80).convert("RGB")
    mask = Image.new("LA", noise.size, (0, 255))
    mask.paste((0, 0), (0, 0, 200, 200))
    files = {"image": ("i.png", encoded(noise)), "mask": ("m.png", encoded(mask))}
    asked = httpx.Request("POST", f"{impatient.url}/v1/images/edits", files=files, data={**EDIT, "stream": "true", "partial_images": "3"})
    head = f"POST /v1/images/edits HTTP/1.1\r\nHost: {host}:{port}\r\n" + "".join(
        f"{k}: {v}\r\n" for k, v in asked.headers.items() if k != "host"
    )
    held = []
    for _ in range(2):
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((host, int(port)))
        connection.sendall(head.encode() + b"\r\n" + asked.read())
        held.append(connection)
    assert edit(impatient).status_code == 429  # both places are theirs
    until(lambda: edit(impatient).status_code == 200)
    for connection in held:
        connection.close()


def test_who_takes_something_of_an_answer_may_take_its_time():
    """Also where more of it waits than the look before: the next event, or the next answer, was written meanwhile."""
    told = []
    watched = object.__new__(wire.PatientProtocol)
    watched.loop = Of(call_later=lambda *later: None)
    watched.cycle, watched._answered, watched._unsent = Of(response_complete=False), None, 0
    for unsent in (100, 300, 200, 0, 300, 300):
        watched.transport = Of(get_write_buffer_size=lambda size=unsent: size, abort=lambda size=unsent: told.append(size))
        watched._look()
    assert told == [300]  # of which nothing was taken


def test_a_device_that_makes_nothing_any_more_is_told_and_one_that_does_again_is_well(tiny, editor_folder, tmp_path, monkeypatch):
    with running(serving(tiny, tmp_path, editor_folder), tmp_path) as server:
        ready(server)
        works = jobs.advance_all

        def lost(*arguments):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

        monkeypatch.setattr(jobs, "advance_all", lost)
        for _ in range(3):
            assert edit(server).status_code == 500
        assert server.client.get("/healthz").status_code == 200  # a few may have been the edits' own fault
        monkeypatch.setattr(jobs, "advance_all", works)
        assert edit(server).status_code == 200
        monkeypatch.setattr(jobs, "advance_all", lost)
        until(lambda: edit(server).status_code == 500 and server.client.get("/healthz").status_code == 500, seconds=30)


def test_a_step_without_end_is_told(server, monkeypatch):
    engine = server.desk.engine
    monkeypatch.setattr(engine, "_running", [(None, None)])
    monkeypatch.setattr(engine, "_stepped", time.monotonic() - 601)
    assert not engine.alive


def test_of_several_keys_one_has_half_of_the_places(tiny, editor_folder, tmp_path, monkeypatch):
    params, wait = serving(tiny, tmp_path, editor_folder, batch=1, queue=3), threading.Event()
    with running(params, tmp_path, keys=("one", "other")) as server:
        ready(server)
        ended = desk.Desk.ended

        async def waits(self, job):
            from starlette.concurrency import run_in_threadpool

            await run_in_threadpool(wait.wait, 60)
            return await ended(self, job)

        monkeypatch.setattr(desk.Desk, "ended", waits)
        answers = []
        threads = [threading.Thread(target=lambda: answers.append(edit(server, **{"X-API-Key": "one"}).status_code)) for _ in range(2)]
        for thread in threads:
            thread.start()
        until(lambda: edit_refused(server), seconds=30)
        other = threading.Thread(target=lambda: answers.append(edit(server, **{"X-API-Key": "other"}).status_code))
        other.start()
        wait.set()
        for thread in (*threads, other):
            thread.join(60)
        assert answers == [200] * 3


def test_edits_that_nobody_waits_for_take_their_owners_places(tiny, editor_folder, tmp_path, monkeypatch):
    params, wait, advance = serving(tiny, tmp_path, editor_folder, batch=1, queue=3), threading.Event(), jobs.advance_all
    monkeypatch.setattr(jobs, "advance_all", lambda *arguments: wait.wait(60) and advance(*arguments))

    def asked(server, key):
        told = {"instruction": "make it winter", "steps": "2"}
        return server.client.post("/api/v1/edits", files={"image": png()}, data=told, headers={"X-API-Key": key})

    with running(params, tmp_path, keys=("one", "other")) as server:
        ready(server)
        answers = [asked(server, "one") for _ in range(3)]
        assert [a.status_code for a in answers] == [202, 202, 429] and "of this key" in answers[2].text
        assert asked(server, "other").status_code == 202
        many = server.client.post("/v1/images/edits", files={"image": png()}, data=EDIT | {"n": "3"}, headers={"X-API-Key": "other"})
        assert many.status_code == 400 and many.json()["error"]["param"] == "n"
        wait.set()


def test_pictures_of_one_request_are_bounded_together(tiny, editor_folder, tmp_path):
    with running(serving(tiny, tmp_path, editor_folder, max_pixels=10_000), tmp_path) as server:
        ready(server)

        def asked(n, **told):
            return server.client.post("/v1/images/edits", files={"image": png(size=(100, 100))}, data=EDIT | {"n": str(n)} | told)

        assert asked(4).status_code == 200
        refused = asked(2, size="256x256")
        assert refused.status_code == 400 and "65,536 pixels" in refused.text and refused.json()["error"]["param"] == "n"
        assert asked(1, size="256x256").status_code == 200


def edit_refused(server):
    told = httpx.post(f"{server.url}/v1/images/edits", content=b"x", headers={"X-API-Key": "one", "Content-Type": "multipart/form-data"})
    return told.status_code == 429 and "of this key" in json.loads(told.text)["error"]["message"]


@pytest.mark.parametrize("host", ["fd00::5", "::"])
def test_an_address_of_version_six_is_known_by_its_name(host):
    gate = guard.Guard(None, section=ServeParams(host=host), keys=(), engine=None)
    assert f"[{host}]" in gate._hosts
