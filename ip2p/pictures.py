"""Pictures between files and tensors: PNG bytes ↔ uint8 ↔ images_BCHW in [0, 1]."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError
from torch import Tensor

from ip2p.errors import DataError
from ip2p.store import write_bytes

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""What is decoded: no formats that are programs (EPS), nor any that some plug-in brings."""
MAX_PIXELS = 64_000_000
MAX_RATIO = 32
"""Greatest ratio of the sides of a picture that is edited."""
MAX_WEBP = 16383
"""Most pixels a side of a WebP file."""
_VISIBLE = 0.06
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes a picture upright whose EXIF has this orientation."""


def resized(image_CHW: Tensor, size: int) -> Tensor:
    """An image in [0, 1] as a square of that side."""
    if image_CHW.shape[-2:] == (size, size):
        return image_CHW
    return F.interpolate(image_CHW[None], size=(size, size), mode="bicubic", antialias=True)[0].clamp(0, 1)


def to_png(image_CHW: Tensor) -> bytes:
    """PNG of an image in [0, 1]."""
    return encoded(to_pillow(image_CHW))


def encoded(picture: Image.Image) -> bytes:
    """PNG of a picture."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def write_picture(picture: Image.Image, path: Path, **options: Any) -> None:
    """Write a picture in the format of the path's ending, whole or not at all. Raises `UserError` if the disk takes no more."""
    buffer = io.BytesIO()
    picture.save(buffer, Image.registered_extensions()[path.suffix.lower()], **options)
    write_bytes(path, buffer.getvalue())


def to_jpeg(data: bytes, *, where: str) -> bytes:
    """An encoded picture as JPEG of quality 95, colours at full resolution."""
    buffer = io.BytesIO()
    open_picture(data, where=where).save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def change_mask(before: bytes, after: bytes, *, where: str) -> bytes:
    """PNG of a picture, transparent where another of its size differs visibly (by more than 6% of the range), as MagicBrush has masks."""
    first, second = (from_bytes(x, where=where) for x in (before, after))
    kept = (first - second).abs().mean(0) <= _VISIBLE
    picture = to_pillow(first)
    picture.putalpha(Image.fromarray(kept.mul(255).to(torch.uint8).numpy()))
    return encoded(picture)


def to_pillow(image_CHW: Tensor) -> Image.Image:
    """8-bit RGB picture of an image in [0, 1]."""
    array = image_CHW.detach().clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(array)


def from_pillow(image: Image.Image) -> Tensor:
    """Image `CHW` in [0, 1] of a picture."""
    return torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1).float().div(255)


def from_bytes(data: bytes, *, where: str) -> Tensor:
    """Image `CHW` in [0, 1] of an encoded picture. Raises `DataError` naming `where` if it is damaged or too large."""
    return from_pillow(open_picture(data, where=where))


def open_picture(data: bytes, *, where: str, alpha: bool = False) -> Image.Image:
    """Decode a picture, upright, in RGB with transparency over white, or with `alpha` in RGBA if it has any."""
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if image.mode == "F":
                raise DataError(f"{where}: holds numbers of any size, not colours; give a PNG, JPEG or WebP")
            if image.width * image.height > MAX_PIXELS:
                raise DataError(f"{where}: {image.width}×{image.height} pixels, at most {MAX_PIXELS} are accepted")
            if many_frames(image):
                raise DataError(f"{where}: holds {image.n_frames} pictures; give a still one")  # type: ignore[attr-defined]
            image.load()
            whole = standard(image)
    except UnidentifiedImageError as error:
        raise DataError(f"{where}: not a whole picture; give an intact PNG, JPEG or WebP") from error
    except DataError:
        raise
    except Exception as error:  # whatever a decoder raises of bytes from outside: OSError, SyntaxError, ValueError, struct.error
        raise DataError(f"{where}: not a whole picture ({error}); give an intact PNG, JPEG or WebP") from error
    return whole if alpha else on_white(whole)


def many_frames(image: Image.Image) -> bool:
    """Whether an opened file is an animation or has pages; MPO, a telephone's JPEG with a second view, counts as still."""
    return getattr(image, "n_frames", 1) > 1 and image.format != "MPO"


def _upright(image: Image.Image) -> Image.Image:
    """The picture turned as its EXIF says, if that can be read; EXIF is never written again, for some of it may be what no one could."""
    try:
        said = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # bytes from outside: struct.error, SyntaxError, ValueError
        said = None
    if said not in _TURNS:
        return image
    turned = image.transpose(_TURNS[said])
    for name in ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"):  # each would turn it again
        turned.info.pop(name, None)
    return turned


def standard(image: Image.Image) -> Image.Image:
    """A decoded picture upright, in sRGB of 8 bits: RGB, or RGBA if it has transparency."""
    upright = _upright(image)
    if upright.mode.startswith("I"):  # grey of 16 bits, which Pillow would cut off at 255
        upright = Image.fromarray((np.asarray(upright) / 257).round().clip(0, 255).astype(np.uint8))
    if "A" not in upright.getbands() and "transparency" not in upright.info:
        return _in_srgb(upright)
    clear = upright.convert("RGBA")
    colours = _in_srgb(clear.convert("RGB"))
    colours.putalpha(clear.getchannel("A"))
    return colours


def _in_srgb(image: Image.Image) -> Image.Image:
    """A picture without transparency in sRGB, by the colour profile that it carries (a telephone's is Display P3); without one as it is."""
    profile = image.info.get("icc_profile")
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if "sRGB" not in ImageCms.getProfileDescription(source):
                colours = image if image.mode in ("L", "CMYK") else image.convert("RGB")
                image = ImageCms.profileToProfile(colours, source, ImageCms.createProfile("sRGB"), outputMode="RGB") or image
        except (ImageCms.PyCMSError, OSError):  # a profile that is damaged, or of another kind of picture, says nothing
            pass
    plain = image.convert("RGB")
    plain.info.pop("icc_profile", None)
    return plain


def on_white(picture: Image.Image) -> Image.Image:
    """A picture in RGB; what was transparent is white."""
    if "A" not in picture.getbands():
        return picture.convert("RGB")
    rgba = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def painted(mask: Image.Image) -> Image.Image:
    """A mask, white where to edit, as greys `L`; where it is transparent nothing is painted, and so nothing is edited."""
    if "A" not in mask.getbands():
        return mask.convert("L")
    rgba = mask.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "black"), rgba).convert("L")


def read_picture(path: Path, *, alpha: bool = False) -> Image.Image:
    """Read a picture file. Raises `DataError` if it is missing or damaged."""
    try:
        return open_picture(path.read_bytes(), where=str(path), alpha=alpha)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give a picture file") from error


def grid(rows: Sequence[Sequence[Image.Image]], *, gap: int = 4) -> Image.Image:
    """Pictures of one size in rows, on white."""
    width, height = rows[0][0].size
    columns = max(len(r) for r in rows)
    sheet = Image.new("RGB", (columns * (width + gap) - gap, len(rows) * (height + gap) - gap), "white")
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            sheet.paste(image, (x * (width + gap), y * (height + gap)))
    return sheet
