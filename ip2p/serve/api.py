"""Our own door, `/api/v1`, which the page uses too: edits as jobs with live progress, history, versions, feedback."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal, get_args

from fastapi import APIRouter, Path, Query, Request
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response, StreamingResponse

from ip2p.errors import DataError
from ip2p.model.guidance import MAX_SCALE
from ip2p.pictures import open_picture, painted
from ip2p.serve import metrics
from ip2p.serve.board import Board
from ip2p.serve.desk import MAX_INSTRUCTION, Ask, Desk, parameters_of, server_event, voter_of
from ip2p.serve.forms import FILE, form_of, form_schema, number_of, text_of, upload_of, whole_of
from ip2p.serve.history import EditRow, Reason, UnknownEditError
from ip2p.serve.intake import RefusedError, read_upload, to_png, with_parameters
from ip2p.serve.jobs import Job

router = APIRouter(prefix="/api/v1", tags=["ip2p"])
_HEX = "^[0-9a-f]{32}$"
Id = Annotated[str, Path(pattern=_HEX)]
_EditId = Annotated[str, Field(pattern=_HEX)]
_TEXT = r"^[^\x00-\x08\x0b-\x1f]*$"
_ONE_CLICK = (
    ("Season", ("make it spring", "make it summer", "make it autumn", "make it winter")),
    ("Time", ("make it day", "make it sunset", "make it night")),
    ("Weather", ("make it rainy", "make it snowy", "make it foggy", "make it clear")),
    ("Style", ("make it a watercolour", "make it a pencil sketch", "make it pop art", "make it pixel art")),
)
_SCALE = {"type": "number", "minimum": 0, "maximum": MAX_SCALE}
_FORM = form_schema(
    required=["image", "instruction"],
    properties={
        "image": FILE,
        "mask": FILE | {"description": "white where to edit"},
        "instruction": {"type": "string", "minLength": 1, "maxLength": MAX_INSTRUCTION},
        "text_guidance": _SCALE,
        "image_guidance": _SCALE,
        "steps": {"type": "integer", "minimum": 2},
        "seed": {"type": "integer", "minimum": 0},
        "version": {"type": "string"},
    },
)


class _Vote(BaseModel):
    model_config = ConfigDict(extra="forbid")
    edit: _EditId
    reason: Reason | None = None
    comment: Annotated[str, Field(max_length=500, pattern=_TEXT)] = ""


class Thumb(_Vote):
    """What somebody thinks of one edit."""

    kind: Literal["thumb"]
    value: Literal[1, -1]


class Choice(_Vote):
    """Which of two edits of one picture by one instruction is better: 1 the first, -1 the other, 0 neither."""

    kind: Literal["pair"]
    other: _EditId
    value: Literal[1, 0, -1]


def error_body(error: RefusedError) -> dict[str, Any]:
    """One message, the field to blame, a code."""
    return {"error": {"message": str(error), "field": error.field, "code": error.code}}


@router.get("/status")
async def status(request: Request) -> dict[str, Any]:
    """What is served, with which defaults and limits, and the edits that one click does."""
    desk: Desk = request.app.state.desk
    served, section, (waiting, running) = desk.champion.served, desk.params.serve, desk.engine.load
    told: dict[str, Any] = {"ready": served is not None, "model": desk.params.register_.name, "waiting": waiting, "running": running}
    told["limits"] = {"pixels": section.max_pixels, "megabytes": section.max_megabytes, "steps": section.max_steps}
    told["one_click"] = [{"name": name, "instructions": list(texts)} for name, texts in _ONE_CLICK]
    told["reasons"] = list(get_args(Reason))
    if served is not None:
        told["version"] = served.version
        told["defaults"] = {
            "text_guidance": served.text_guidance,
            "image_guidance": served.image_guidance,
            "steps": served.defaults.steps,
        }
    return told


@router.get("/versions")
async def versions(request: Request) -> dict[str, Any]:
    """All versions with their aliases, newest first."""
    desk: Desk = request.app.state.desk
    known = await run_in_threadpool(desk.champion.versions)
    return {"versions": [{"version": n, "aliases": list(a)} for n, a in known.items()]}


@router.post("/edits", status_code=202, openapi_extra=_FORM, response_model=None)
async def ask(request: Request) -> Response:
    """Ask for an edit; `GET /edits/ID/events` tells how far it is."""
    desk: Desk = request.app.state.desk
    board: Board = request.app.state.board
    async with form_of(request) as form:
        data, cover = await upload_of(form, "image"), await upload_of(form, "mask")
        if data is None:
            raise RefusedError(400, "image: missing, send the picture as a file", field="image")
        most = desk.params.serve.max_pixels
        asked = Ask(
            await desk.by_hand(read_upload, data, field="image", max_pixels=most),
            text_of(form, "instruction") or "",
            None if cover is None else await desk.by_hand(_mask, cover, most),
            text_guidance=number_of(form, "text_guidance"),
            image_guidance=number_of(form, "image_guidance"),
            steps=whole_of(form, "steps"),
            seed=whole_of(form, "seed"),
            version=text_of(form, "version"),
            previews=4,
        )
    job, *_ = await desk.jobs(asked)
    desk.submit([job], request)
    board.put(job, desk)
    return JSONResponse(_told(job), status_code=202, headers={"Location": f"/api/v1/edits/{job.id}"})


@router.get("/edits")
async def edits(
    request: Request,
    before: Annotated[float | None, Query(ge=0, le=1e12)] = None,
    count: Annotated[int, Query(ge=1, le=200)] = 50,
) -> dict[str, Any]:
    """Edits that were made, newest first."""
    desk: Desk = request.app.state.desk
    return {"edits": [_row(r) for r in await run_in_threadpool(lambda: desk.history.edits(before=before, count=count))]}


@router.get("/edits/{id}")
async def edit(request: Request, id: Id) -> dict[str, Any]:
    """How far an edit is, and what it was asked for with."""
    job: Job | None = request.app.state.board.job(id)
    state = request.app.state
    return await _settled(state.desk, state.board, job) if job is not None else _row(await _known(request, id))


@router.delete("/edits/{id}")
async def cancel(request: Request, id: Id) -> dict[str, Any]:
    """Give an edit up: it ends at its next step."""
    job: Job | None = request.app.state.board.job(id)
    if job is None:
        return _row(await _known(request, id))
    state = request.app.state
    state.desk.engine.cancel(job)
    return await _settled(state.desk, state.board, job)


@router.get("/edits/{id}/events", response_model=None)
async def events(request: Request, id: Id) -> Response:
    """Progress as server-sent events: `progress` (with previews), then `done`, `cancelled` or `failed`."""
    if (job := request.app.state.board.job(id)) is None:
        return Response(server_event("done", _row(await _known(request, id))), media_type="text/event-stream")
    return StreamingResponse(_events(request.app.state.desk, request.app.state.board, job), media_type="text/event-stream")


@router.get("/edits/{id}/{what}", response_model=None)
async def picture(
    request: Request, id: Id, what: Literal["picture", "source", "mask"], side: Annotated[int | None, Query(ge=16, le=1024)] = None
) -> Response:
    """The edited picture, with its parameters inside, its source, or its mask, as PNG; no side longer than `side` pixels."""
    desk: Desk = request.app.state.desk
    row = await _known(request, id)
    name = getattr(row, what)
    if name is None:
        raise RefusedError(404, f"edit {id}: has no mask", field="what")
    headers = {"Cache-Control": "private, max-age=31536000, immutable"}
    try:
        data = await run_in_threadpool(desk.history.picture_path(name).read_bytes)
    except FileNotFoundError as error:  # forgotten meanwhile
        raise RefusedError(404, f"edit {id}: its {what} is not to be had", field="id") from error
    if side is not None:
        data = await desk.by_hand(_small, data, side)
    elif what == "picture":
        data = await desk.by_hand(with_parameters, data, parameters_of(row, desk.params.register_.name))
    return Response(data, media_type="image/png", headers=headers)


@router.post("/feedback", status_code=201)
async def feedback(request: Request, vote: Annotated[Thumb | Choice, Field(discriminator="kind")]) -> dict[str, Any]:
    """Store a thumb or a choice; it is on disk when the answer comes."""
    desk: Desk = request.app.state.desk
    voter = voter_of(request.scope.get("ip2p.key"), request.client.host if request.client else "")
    told = vote.model_dump() | {"other": getattr(vote, "other", None), "voter": voter}
    try:
        row = await run_in_threadpool(lambda: desk.history.vote(**told))
    except UnknownEditError as error:
        raise RefusedError(404, str(error), field="edit") from error
    except DataError as error:
        raise RefusedError(409, str(error), field="edit") from error
    metrics.VOTES.labels(vote.kind).inc()
    return {"id": row.id}


async def _settled(desk: Desk, board: Board, job: Job) -> dict[str, Any]:
    """How far a job is; it is done once its edit can be fetched and judged."""
    told = _told(job)
    if told["state"] != "done":
        return told
    await board.stored(job)
    row = await run_in_threadpool(desk.history.edit, job.id)
    return _told(job) if row is None else _row(row)


async def _known(request: Request, id: str) -> EditRow:
    desk: Desk = request.app.state.desk
    row = await run_in_threadpool(desk.history.edit, id)
    if row is None:
        raise RefusedError(404, f"edit {id}: not known", field="id")
    return row


def _told(job: Job) -> dict[str, Any]:
    request = job.request
    return {
        "id": job.id,
        "state": job.state,
        "step": job.step,
        "steps": job.options.steps,
        "version": job.version,
        "instruction": request.instruction,
        "text_guidance": request.text_guidance,
        "image_guidance": request.image_guidance,
        "seed": request.seed,
    }


def _row(row: EditRow) -> dict[str, Any]:
    made = ("id", "created", "version", "editor", "width", "height", "mask")
    asked = ("instruction", "text_guidance", "image_guidance", "steps", "seed")
    return {"state": "done", "step": row.steps, **{n: getattr(row, n) for n in made + asked}}


def _mask(data: bytes, most: int) -> Image.Image:
    return painted(read_upload(data, field="mask", max_pixels=most))


def _small(png: bytes, side: int) -> bytes:
    small = open_picture(png, where="picture", alpha=True)
    small.thumbnail((side, side))
    return to_png(small)


async def _events(desk: Desk, board: Board, job: Job) -> AsyncIterator[str]:
    async for _, preview in desk.progress(job):
        told = _told(job)
        if preview is not None:
            told["preview"] = base64.b64encode(await run_in_threadpool(to_png, preview)).decode()
        yield server_event("progress", told)
    told = await _settled(desk, board, job)
    yield server_event(told["state"], told)
