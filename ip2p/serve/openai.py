"""The door for OpenAI's clients: `POST /v1/images/edits` (with streaming) and `GET /v1/models`.

Beyond OpenAI's fields it takes those that other servers of editors take: `seed`, `num_inference_steps`, `guidance_scale` (s_T),
`image_guidance_scale` (s_I). `user`, `quality`, `background`, `input_fidelity`, `negative_prompt` and what is unknown are ignored.
"""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from PIL import Image, ImageOps
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.responses import Response, StreamingResponse

from ip2p.pictures import MAX_WEBP
from ip2p.serve.desk import MAX_AT_ONCE, MAX_INSTRUCTION, OUTPUT_SIDES, Ask, Desk, parameters_of, server_event
from ip2p.serve.forms import FILE, form_of, form_schema, number_of, text_of, upload_of, whole_of
from ip2p.serve.intake import RefusedError, read_upload, to_png
from ip2p.serve.jobs import Job

router = APIRouter(tags=["openai"])
_FORMATS = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}
_WORDS = {
    "instruction": "prompt",
    "text_guidance": "guidance_scale",
    "image_guidance": "image_guidance_scale",
    "steps": "num_inference_steps",
    "version": "model",
}
"""What its clients call our fields."""
_USAGE = {"total_tokens": 0, "input_tokens": 0, "output_tokens": 0, "input_tokens_details": {"text_tokens": 0, "image_tokens": 0}}
_FORM = form_schema(
    required=["image", "prompt"],
    properties={
        "image": FILE,
        "mask": FILE | {"description": "PNG of the picture's size; transparent: edit here"},
        "prompt": {"type": "string", "minLength": 1, "maxLength": MAX_INSTRUCTION},
        "model": {"type": "string"},
        "n": {"type": "integer", "minimum": 1, "maximum": MAX_AT_ONCE},
        "size": {"type": "string"},
        "response_format": {"type": "string", "enum": ["b64_json"]},
        "output_format": {"type": "string", "enum": list(_FORMATS)},
        "output_compression": {"type": "integer", "minimum": 0, "maximum": 100},
        "stream": {"type": "boolean"},
        "partial_images": {"type": "integer", "minimum": 0, "maximum": 3},
        "seed": {"type": "integer"},
        "num_inference_steps": {"type": "integer"},
        "guidance_scale": {"type": "number"},
        "image_guidance_scale": {"type": "number"},
    },
)


@dataclass(frozen=True, slots=True)
class Output:
    """What a client wants its pictures to be: the format, its quality (0 to 100), and a size, if not the picture's own."""

    kind: str
    quality: int
    size: tuple[int, int] | None = None


def error_body(error: RefusedError) -> dict[str, Any]:
    """As OpenAI's clients read errors."""
    error = error.worded(_WORDS)
    kind = {401: "authentication_error", 429: "rate_limit_error"}.get(error.status)
    kind = kind or ("server_error" if error.status >= 500 else "invalid_request_error")
    return {"error": {"message": str(error), "type": kind, "param": error.field, "code": error.code}}


@router.get("/v1/models")
async def models(request: Request) -> dict[str, Any]:
    """The served versions."""
    desk: Desk = request.app.state.desk
    known = await run_in_threadpool(desk.champion.versions)
    name = desk.params.register_.name
    ids = ([name] if desk.champion.served else []) + [f"{name}:{number}" for number in known]
    return {"object": "list", "data": [{"id": i, "object": "model", "created": 0, "owned_by": "ip2p"} for i in ids]}


@router.post("/v1/images/edits", openapi_extra=_FORM, response_model=None)
async def edits(request: Request) -> Response:
    """Edit a picture by its prompt."""
    desk: Desk = request.app.state.desk
    async with form_of(request) as form:
        ask, count = await _asked(form, desk)
        output, stream = _output(form), (text_of(form, "stream") or "false").lower() in ("true", "1")
    if stream and count > 1:
        raise RefusedError(400, "n: streaming gives one picture", field="n")
    if output.kind == "webp" and max(output.size or ask.picture.size) > MAX_WEBP:
        raise RefusedError(400, f"output_format: webp holds {MAX_WEBP:,} pixels a side; take png or jpeg", field="output_format")
    jobs = await desk.jobs(ask, count, size=output.size)
    headers = {"X-Model-Version": jobs[0].version}
    if stream:
        desk.submit(jobs, request)
        gone = BackgroundTask(desk.engine.cancel, jobs[0])  # if the client left before the stream began
        return StreamingResponse(_events(desk, jobs[0], output), media_type="text/event-stream", headers=headers, background=gone)
    name = desk.params.register_.name
    made = await desk.pictures(jobs, request, door="openai", encode=lambda x, row: _encoded(x, output, parameters_of(row, name)))
    data = [{"b64_json": x, "revised_prompt": None} for _, x in made]
    body = await desk.by_hand(json.dumps, {"created": int(time.time()), "data": data, "usage": _USAGE})
    return Response(body, media_type="application/json", headers=headers)


