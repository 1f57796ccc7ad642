"""A local server that speaks the OpenAI protocol, writes edits of the illustrated world, and misbehaves on purpose."""

from __future__ import annotations

import json
import random
import re
import threading
import time
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from ip2p.dataset.edit_types import TAXONOMY
from ip2p.dataset.llm.prompt import SPLIT
from ip2p.dataset.world_writer import world_triplet
from ip2p.records import Caption
from ip2p.world.edits import EDIT_TYPES

FAULTS = ("429", "500", "hang", "cut", "junk", "not a completion")


class Endpoint(ThreadingHTTPServer):
    """`faults` of all completions fail in one of `FAULTS`' ways; `reply` turns (caption, edit type) into the model's text.

    `first` are statuses and errors that the first completions are answered with; `unknown` a parameter that none may name.
    """

    daemon_threads = True
    request_queue_size = 128  # the default of 5 resets connections when many come at once

    def __init__(self, *, faults=0.0, reply=None, schema=True, hang=2.0, usage=None, lines=None, delay=0.0, first=(), unknown=None):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.faults, self.schema, self.hang = faults, schema, hang
        self.reply = reply or write
        self.usage = usage if usage is not None else {"prompt_tokens": 300, "completion_tokens": 50, "total_tokens": 350}
        self.lines = lines or (lambda number: 200)  # status of a batch's lines
        self.delay = delay  # seconds that a completion takes
        self.batch_status = "completed"
        self.first, self.unknown = list(first), unknown
        self.room = None  # batches that may wait at once
        self.most_lines = None  # requests that one of them may have
        self.page = False  # whether all it says is a page
        self.verdicts = None  # what moderation says first
        self.closed = False  # whether batches may not be looked at
        self.slow = False  # whether they are under way still
        self.lock = threading.Lock()
        self.count = 0
        self.paid = Counter()  # by Idempotency-Key: generated and charged each time, as most endpoints do
        self.failures = Counter()
        self.seen = []
        self.authorized = set()  # Authorization headers of completions
        self.files, self.batches, self.jobs = {}, {}, {}
        self.most_at_once = self.at_once = self.most_batches = 0

    @property
    def paid_again(self):
        """Replies that were charged though an equal request's had been."""
        return self.paid.total() - len(self.paid)

    def stalled(self, lost):
        """Of the answers that a client lost, those that this endpoint did send: too late, on a machine that is busy."""
        return lost - sum(self.failures[fault] for fault in ("hang", "cut", "junk", "not a completion"))

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"


@contextmanager
def endpoint(**options):
    server = Endpoint(**options)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def write(caption, edit_type):
    """The world's grammar, as a model that follows the schema."""
    rng = random.Random(f"{caption}/{edit_type}")
    order = [edit_type, *EDIT_TYPES] if edit_type in EDIT_TYPES else list(EDIT_TYPES)
    if caption == TAXONOMY["replace"].caption:  # what an endpoint is tried with
        return json.dumps({"instruction": "swap it", "edited_caption": "a fox", "edit_type": edit_type})
    t = next(t for e in order if (t := world_triplet(Caption(caption, "t"), e, rng)))
    return json.dumps({"instruction": t.instruction, "edited_caption": t.edited_caption, "edit_type": t.edit_type})


