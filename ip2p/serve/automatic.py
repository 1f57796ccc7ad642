"""The door for AUTOMATIC1111's clients: the part of `/sdapi/v1` that editors use, and `/instruct-pix2pix/img2img`.

`prompt` is the instruction, `cfg_scale` s_T, `image_cfg_scale` s_I; a mask is white where to edit or, if it is transparent anywhere,
opaque there. Of the some 40 fields that clients send, those not read here (negative prompt, denoising strength, hires, restore faces,
scripts, override settings, …) are ignored.
"""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from PIL import Image, ImageOps
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from ip2p.sampler import Solver
from ip2p.serve.desk import MAX_AT_ONCE, OUTPUT_SIDES, Ask, Desk, parameters_of
from ip2p.serve.intake import RefusedError, from_base64, read_upload, to_png

router = APIRouter(tags=["automatic1111"])
SAMPLERS: dict[str, Solver] = {"Euler a": "euler_ancestral", "DPM++ 2M": "dpmpp_2m"}
_ECHOED = ("prompt", "cfg_scale", "image_cfg_scale", "steps", "seed", "sampler_name", "batch_size", "n_iter", "width", "height")
"""Fields that are read and told back as `parameters`."""
_LARGEST = 2**63 - 1
_PARTS = 20_000
"""Commas and brackets of a body; clients send some hundred."""
_WORDS = {"instruction": "prompt", "text_guidance": "cfg_scale", "image_guidance": "image_cfg_scale", "n": "batch_size"}
"""What its clients call our fields."""
_EXTENSION = {"text_cfg": "cfg_scale", "image_cfg": "image_cfg_scale", "sampler": "sampler_name", "output_batches": "n_iter"}
"""What the extension calls the same."""
_BODY = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["init_images", "prompt"],
                "properties": {
                    "init_images": {"type": "array", "items": {"type": "string"}, "minItems": 1},
                    "prompt": {"type": "string"},
                    "mask": {"type": "string", "nullable": True},
                    "cfg_scale": {"type": "number"},
                    "image_cfg_scale": {"type": "number"},
                    "steps": {"type": "integer"},
                    "seed": {"type": "integer"},
                    "sampler_name": {"type": "string"},
                    "batch_size": {"type": "integer"},
                    "n_iter": {"type": "integer"},
                    "width": {"type": "integer"},
                    "height": {"type": "integer"},
                },
            }
        }
    },
}


def error_body(error: RefusedError) -> dict[str, Any]:
    """As AUTOMATIC1111 tells errors."""
    error = error.worded(_WORDS)
    return {"error": type(error).__name__, "detail": str(error), "body": "", "errors": str(error)}


@router.post("/sdapi/v1/img2img", openapi_extra={"requestBody": _BODY}, response_model=None)
async def img2img(request: Request) -> Response:
    """Edit the first of `init_images`."""
    echoed, images, info = await _edited(await _json(request), request)
    return await _answer(request, {"images": images, "parameters": echoed, "info": json.dumps(info)})


@router.post("/instruct-pix2pix/img2img", openapi_extra={"requestBody": _BODY}, response_model=None)
async def instruct_pix2pix(request: Request) -> Response:
    """The same in the extension's words: scales, sampler and count have other names, seeds are drawn, a width names the size."""
    told = await _json(request)
    told |= {usual: told[own] for own, usual in _EXTENSION.items() if own in told} | ({"seed": -1} if told.get("randomize_seed") else {})
    _, images, info = await _edited(told, request)
    return await _answer(request, {"images": images, "info": json.dumps(info), "prompt": info["prompt"]})


@router.get("/sdapi/v1/scripts")
async def scripts() -> dict[str, Any]:
    """None."""
    return {"txt2img": [], "img2img": []}


@router.get("/sdapi/v1/sd-models")
async def sd_models(request: Request) -> list[dict[str, Any]]:
    """The registered versions."""
    desk: Desk = request.app.state.desk
    known = await run_in_threadpool(desk.champion.versions)
    titles = [f"{desk.params.register_.name}:{n}" for n in known]
    return [{"title": t, "model_name": t, "hash": None, "sha256": None, "filename": t, "config": None} for t in titles]