async def _asked(form: FormData, desk: Desk) -> tuple[Ask, int]:
    images = [*form.getlist("image"), *form.getlist("image[]")]
    if len([x for x in images if isinstance(x, UploadFile)]) > 1:
        raise RefusedError(400, "image: one picture at a time is edited", field="image")
    data = await upload_of(form, "image", "image[]")
    if data is None:
        raise RefusedError(400, "image: missing, send the picture as a file", field="image", code="missing_required_parameter")
    prompt = text_of(form, "prompt")
    if prompt is None:
        raise RefusedError(400, "prompt: missing, say what to change", field="prompt", code="missing_required_parameter")
    if (text_of(form, "response_format") or "b64_json") != "b64_json":
        raise RefusedError(400, "response_format: only b64_json; no links to pictures are given out", field="response_format")
    most = desk.params.serve.max_pixels
    picture = await desk.by_hand(read_upload, data, field="image", max_pixels=most)
    cover = await upload_of(form, "mask")
    mask = None if cover is None else await desk.by_hand(_mask, cover, most)
    given = whole_of(form, "n")
    count = 1 if given is None else given
    if not 1 <= count <= MAX_AT_ONCE:
        raise RefusedError(400, f"n: {count} is out of range, give 1 to {MAX_AT_ONCE}", field="n")
    previews = whole_of(form, "partial_images") or 0
    if not 0 <= previews <= 3:
        raise RefusedError(400, f"partial_images: {previews} is out of range, give 0 to 3", field="partial_images")
    ask = Ask(
        picture,
        prompt,
        mask,
        text_guidance=number_of(form, "guidance_scale"),
        image_guidance=number_of(form, "image_guidance_scale", "image_cfg_scale"),
        steps=whole_of(form, "num_inference_steps"),
        seed=whole_of(form, "seed"),
        version=_version(text_of(form, "model"), desk.params.register_.name),
        previews=previews,
    )
    return ask, count


def _version(model: str | None, name: str) -> str | None:
    if model is None or model == name:
        return None
    if model.startswith(f"{name}:"):
        return model.removeprefix(f"{name}:")
    raise RefusedError(404, f"model: {model[:80]!r} is not served; GET /v1/models lists what is", field="model", code="model_not_found")


def _mask(data: bytes, most: int) -> Image.Image:
    """Ours is white where to edit, OpenAI's transparent."""
    picture = read_upload(data, field="mask", max_pixels=most)
    if "A" not in picture.getbands():
        raise RefusedError(400, "mask: has no transparency; where it is transparent is edited", field="mask")
    return ImageOps.invert(picture.getchannel("A"))


def _output(form: FormData) -> Output:
    kind = (text_of(form, "output_format") or "png").lower()
    if kind not in _FORMATS:
        raise RefusedError(400, f"output_format: {kind[:20]!r}; give png, jpeg or webp", field="output_format")
    quality = whole_of(form, "output_compression")
    if quality is not None and not 0 <= quality <= 100:
        raise RefusedError(400, "output_compression: give 0 to 100", field="output_compression")
    size = text_of(form, "size") or "auto"
    if size == "auto":
        return Output(kind, 100 if quality is None else quality)
    sides = [int(s) for s in size.split("x") if s.isdecimal() and len(s) <= 4]
    least, most = OUTPUT_SIDES
    if len(sides) != 2 or size.count("x") != 1 or not all(least <= s <= most for s in sides):
        raise RefusedError(400, f"size: {size[:20]!r}; give auto, or WIDTHxHEIGHT with sides of {least} to {most}", field="size")
    return Output(kind, 100 if quality is None else quality, (sides[0], sides[1]))


def _encoded(picture: Image.Image, output: Output, parameters: str | None = None) -> str:
    sized = picture if output.size is None else picture.resize(output.size, Image.Resampling.LANCZOS)
    if output.kind == "png":
        return base64.b64encode(to_png(sized, parameters)).decode()
    buffer = io.BytesIO()
    (sized.convert("RGB") if output.kind == "jpeg" else sized).save(buffer, _FORMATS[output.kind], quality=max(1, output.quality))
    return base64.b64encode(buffer.getvalue()).decode()


def _previewed(preview: Image.Image, size: tuple[int, int], output: Output) -> str:
    return _encoded(preview.resize(size, Image.Resampling.BICUBIC), output)


async def _events(desk: Desk, job: Job, output: Output) -> AsyncIterator[str]:
    facts = {"size": "auto", "quality": "auto", "background": "auto", "output_format": output.kind}
    try:
        number = 0
        async for _, preview in desk.progress(job):
            if preview is not None:
                data = await desk.by_hand(_previewed, preview, job.picture.size, output)
                told = {"partial_image_index": number, "b64_json": data, "created_at": int(time.time()), **facts}
                yield await desk.by_hand(_event, "image_edit.partial_image", told)
                number += 1
        picture = await desk.ended(job)
        row = await desk.kept(job, picture, "openai")
        data = await desk.by_hand(_encoded, picture, output, parameters_of(row, desk.params.register_.name))
        told = {"b64_json": data, "created_at": int(time.time()), "usage": _USAGE, **facts}
        yield await desk.by_hand(_event, "image_edit.completed", told)
    except RefusedError as error:
        yield _event("error", error_body(error))
    finally:
        desk.engine.cancel(job)


def _event(kind: str, told: dict[str, Any]) -> str:
    return server_event(kind, {"type": kind, **told})
