"""What clients send, made safe: one still PNG, JPEG or WebP and nothing behind it, upright, of bounded size, its metadata dropped.

What the name or the MIME type of an upload says means nothing; the bytes decide.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
import struct
import zlib
from collections.abc import Mapping

from PIL import Image

from ip2p.errors import UserError
from ip2p.pictures import MAX_RATIO, many_frames, standard

_FORMATS = ("PNG", "JPEG", "WEBP")
CHARGE = "ip2p.charge"
"""In the scope of a request for edits: what to call with the number of edits beyond the first."""
PLACES = "ip2p.places"
"""In the scope of a request for edits: whose they are, and how many of them may be under way."""
_AFTER_HEADER = 8 + 25
"""Bytes of a PNG's signature and header."""
_SIDE = 16
"""Shortest side of a picture, pixels."""
_MARKER, _FILLING = re.compile(rb"\xff[^\x00\xd0-\xd7]"), re.compile(rb"\xff+")
_CHUNKS = 10_000
"""Most chunks of a PNG, segments of a JPEG."""
_SCANS = 100
"""Most scans of a JPEG, each of which is a pass over the whole picture; progressive ones have some ten."""


class RefusedError(UserError):
    """What was asked for is refused, with an HTTP status, the field to blame, if any, and the seconds after which it may not be."""

    def __init__(
        self, status: int, message: str, *, field: str | None = None, code: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.field, self.code, self.retry_after = status, field, code, retry_after

    def worded(self, words: Mapping[str, str]) -> RefusedError:
        """The same with the field named as a door's clients name it."""
        ours = self.field or ""
        if ours not in words:
            return self
        message = str(self)
        told = words[ours] + message.removeprefix(ours) if message.startswith(f"{ours}:") else message
        return RefusedError(self.status, told, field=words[ours], code=self.code, retry_after=self.retry_after)


def read_upload(data: bytes, *, field: str, max_pixels: int) -> Image.Image:
    """Decode a picture, in RGB, or RGBA if it has transparency. Raises `RefusedError` (400, 413, 415)."""
    end = _end(data)
    if end is None or not _may_lie_behind(data[end:], jpeg=data.startswith(b"\xff\xd8")):
        kinds = "only whole, still PNG, JPEG and WebP pictures with nothing behind them are accepted"
        raise RefusedError(415, f"{field}: {kinds}", field=field)
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise RefusedError(413, f"{field}: {width}×{height} pixels, at most {max_pixels:,} are accepted", field=field)
            if min(width, height) < _SIDE or max(width, height) > MAX_RATIO * min(width, height):
                told = f"{field}: {width}×{height} pixels; at least {_SIDE} a side, and no side {MAX_RATIO} times the other, are accepted"
                raise RefusedError(400, told, field=field)
            if many_frames(image):
                raise RefusedError(415, f"{field}: animated; give a still picture", field=field)
            image.load()
            upright = standard(image)
    except Image.DecompressionBombError as error:
        raise RefusedError(413, f"{field}: at most {max_pixels:,} pixels are accepted", field=field) from error
    except RefusedError:
        raise
    except Exception as error:  # decoders of hostile files raise whatever they like
        raise RefusedError(400, f"{field}: not a whole picture; give an intact PNG, JPEG or WebP", field=field) from error
    bare = Image.new(upright.mode, upright.size)
    bare.paste(upright)
    return bare


def from_base64(text: object, *, field: str) -> bytes:
    """Bytes of base64, bare or as a `data:` URL. Raises `RefusedError`; any other URL is refused and never fetched."""
    if not isinstance(text, str):
        raise RefusedError(400, f"{field}: give a picture in base64", field=field)
    if text.startswith("data:"):
        text = text.partition(",")[2]
    elif "://" in text[:64]:
        raise RefusedError(400, f"{field}: URLs are not fetched; send the picture itself", field=field)
    try:
        return base64.b64decode("".join(text.split()), validate=True)  # MIME's encoders break lines
    except (binascii.Error, ValueError) as error:
        raise RefusedError(400, f"{field}: not base64", field=field) from error


def to_png(picture: Image.Image, parameters: str | None = None) -> bytes:
    """PNG, with the edit's parameters as its text if they are given."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=3)
    return buffer.getvalue() if parameters is None else with_parameters(buffer.getvalue(), parameters)


def with_parameters(png: bytes, parameters: str) -> bytes:
    """A PNG of `to_png` with the edit's parameters as its text, before its pixels, which stay as they are."""
    body = b"iTXtparameters\0\0\0\0\0" + parameters.encode()
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return png[:_AFTER_HEADER] + chunk + png[_AFTER_HEADER:]


def _end(data: bytes) -> int | None:
    """Where the picture ends in the bytes; None if they do not begin as one."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _end_of_png(data)
    if data.startswith(b"\xff\xd8\xff"):
        return _end_of_jpeg(data)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        size = int.from_bytes(data[4:8], "little") + 8
        return size if size <= len(data) else None
    return None


def _may_lie_behind(tail: bytes, *, jpeg: bool) -> bool:
    """Whether what lies behind a picture is nothing but filling, or, behind a JPEG, what telephones put there."""
    return not tail.strip(b"\0\r\n ") or (jpeg and _is_telephones(tail))


def _is_telephones(tail: bytes) -> bool:
    """Whether telephones put behind a JPEG what lies there: Samsung's notes (`SEFH` … `SEFT`), or a film of the moment, as MP4's boxes.

    Nobody here reads it, and it is not kept.
    """
    if tail.endswith(b"SEFT"):
        length = int.from_bytes(tail[-8:-4], "little")
        return length <= len(tail) - 8 and tail[len(tail) - 8 - length :].startswith(b"SEFH")
    at = 0
    for _ in range(_CHUNKS):
        size, kind = int.from_bytes(tail[at : at + 4], "big"), tail[at + 4 : at + 8]
        if size == 1:
            size = int.from_bytes(tail[at + 8 : at + 16], "big")
        if size < 8 or (at == 0 and kind != b"ftyp"):
            return False
        at += size
        if at >= len(tail):
            return at == len(tail)
    return False


def _end_of_png(data: bytes) -> int | None:
    at = 8
    for _ in range(_CHUNKS):
        if at + 12 > len(data):
            return None
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if kind == b"acTL":  # animated
            return None
        at += 12 + length
        if kind == b"IEND":
            return at
    return None


def _end_of_jpeg(data: bytes) -> int | None:
    """Walks markers; pictures that follow the first, as telephones add them, belong to it."""
    at, scans = 2, 0
    for _ in range(_CHUNKS):
        if at + 2 > len(data) or data[at] != 0xFF:
            return None
        kind = data[at + 1]
        if kind == 0xFF:  # filling
            at = _FILLING.match(data, at).end() - 1  # type: ignore[union-attr]
        elif kind == 0xD9:
            at += 2
            if data[at : at + 3] != b"\xff\xd8\xff":
                return at
            at += 2
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
            if kind == 0xDA:
                at, scans = _after_scan(data, at), scans + 1
                if scans > _SCANS:
                    return None
    return None


def _after_scan(data: bytes, at: int) -> int:
    """The first marker after entropy-coded data."""
    found = _MARKER.search(data, at)
    return found.start() if found else len(data)