@router.get("/sdapi/v1/options")
async def options(request: Request) -> dict[str, Any]:
    """The served version."""
    desk: Desk = request.app.state.desk
    served = desk.champion.served
    return {"sd_model_checkpoint": f"{desk.params.register_.name}:{served.version}" if served else None}


@router.post("/sdapi/v1/options")
async def set_options() -> dict[str, Any]:
    """Nothing can be set: the registry says which version is served."""
    return {}


@router.get("/sdapi/v1/progress")
async def progress(request: Request) -> dict[str, Any]:
    """How much is under way; `progress` is the mean of the edits under way, the step that of the one furthest on."""
    engine = request.app.state.desk.engine
    waiting, running = engine.load
    steps = engine.steps
    step, of = max(steps, key=lambda x: x[0] / x[1], default=(0, 0))
    share = sum(done / of for done, of in steps) / len(steps) if steps else 0.0
    state = {"skipped": False, "interrupted": False, "job": "", "job_count": waiting + running, "job_timestamp": "0", "job_no": 0}
    state |= {"sampling_step": step, "sampling_steps": of}
    return {"progress": share, "eta_relative": 0.0, "state": state, "current_image": None, "textinfo": None}


@router.get("/sdapi/v1/samplers")
async def samplers() -> list[dict[str, Any]]:
    """Those that the editor knows."""
    return [{"name": n, "aliases": [s], "options": {}} for n, s in SAMPLERS.items()]


@router.get("/sdapi/v1/schedulers")
async def schedulers() -> list[dict[str, Any]]:
    """One."""
    return [{"name": "automatic", "label": "Automatic", "aliases": None, "default_rho": -1, "need_inner_model": False}]


@router.post("/sdapi/v1/interrupt")
@router.post("/sdapi/v1/skip")
async def interrupt() -> dict[str, Any]:
    """Does nothing: an edit ends when its client goes away, and nobody ends another's."""
    return {}


async def _edited(told: dict[str, Any], request: Request) -> tuple[dict[str, Any], list[str], dict[str, Any]]:
    desk: Desk = request.app.state.desk
    size, width = _size(told), _side(told, "output_image_width")
    ask, count = await desk.by_hand(_asked, told, desk)
    echoed = {k: told[k] for k in _ECHOED if k in told}
    told.clear()  # pictures among it, which are not held while their edits wait
    if width is not None:
        size = width, max(OUTPUT_SIDES[0], min(OUTPUT_SIDES[1], round(width * ask.picture.height / ask.picture.width)))
    jobs = await desk.jobs(ask, count, size=size)
    name = desk.params.register_.name
    made = await desk.pictures(jobs, request, door="automatic1111", encode=lambda x, row: _encoded(x, size, parameters_of(row, name)))
    images = [x for _, x in made]
    seeds = [row.seed for row, _ in made]
    first = made[0][0]
    info = {
        "prompt": ask.instruction,
        "all_prompts": [ask.instruction] * count,
        "seed": seeds[0],
        "all_seeds": seeds,
        "cfg_scale": first.text_guidance,
        "image_cfg_scale": first.image_guidance,
        "steps": first.steps,
        "sampler_name": next(n for n, s in SAMPLERS.items() if s == first.solver),
        "sd_model_name": f"{name}:{first.version}",
        "infotexts": [parameters_of(row, name) for row, _ in made],
    }
    return echoed, images, info


def _encoded(picture: Image.Image, size: tuple[int, int] | None, parameters: str) -> str:
    sized = picture if size is None else picture.resize(size, Image.Resampling.LANCZOS)
    return base64.b64encode(to_png(sized, parameters)).decode()


async def _json(request: Request) -> dict[str, Any]:
    desk: Desk = request.app.state.desk
    body = b"".join([chunk async for chunk in request.stream()])  # unlike `request.json` the request does not keep it
    try:
        told = await desk.by_hand(_parsed, body)
    except (ValueError, UnicodeDecodeError, RecursionError) as error:
        raise RefusedError(422, "not JSON") from error
    if not isinstance(told, dict):
        raise RefusedError(422, "give a JSON object")
    return told


