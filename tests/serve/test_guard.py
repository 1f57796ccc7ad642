"""What stands before every door, and what the outside world may try."""

import base64
import gc
import io
import logging
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import httpx
import pytest

from ip2p.errors import ParamsError
from ip2p.params import ServeParams
from ip2p.serve import guard
from ip2p.serve.app import _JsonLines, serve
from ip2p.serve.intake import RefusedError
from ip2p.serve.jobs import BusyError, Job
from tests.serve.conftest import png, ready, running, serving
from tests.services import until

EDIT = {"data": {"instruction": "make it winter", "prompt": "make it winter", "steps": "2"}}


def test_a_request_for_another_host_is_refused(server):
    assert server.client.get("/api/v1/status", headers={"Host": "evil.example"}).status_code == 400
    assert server.client.get("/api/v1/status", headers={"Host": "localhost:80"}).status_code == 200


def test_a_path_with_control_characters_walks_around_nothing(server):
    assert server.client.post("/v1/images/edits%0A", files={"image": png()}, **EDIT).status_code == 404


def test_writes_from_other_pages_are_refused(server):
    for path in ("/api/v1/edits", "/v1/images/edits", "/sdapi/v1/img2img", "/api/v1/feedback"):
        assert server.client.post(path, headers={"Origin": "https://evil.example"}).status_code == 403
    own = server.url.removeprefix("http://")
    told = server.client.post("/api/v1/edits", files={"image": png()}, headers={"Origin": f"http://{own}"}, **EDIT)
    assert told.status_code == 202


def test_every_answer_forbids_sniffing_and_foreign_code(server):
    for path in ("/", "/page/editor.js", "/api/v1/status", "/nothing"):
        headers = server.client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "script-src 'self'" in headers["content-security-policy"]
        assert "server" not in headers or headers["server"] == "uvicorn"


def test_a_body_over_the_limit_is_refused_told_or_untold(server):
    big = b"\0" * 3_000_000
    assert server.client.post("/api/v1/edits", files={"image": big}).status_code == 413
    untold = (big[:100_000] for _ in range(30))  # chunks, without a length
    told = server.client.post("/sdapi/v1/img2img", content=untold)
    assert told.status_code == 413


def test_what_brings_no_picture_may_be_small_only(server):
    told = server.client.post("/api/v1/feedback", json={"comment": "x" * 100_000})
    assert told.status_code == 413 and "64 KiB" in told.text


