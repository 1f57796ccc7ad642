"""What stands before every door: host and origin, keys and rates, size of bodies, the queue's fullness, headers, one log line.

A request is judged before its body is parsed; a refused one costs next to nothing.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import logging
import math
import time
from collections import Counter, OrderedDict
from contextlib import suppress
from functools import partial
from typing import Any
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ip2p.params import ServeParams
from ip2p.serve import metrics
from ip2p.serve.doors import door_of, refusal
from ip2p.serve.intake import CHARGE, PLACES, RefusedError
from ip2p.serve.jobs import FULL, MANY, Engine

log = logging.getLogger("ip2p.serve")
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_OPEN = ("/healthz", "/readyz")
"""Answered without a key: they say nothing of the service but that it is there."""
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "form-action 'none'; frame-ancestors 'none'; base-uri 'none'",
}
_PATIENCE = 2.0
"""Seconds that a refused client has to send what it was sending."""
_UPLOAD, _SLOWEST = 30.0, 50_000
"""Seconds that a body may take, and a second more for so many bytes of it: one that stalls gives its place free."""
_SMALL = 64 * 1024
"""Bytes that a request without pictures may have."""
_EDITS = ("/v1/images/edits", "/sdapi/v1/img2img", "/instruct-pix2pix/img2img", "/api/v1/edits")


class Guard:
    """ASGI middleware; `keys` are those that are accepted, none: everybody on this machine is."""

    def __init__(self, app: ASGIApp, *, section: ServeParams, keys: tuple[str, ...], engine: Engine) -> None:
        self._app, self._section, self._keys, self._engine = app, section, keys, engine
        named = [name.lower() for name in (section.host, *section.hosts)]
        self._hosts = {"localhost", "127.0.0.1", "[::1]", *named, *(f"[{name}]" for name in named if ":" in name)}
        self._inside: Counter[str] = Counter()
        """Requests for edits that were let in and are not answered yet, by client."""
        self._most_of_one = section.batch + section.queue if len(keys) < 2 else -(-(section.batch + section.queue) // 2)
        """Where there are several keys, one holds at most half of the places."""
        self._spent: OrderedDict[str, tuple[float, float]] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, request_id, told = time.monotonic(), uuid4().hex[:12], {"status": 500, "started": 0}
        door = door_of(scope["path"])

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                told["status"], told["started"] = message["status"], 1
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                headers["X-Request-Id"] = request_id
            await send(message)

        body = _Body(receive, self._most(scope["path"]))

        async def from_app(message: Message) -> None:
            if body.fault is None:  # else that is answered, whatever the app makes of a body that broke off
                await answer(message)

        who = None
        try:
            try:
                who = self._admit(scope, Headers(scope=scope))
            except RefusedError as error:
                await body.discard()
                await refusal(error, door)(scope, receive, answer)
                return
            try:
                await self._app(scope, body.receive, from_app)
            except ClientDisconnect:
                told["status"] = 499
            except Exception:
                if body.fault is None:
                    if told["started"]:
                        raise
                    log.exception("request failed", extra={"request": request_id})
                    await refusal(RefusedError(500, "the server failed; its log says why"), door)(scope, receive, answer)
            if body.fault is not None and not told["started"]:
                await refusal(body.fault, door)(scope, receive, answer)
        finally:
            self._leave(who)
            metrics.REQUESTS.labels(door, told["status"]).inc()
            spent = round((time.monotonic() - began) * 1000, 1)
            facts = {"request": request_id, "method": scope["method"], "door": door, "status": told["status"], "ms": spent}
            log.info("request", extra=facts)

    def _admit(self, scope: Scope, headers: Headers) -> str | None:
        """The client of a request for edits, which has a place until it leaves; None of another request.

        Raises `RefusedError` for one that is not to be answered.
        """
        if not scope["path"].isprintable():
            raise RefusedError(404, "no such path")
        host = headers.get("host", "")
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if name.lower() not in self._hosts:
            raise RefusedError(400, "this server is not reached under that name; add it to serve.hosts")
        writes, path = scope["method"] not in _SAFE_METHODS, scope["path"]
        origin = headers.get("origin")
        if writes and origin is not None and origin.partition("://")[2] != host:
            raise RefusedError(403, "writes from other pages are refused")
        length = headers.get("content-length", "0")
        most = self._most(path)
        if not length.isdecimal() or int(length) > most:
            raise _too_large(most)
        if self._keys and path not in _OPEN and not (path == "/" or path.startswith("/page/")):
            scope["ip2p.key"] = self._key(headers)
        if writes and path in _EDITS:
            client = scope.get("client")
            who = str(scope.get("ip2p.key") or (client[0] if client else ""))
            if self._engine.full or self._inside.total() >= self._section.batch + self._section.queue:
                raise RefusedError(429, FULL, code="rate_limit_exceeded")
            if self._inside[who] >= self._most_of_one:
                raise RefusedError(429, MANY, code="rate_limit_exceeded")
            self._rate(who)
            scope[CHARGE] = partial(self._charge, who)
            scope[PLACES] = who, self._most_of_one
            self._inside[who] += 1
            return who
        return None

    def _leave(self, who: str | None) -> None:
        """Give the place of a request for edits free."""
        if who is not None:
            self._inside[who] -= 1
            self._inside += Counter()  # forgets whom nothing is left of

    def _most(self, path: str) -> int:
        """Bytes that a request may have: only those for edits bring pictures."""
        return int(self._section.max_megabytes * 1e6) if path in _EDITS else _SMALL

    def _key(self, headers: Headers) -> str:
        """The key that came as Bearer, X-API-Key or the password of HTTP Basic. Raises `RefusedError` (401) if it is not one of ours."""
        kind, _, value = headers.get("authorization", "").partition(" ")
        given = headers.get("x-api-key") or (value if kind.lower() == "bearer" else "")
        if kind.lower() == "basic":
            try:
                given = base64.b64decode(value, validate=True).decode().partition(":")[2]
            except ValueError:
                given = ""
        found = [k for k in self._keys if hmac.compare_digest(k.encode(), given.strip().encode())]
        if not found:
            raise RefusedError(401, "give a key of this server: Authorization: Bearer KEY", code="invalid_api_key")
        return found[0]

    def _rate(self, who: str) -> None:
        """Spend one of a client's edits of this minute (a bucket that fills steadily). Raises `RefusedError` (429) if none is left."""
        rate = self._section.rate
        if not rate:
            return
        now = time.monotonic()
        left, then = self._spent.pop(who, (float(rate), now))
        left = min(float(rate), left + (now - then) * rate / 60)
        self._spent[who] = (left - (left >= 1), now)
        while len(self._spent) > 10_000:
            self._spent.popitem(last=False)
        if left < 1:
            again = math.ceil((1 - left) * 60 / rate)
            raise RefusedError(429, f"more than {rate} edits a minute", code="rate_limit_exceeded", retry_after=again)

    def _charge(self, who: str, edits: int) -> None:
        """Spend more of them for a request of several pictures; what is owed fills first."""
        if self._section.rate and edits:
            left, then = self._spent.get(who, (float(self._section.rate), time.monotonic()))
            self._spent[who] = (left - edits, then)