def _parsed(body: bytes) -> Any:
    """What a body says. Raises `RefusedError` for one of so many parts that they would take a hundred times its bytes."""
    if sum(body.count(c) for c in b",[{") > _PARTS:
        raise RefusedError(422, f"more than {_PARTS:,} parts; send what an edit needs")
    return json.loads(body)


async def _answer(request: Request, told: dict[str, Any]) -> Response:
    """An answer with pictures, written in a thread."""
    desk: Desk = request.app.state.desk
    return Response(await desk.by_hand(json.dumps, told), media_type="application/json")


def _asked(told: dict[str, Any], desk: Desk) -> tuple[Ask, int]:
    images, most = told.get("init_images"), desk.params.serve.max_pixels
    if not isinstance(images, list) or not images:
        raise RefusedError(404, "Init image not found", field="init_images")
    picture = read_upload(from_base64(images[0], field="init_images"), field="init_images", max_pixels=most)
    sampler = told.get("sampler_name") or told.get("sampler_index") or "Euler a"
    if not isinstance(sampler, str) or sampler not in SAMPLERS:
        raise RefusedError(400, f"Sampler not found; give {' or '.join(SAMPLERS)}", field="sampler_name")
    mask = None
    if told.get("mask"):
        mask = _mask(read_upload(from_base64(told["mask"], field="mask"), field="mask", max_pixels=most))
        mask = ImageOps.invert(mask) if told.get("inpainting_mask_invert") else mask
    count = (_whole(told, "batch_size") or 1) * (_whole(told, "n_iter") or 1)
    if not 1 <= count <= MAX_AT_ONCE:
        raise RefusedError(400, f"batch_size × n_iter: {count} is out of range, give 1 to {MAX_AT_ONCE}", field="batch_size")
    prompt, seed = told.get("prompt"), _whole(told, "seed")
    if not isinstance(prompt, str):
        raise RefusedError(422, "prompt: say what to change", field="prompt")
    ask = Ask(
        picture,
        prompt,
        mask,
        text_guidance=_number(told, "cfg_scale"),
        image_guidance=_number(told, "image_cfg_scale"),
        steps=_whole(told, "steps"),
        seed=None if seed == -1 else seed,
        solver=SAMPLERS[sampler],
    )
    return (ask if mask is None or mask.size == picture.size else replace(ask, mask=mask.resize(picture.size))), count


def _mask(picture: Image.Image) -> Image.Image:
    """White where to edit; of a mask with transparency the opaque part, whatever its colour, as AUTOMATIC1111 reads it."""
    alpha = picture.getchannel("A") if "A" in picture.getbands() else None
    if alpha is None or alpha.getextrema() == (255, 255):
        return picture.convert("L")
    return alpha.point(lambda v: 255 if v > 128 else 0)


def _number(told: dict[str, Any], name: str) -> float | None:
    value = told.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _LARGEST:
        raise RefusedError(422, f"{name}: give a number", field=name)
    return float(value)


def _whole(told: dict[str, Any], name: str) -> int | None:
    value = _number(told, name)
    if value is None:
        return None
    if value != int(value):
        raise RefusedError(422, f"{name}: give a whole number", field=name)
    return int(told[name])


def _size(told: dict[str, Any]) -> tuple[int, int] | None:
    """The size that the client names, as AUTOMATIC1111 gives it back."""
    width, height = _side(told, "width"), _side(told, "height")
    return None if width is None or height is None else (width, height)


def _side(told: dict[str, Any], name: str) -> int | None:
    side = _whole(told, name)
    if side is not None and not OUTPUT_SIDES[0] <= side <= OUTPUT_SIDES[1]:
        raise RefusedError(400, f"{name}: give {OUTPUT_SIDES[0]} to {OUTPUT_SIDES[1]}", field=name)
    return side