def test_uploads_that_stall_give_their_places_free(tiny, editor_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(guard, "_UPLOAD", 4.0)
    with running(serving(tiny, tmp_path, editor_folder, queue=1, batch=1), tmp_path) as server:
        ready(server)
        host, port = server.url.removeprefix("http://").split(":")
        head = f"POST /api/v1/edits HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        stalled = [socket.create_connection((host, int(port)), timeout=10) for _ in range(2)]
        for connection in stalled:
            connection.sendall(f"{head}Content-Length: 9999\r\n\r\n--x".encode())
        broken = {"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}
        until(lambda: server.client.post("/api/v1/edits", **broken).status_code == 429, seconds=3)
        assert all(connection.recv(4096).startswith(b"HTTP/1.1 408 ") for connection in stalled)
        assert server.edit()["state"] == "done"


def test_who_leaves_leaves_nothing_behind(server):
    gc.collect()
    before = sum(type(x) is Job for x in gc.get_objects())
    gc.disable()
    try:
        for _ in range(4):
            asked = {"files": {"image": png()}, "data": {"prompt": "make it winter", "num_inference_steps": "100"}}
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{server.url}/v1/images/edits", timeout=0.4, **asked)
        until(lambda: server.desk.engine.load == (0, 0))
        until(lambda: sum(type(x) is Job for x in gc.get_objects()) <= before)
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "form",
    [
        {"files": [("image", png()) for _ in range(20)]},
        {"files": {"image": png()}, "data": {f"f{i}": "x" for i in range(200)}},
        {"files": {"image": png()}, "data": {"instruction": "x" * 300_000}},
        {"content": b"--x\r\nbroken", "headers": {"Content-Type": "multipart/form-data; boundary=x"}},
        {"content": b"{}", "headers": {"Content-Type": "application/json"}},
        {"data": {"image": "http://127.0.0.1:1/x.png", "instruction": "x"}, "files": {"other": b"x"}},
    ],
)
def test_floods_of_parts_and_broken_forms_are_refused(server, form):
    for path in ("/api/v1/edits", "/v1/images/edits"):
        assert server.client.post(path, **form).status_code in (400, 413, 415)


def test_above_the_queue_requests_are_refused_at_once_and_none_is_lost(server):
    def ask(i):
        began = time.monotonic()
        data = {"prompt": "make it winter", "num_inference_steps": "8"}
        told = server.client.post("/v1/images/edits", files={"image": png((96, 96))}, data=data)
        return told.status_code, time.monotonic() - began, told.headers.get("retry-after")

    with ThreadPoolExecutor(60) as pool:
        told = list(pool.map(ask, range(60)))
    assert {code for code, _, _ in told} == {200, 429}
    assert all(after and after.isdecimal() for code, _, after in told if code == 429)
    until(lambda: server.desk.engine.load == (0, 0))


@pytest.fixture
def locked(tiny, editor_folder, tmp_path):
    with running(serving(tiny, tmp_path, editor_folder, rate=2), tmp_path, keys=("open-sesame", "other-key")) as server:
        server.client.headers["Authorization"] = "Bearer open-sesame"
        yield ready(server)


def test_with_keys_only_who_has_one_is_answered(locked):
    assert httpx.get(f"{locked.url}/api/v1/status").status_code == 401
    assert httpx.get(f"{locked.url}/metrics").status_code == 401
    assert httpx.get(f"{locked.url}/api/v1/status", headers={"X-API-Key": "wrong"}).status_code == 401
    assert httpx.get(f"{locked.url}/").status_code == 200  # the page asks for the key
    assert httpx.get(f"{locked.url}/sdapi/v1/options", headers={"Authorization": b"Basic \xc3\xa9"}).status_code == 401
    basic = base64.b64encode(b"anybody:other-key").decode()
    assert httpx.get(f"{locked.url}/sdapi/v1/options", headers={"Authorization": f"Basic {basic}"}).status_code == 200
    # two edits a minute each: the third is refused, another key's is not
    began = time.monotonic()
    told = [locked.client.post("/api/v1/edits", files={"image": png()}, **EDIT) for _ in range(3)]
    waited = time.monotonic() - began
    assert [t.status_code for t in told] == [202, 202, 429] and 29 - waited <= int(told[2].headers["retry-after"]) <= 30
    other = {"Authorization": "Bearer other-key"}
    assert locked.client.post("/api/v1/edits", files={"image": png()}, headers=other, **EDIT).status_code == 202


def test_every_picture_of_a_request_is_charged(locked):
    many = {"data": {"prompt": "make it winter", "n": "3", "num_inference_steps": "2"}}
    codes = [locked.client.post("/v1/images/edits", files={"image": png()}, **many).status_code for _ in range(2)]
    assert codes == [200, 429]
    assert locked.client.post("/v1/images/edits", files={"image": png()}, headers={"X-API-Key": "open-sesame"}, **many).status_code == 429


def test_what_a_client_spent_comes_back_with_time(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(guard, "time", SimpleNamespace(monotonic=lambda: now[0]))  # of this module, not of the whole process
    gate = guard.Guard(None, section=ServeParams(rate=2), keys=(), engine=None)
    gate._rate("me")
    gate._charge("me", 3)
    for wait, left in ((0, 90), (59, 31), (30, 1), (2, 0), (0, 29)):  # two a minute: two owed and one more take 90 seconds
        now[0] += wait
        if left:
            with pytest.raises(RefusedError) as refused:
                gate._rate("me")
            assert 0 <= refused.value.retry_after - left <= 1
        else:
            gate._rate("me")
    gate._rate("you")


def test_what_the_queue_refuses_costs_nothing(locked, monkeypatch):
    def full(*jobs, most):
        raise BusyError

    many = {"data": {"prompt": "make it winter", "n": "3", "num_inference_steps": "2"}}
    with monkeypatch.context() as now:
        now.setattr(locked.desk.engine, "submit", full)
        assert locked.client.post("/v1/images/edits", files={"image": png()}, **many).status_code == 429
    assert locked.client.post("/v1/images/edits", files={"image": png()}, **many).status_code == 200


def test_an_editor_that_is_not_there_stops_the_start(tiny, tmp_path, editor_folder):
    with pytest.raises(ParamsError, match=r"serve\.editor: no folder nowhere; give an editor's folder"):
        serve(serving(tiny, tmp_path, editor_folder, editor="nowhere"))
    params = serving(tiny, tmp_path, editor_folder)
    far = params.model_copy(update={"serve": params.serve.model_copy(update={"port": 70000})})
    with pytest.raises(ParamsError, match=r"serve\.port: 127\.0\.0\.1:70000 cannot be had"):
        serve(far)


def test_neither_keys_nor_texts_nor_pictures_are_logged(locked):
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_JsonLines())
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        data = {"instruction": "sentinel-instruction", "steps": "2"}
        locked.client.post("/api/v1/edits", files={"image": ("sentinel-name.png", png())}, data=data)
        time.sleep(0.5)
    finally:
        root.removeHandler(handler)
    said = stream.getvalue()
    assert '"event": "request"' in said
    assert "open-sesame" not in said and "sentinel" not in said and "PNG" not in said


def test_a_public_address_wants_keys(tiny, tmp_path, editor_folder, monkeypatch):
    monkeypatch.delenv("IP2P_API_KEYS", raising=False)
    with pytest.raises(ParamsError, match="set IP2P_API_KEYS"):
        serve(serving(tiny, tmp_path, editor_folder, host="0.0.0.0"))


def test_stored_text_stays_text(server):
    told = server.edit(instruction="<img src=x onerror=alert(1)>")
    assert told["state"] == "done"
    answer = server.client.get("/api/v1/edits?count=1")
    assert answer.headers["content-type"] == "application/json"
    for script in ("editor", "api", "mask"):
        assert "export" in (told := server.client.get(f"/page/{script}.js").text) or "import" in told
        assert "innerHTML" not in told