def _too_large(most: int) -> RefusedError:
    return RefusedError(413, f"the request is larger than {f'{most / 1e6:g} MB' if most > _SMALL else f'{most // 1024} KiB'}")


class _Body:
    """Counts what comes of a request's body, and how long it takes; `fault` is what was wrong with it."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive, self._limit, self._seen = receive, limit, 0
        self._began, self._whole = time.monotonic(), False
        self.fault: RefusedError | None = None

    async def receive(self) -> Message:
        """The next message. Raises `RefusedError` past the limit, or when the rest of the body does not come."""
        if self._whole:
            return await self._receive()
        try:
            async with asyncio.timeout(self._began + _UPLOAD + self._seen / _SLOWEST - time.monotonic()):
                message = await self._receive()
        except TimeoutError:
            self.fault = RefusedError(408, "the request's body did not come in time")
            raise self.fault from None
        self._seen += len(message.get("body", b""))
        self._whole = not message.get("more_body", False)
        if self._seen > self._limit:
            self.fault = _too_large(self._limit)
            raise self.fault
        return message

    async def discard(self) -> None:
        """Take what is still to come, within the limit, so that a client that is sending hears the answer."""
        more: Any = True
        with suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                while more and self._seen <= self._limit:
                    message = await self._receive()
                    self._seen += len(message.get("body", b""))
                    more = message["type"] == "http.request" and message.get("more_body", False)
