"""The server: `ip2p serve`. One app with three doors, the page, metrics and health; it drains on SIGTERM."""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.staticfiles import StaticFiles

from ip2p.errors import ParamsError, first_line
from ip2p.models import editor_named
from ip2p.params import Params
from ip2p.serve import api, automatic, metrics, openai
from ip2p.serve.board import Board
from ip2p.serve.desk import Desk
from ip2p.serve.doors import door_of, refusal
from ip2p.serve.guard import Guard
from ip2p.serve.intake import RefusedError
from ip2p.serve.wire import configured
from ip2p.startup import live_long
from ip2p.track import give_up_soon

_STORING = 5.0
"""Seconds that edits which were made have to be stored at the end."""
PAGE = Path(__file__).with_name("page")
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_PLAIN = set(vars(logging.makeLogRecord({}))) | {"message", "taskName", "asctime", "color_message"}


def make_app(params: Params, *, keys: tuple[str, ...] = (), work: Path = Path("work/serve/versions")) -> FastAPI:
    """The application; its editor is loaded once it runs."""
    desk, board = Desk(params, work=work), Board()

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        desk.champion.start()
        yield
        await desk.close(params.serve.drain_seconds - (time.monotonic() - getattr(app.state, "ended", time.monotonic())))
        await board.settled(_STORING)

    told = "Edits pictures by instructions, through OpenAI's, AUTOMATIC1111's and our own interface."
    app = FastAPI(
        title="ip2p", version=version("ip2p"), description=told, lifespan=lifespan, docs_url=None, redoc_url=None, redirect_slashes=False
    )
    app.state.desk, app.state.board = desk, board
    for door in (openai, automatic, api):
        app.include_router(door.router)
    app.add_middleware(Guard, section=params.serve, keys=keys, engine=desk.engine)
    app.add_exception_handler(RefusedError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(SQLAlchemyError, _no_database)
    _add_service(app, desk)
    app.mount("/page", StaticFiles(directory=PAGE), name="page")
    return app


def _add_service(app: FastAPI, desk: Desk) -> None:
    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(PAGE / "index.html")

    @app.get("/healthz", include_in_schema=False)
    async def health() -> Response:
        return JSONResponse({"alive": desk.engine.alive}, status_code=200 if desk.engine.alive else 500)

    @app.get("/readyz", include_in_schema=False)
    async def ready() -> Response:
        served = desk.champion.served
        return JSONResponse({"version": served and served.version}, status_code=200 if served else 503)

    @app.get("/metrics", include_in_schema=False)
    async def measured() -> Response:
        waiting, running = desk.engine.load
        metrics.WAITING.set(waiting)
        metrics.RUNNING.set(running)
        return Response(generate_latest(metrics.REGISTRY), media_type=CONTENT_TYPE_LATEST)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    return refusal(error, door_of(request.url.path))


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] in ("json_invalid", "model_attributes_type"):
        return refusal(RefusedError(422, "the body is no JSON object, or Content-Type does not say so"), door_of(request.url.path))
    if first["type"].startswith("union_tag"):
        return refusal(RefusedError(422, "kind: give `thumb` (edit, value 1 or -1) or `pair`", field="kind"), door_of(request.url.path))
    field = ".".join(str(x) for x in first["loc"][1:])
    return refusal(RefusedError(422, f"{field}: {first['msg']}", field=field), door_of(request.url.path))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    answer = refusal(RefusedError(error.status_code, str(error.detail)), door_of(request.url.path))
    answer.headers.update(error.headers or {})
    return answer


async def _no_database(request: Request, error: Exception) -> Response:
    logging.getLogger("ip2p.serve").error("database", extra={"error": first_line(error)})
    return refusal(RefusedError(503, "the history cannot be reached now; come again later"), door_of(request.url.path))


class _JsonLines(logging.Formatter):
    """A JSON object a line: time, level, event, and what was said of it; no pixels, no texts of clients, no keys."""

    def format(self, record: logging.LogRecord) -> str:
        told: dict[str, Any] = {"time": round(record.created, 3), "level": record.levelname.lower(), "event": record.getMessage()}
        told |= {k: v for k, v in vars(record).items() if k not in _PLAIN}
        if record.exc_info:
            told["error"] = self.formatException(record.exc_info)
        return json.dumps(told, default=str)


def _server(app: FastAPI, config: Any) -> Any:
    """A server that notes when it was asked to end: waiting for connections and for edits share the seconds to drain."""
    import uvicorn

    class Noting(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            app.state.ended = time.monotonic()
            super().handle_exit(sig, frame)

    return Noting(config)


def serve(params: Params) -> None:
    """Serve until SIGTERM or SIGINT. Raises `ParamsError` for a public address without keys, or one that is taken."""
    section = params.serve
    give_up_soon()  # a server that starts serves what it served last meanwhile, and one that serves looks again anyway
    live_long()
    keys = tuple(k.strip() for k in os.environ.get("IP2P_API_KEYS", "").split(",") if k.strip())
    if section.host not in _LOOPBACK and not keys:
        raise ParamsError(f"serve.host: {section.host} can be reached by others; set IP2P_API_KEYS in the environment, or take 127.0.0.1")
    if section.editor is not None and isinstance(asked := editor_named(section.editor), Path) and not asked.is_dir():
        raise ParamsError(f"serve.editor: no folder {asked}; give an editor's folder, a Hub id, or `world`, the embedded editor")
    if section.editor is not None and isinstance(asked, Path) and not (asked / "unet" / "config.json").is_file():
        raise ParamsError(f"serve.editor: {asked} is no editor's folder, it has no unet/config.json; give one, a Hub id, or `world`")
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    family = socket.AF_INET6 if ":" in section.host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((section.host, section.port))
        listener.listen()
    except (OSError, OverflowError) as error:
        listener.close()
        raise ParamsError(f"serve.port: {section.host}:{section.port} cannot be had ({error}); name another") from error
    app = make_app(params, keys=keys)
    config = configured(app, log_config=None, timeout_graceful_shutdown=1 + int(section.drain_seconds))
    host = f"[{section.host}]" if ":" in section.host else section.host
    print(f"http://{host}:{listener.getsockname()[1]}/", flush=True)
    _server(app, config).run(sockets=[listener])
