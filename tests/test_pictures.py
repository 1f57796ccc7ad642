import io

import pytest
import torch
from PIL import Image

from ip2p.errors import DataError
from ip2p.pictures import from_bytes, open_picture, to_png


def encoded(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def test_png_round_trip_is_exact_for_8_bit_values():
    image = torch.randint(0, 256, (3, 8, 8)).float() / 255
    assert torch.equal(from_bytes(to_png(image), where="x"), image)


def test_orientation_is_applied_and_transparency_lies_on_white():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert open_picture(encoded(Image.new("RGB", (20, 10)), "JPEG", exif=exif.tobytes()), where="x").size == (10, 20)
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert open_picture(encoded(clear), where="x").getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("data", [b"", b"<svg/>", encoded(Image.effect_noise((50, 50), 90))[:200]])
def test_damaged_pictures_are_named(data):
    with pytest.raises(DataError, match="row 3: not a whole picture"):
        open_picture(data, where="row 3")


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr("ip2p.pictures.MAX_PIXELS", 100)
    with pytest.raises(DataError, match="at most 100"):
        open_picture(encoded(Image.new("RGB", (20, 20))), where="x")