def completion(server, body):
    """The body of a reply to a chat or completion request."""
    if "prompt" in body:
        fields = json.loads(server.reply(body["prompt"].removesuffix("\n##\n"), "setting"))
        text = f" {fields['instruction']}{SPLIT}{fields['edited_caption']}"
        choice = {"index": 0, "finish_reason": "stop", "text": text}
    else:
        asked = body["messages"][-1]["content"]
        if isinstance(asked, list):  # with pictures
            text = server.reply(asked)
        else:
            caption = json.loads(re.search(r"^Caption: (.*)$", asked, re.M).group(1))
            text = server.reply(caption, re.search(r"^Kind of edit: (\w+)", asked, re.M).group(1))
        message = text if isinstance(text, dict) else {"role": "assistant", "content": text}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
    return {"id": "c", "object": "chat.completion", "created": 0, "model": "toy-1", "choices": [choice], "usage": server.usage}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        parts = self.path.split("?")[0].strip("/").split("/")[1:]
        server = self.server
        if parts == ["batches"]:
            return self._json({"object": "list", "data": list(server.batches.values()), "has_more": False})
        if parts[0] == "batches" and server.closed:
            return self._json({"error": {"message": "not now"}}, 403)
        if parts[0] == "batches" and parts[1] in server.batches:
            return self._json(self._advance(server.batches[parts[1]]))
        if parts == ["fine_tuning", "jobs"]:
            return self._json({"object": "list", "data": list(server.jobs.values()), "has_more": False})
        if parts[:2] == ["fine_tuning", "jobs"] and parts[-1] == "events":
            events = [
                {"id": f"e{i}", "object": "fine_tuning.job.event", "created_at": 0, "level": "info", "message": m}
                for i, m in enumerate("ab")
            ]
            return self._json({"object": "list", "data": events, "has_more": False})
        if parts[:2] == ["fine_tuning", "jobs"]:
            job = server.jobs[parts[2]]
            job["looks"] += 1
            if job["looks"] > 1:
                job |= {"status": "succeeded", "fine_tuned_model": "toy:ip2p", "trained_tokens": 10}
            return self._json({k: v for k, v in job.items() if k != "looks"})
        if parts[0] == "files":
            return self._send(200, server.files[parts[1]], "application/octet-stream")
        return self._json({"error": {"message": "no such path"}}, 404)

    def do_POST(self):
        server = self.server
        raw = self.rfile.read(int(self.headers["content-length"]))
        path = self.path.removeprefix("/v1/")
        if server.page:
            return self._send(200, b"<html>welcome</html>", "text/html")
        if path.endswith("/cancel"):
            server.batches[path.split("/")[1]]["cancelling"] = True
            return self._json(server.batches[path.split("/")[1]])
        if path == "files":
            boundary = re.search(r"boundary=(\S+)", self.headers["content-type"]).group(1).encode()
            part = next(p for p in raw.split(b"--" + boundary) if b'name="file"' in p)
            name = f"file-{len(server.files)}"
            server.files[name] = part.split(b"\r\n\r\n", 1)[1].removesuffix(b"\r\n")
            return self._json(
                {"id": name, "object": "file", "bytes": 1, "created_at": 0, "filename": "f", "purpose": "batch", "status": "processed"}
            )
        body = json.loads(raw)
        if path == "moderations":
            if self.server.verdicts is not None:
                told, server.verdicts = server.verdicts, None
                return self._json(told)
            results = [{"flagged": "blood" in text, "categories": {}, "category_scores": {}} for text in body["input"]]
            return self._json({"id": "m", "model": body["model"], "results": results})
        if path == "batches":
            batch = {"id": f"batch-{len(server.batches)}", "object": "batch", "status": "in_progress", "created_at": 0, **body}
            waiting = sum(b["status"] == "in_progress" for b in server.batches.values())
            server.most_batches = max(server.most_batches, waiting + 1)
            lines = server.files[body["input_file_id"]].count(b"\n")
            if (server.room is not None and waiting >= server.room) or lines > (server.most_lines or lines):
                batch |= {"status": "failed", "errors": {"object": "list", "data": [{"code": "token_limit_exceeded", "message": "full"}]}}
            server.batches[batch["id"]] = batch
            return self._json(batch)
        if path == "fine_tuning/jobs":
            job = {"id": f"job-{len(server.jobs)}", "object": "fine_tuning.job", "status": "running", "created_at": 0, "looks": 0, **body}
            job |= {"hyperparameters": {}, "organization_id": "o", "result_files": [], "seed": 0, "fine_tuned_model": None, "error": None}
            server.jobs[job["id"]] = job
            return self._json({k: v for k, v in job.items() if k != "looks"})
        return self._complete(body)

    def _complete(self, body):
        server = self.server
        if not server.schema and "response_format" in body:
            return self._json({"error": {"message": "response_format is not supported"}}, 400)
        if server.unknown in body:
            return self._json({"error": {"message": f"Unsupported parameter: {server.unknown!r}"}}, 400)
        key = self.headers["idempotency-key"]
        with server.lock:
            server.authorized.add(self.headers["authorization"])
            number, server.count = server.count, server.count + 1
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        try:
            time.sleep(server.delay)
            if server.first:
                status, error = server.first.pop(0)
                return self._json({"error": error}, status)
            rng = random.Random(number)
            if rng.random() < server.faults:
                return self._fail(FAULTS[sum(server.failures.values()) % len(FAULTS)])
            with server.lock:
                server.seen.append(body)
                server.paid[key] += 1
                made = completion(server, body)
            self._json(made)
        finally:
            with server.lock:
                server.at_once -= 1

    def _fail(self, fault):
        self.server.failures[fault] += 1
        if fault == "429":
            self._json({"error": {"message": "slow down"}}, 429, {"Retry-After": "0.05"})
        elif fault == "500":
            self._json({"error": {"message": "oops"}}, 500)
        elif fault == "hang":
            time.sleep(self.server.hang)
            self.close_connection = True
        elif fault == "cut":
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b'{"id": "c", "choi')
            self.wfile.flush()
            self.close_connection = True
        elif fault == "junk":
            self._send(200, b"<html>gateway</html>", "application/json")
        else:
            self._json({"choices": []})

    def _advance(self, batch):
        if batch["status"] == "in_progress" and not self.server.slow:
            out, errors = [], []
            for number, line in enumerate(self.server.files[batch["input_file_id"]].splitlines()):
                row, status = json.loads(line), self.server.lines(number)
                if status is None or self.server.batch_status == "failed":
                    continue  # the batch ended before it came to this line
                body = {"error": {"code": "content_filter", "message": "not this one"}}
                if status == "junk":
                    status, body = 200, {"choices": []}
                elif status == 200:
                    self.server.paid[row["custom_id"]] += 1
                    body = completion(self.server, row["body"])
                reply = {"id": "r", "custom_id": row["custom_id"], "response": {"status_code": status, "body": body}, "error": None}
                (out if status == 200 else errors).append(reply)
            for key, rows in (("output_file_id", out), ("error_file_id", errors)):
                if rows:
                    batch[key] = f"file-{len(self.server.files)}"
                    self.server.files[batch[key]] = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows).encode()
            batch["status"] = "cancelled" if batch.get("cancelling") else self.server.batch_status
        return batch

    def _json(self, value, status=200, headers=None):
        self._send(status, json.dumps(value).encode(), "application/json", headers)

    def _send(self, status, data, kind, headers=None):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


assert set(EDIT_TYPES) <= set(TAXONOMY)
