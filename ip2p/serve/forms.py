"""Form fields of multipart requests, read within bounds and as what they are meant to be."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request

from ip2p.serve.intake import RefusedError

_FILES, _FIELDS, _PART = 4, 48, 256 * 1024


FILE = {"type": "string", "format": "binary"}


def form_schema(*, required: list[str], properties: dict[str, Any]) -> dict[str, Any]:
    """How the OpenAPI document describes a multipart form."""
    schema = {"type": "object", "required": required, "properties": properties}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


@asynccontextmanager
async def form_of(request: Request) -> AsyncIterator[FormData]:
    """The request's form. Raises `RefusedError` if it is none, or has too many or too large parts."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("multipart/form-data", "application/x-www-form-urlencoded"):
        raise RefusedError(415, "send a multipart form with the picture as a file")
    try:
        async with request.form(max_files=_FILES, max_fields=_FIELDS, max_part_size=_PART) as form:
            yield form
    except (MultiPartException, HTTPException, UnicodeError, LookupError) as error:
        raise RefusedError(400, f"not a form that can be read: {getattr(error, 'detail', None) or 'broken multipart'}") from error


async def upload_of(form: Mapping[str, Any], *names: str) -> bytes | None:
    """Bytes of the file under one of the names. Raises `RefusedError` for text in its place: URLs are not fetched."""
    for name in names:
        part = form.get(name)
        if isinstance(part, UploadFile):
            return await part.read()
        if isinstance(part, str) and part:
            raise RefusedError(400, f"{name}: send the picture as a file; URLs and text are not accepted", field=name)
    return None


def text_of(form: Mapping[str, Any], *names: str) -> str | None:
    """The first field of these names that is given, without blanks around it."""
    for name in names:
        value = form.get(name)
        if isinstance(value, str) and value.strip():
            return value.strip()
    return None


def number_of(form: Mapping[str, Any], *names: str) -> float | None:
    """The first field of these names as a number. Raises `RefusedError` if it is none."""
    value = text_of(form, *names)
    if value is None:
        return None
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise RefusedError(400, f"{names[0]}: {value[:40]!r} is no number", field=names[0])
    return number


def whole_of(form: Mapping[str, Any], *names: str) -> int | None:
    """The first field of these names as a whole number. Raises `RefusedError` if it is none."""
    value = text_of(form, *names)
    if value is None:
        return None
    try:
        return int(value)
    except ValueError as error:
        raise RefusedError(400, f"{names[0]}: {value[:40]!r} is no whole number", field=names[0]) from error
