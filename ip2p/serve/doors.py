"""Which door a path belongs to, and a refusal in that door's own form."""

from __future__ import annotations

from starlette.responses import JSONResponse

from ip2p.serve import api, automatic, openai
from ip2p.serve.intake import RefusedError

_FORMS = {"openai": openai.error_body, "automatic1111": automatic.error_body, "api": api.error_body, "page": api.error_body}
_RETRY = 2
"""Seconds after which a refused client may come again, where nothing better is known."""


def door_of(path: str) -> str:
    """openai, automatic1111, api or page."""
    if path.startswith("/v1/"):
        return "openai"
    if path.startswith(("/sdapi/", "/instruct-pix2pix/")):
        return "automatic1111"
    return "api" if path.startswith("/api/") else "page"


def refusal(error: RefusedError, door: str) -> JSONResponse:
    """The answer to a request that is refused."""
    headers = {"Retry-After": str(error.retry_after or _RETRY)} if error.status in (429, 503) else {}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer" if door != "automatic1111" else "Basic"
    return JSONResponse(_FORMS[door](error), status_code=error.status, headers=headers)
