import io
import struct

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, PngImagePlugin

from ip2p.errors import DataError
from ip2p.pictures import from_bytes, open_picture, painted, standard, to_png


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


@pytest.mark.parametrize("odd", [(0x103, 4, 70000), (0x100, 9, -5), (0x112, 2, 6), (0x8769, 4, 2**31 - 1)])
def test_a_value_of_exif_that_could_not_be_written_costs_no_picture(odd):
    tag, kind, value = odd
    turned, strange = struct.pack("<HHIHH", 0x112, 3, 1, 6, 0), struct.pack("<HHIi", tag, kind, 1, value)
    entries = [strange] if tag == 0x112 else [turned, strange]
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + b"".join(entries) + b"\0\0\0\0"
    whole = open_picture(encoded(Image.new("RGB", (20, 10)), "JPEG", exif=exif), where="x")
    assert whole.size == ((10, 20) if tag != 0x112 else (20, 10))
    assert standard(whole).size == whole.size  # turned once


@pytest.mark.parametrize("data", [b"", b"<svg/>", encoded(Image.effect_noise((50, 50), 90))[:200]])
def test_damaged_pictures_are_named(data):
    with pytest.raises(DataError, match="row 3: not a whole picture"):
        open_picture(data, where="row 3")


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr("ip2p.pictures.MAX_PIXELS", 100)
    with pytest.raises(DataError, match="at most 100"):
        open_picture(encoded(Image.new("RGB", (20, 20))), where="x")


@pytest.mark.parametrize("format", ["GIF", "PNG", "TIFF", "WEBP"])
def test_of_several_pictures_in_a_file_none_is_taken_for_the_whole(format):
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    with pytest.raises(DataError, match="row 3: holds 2 pictures; give a still one"):
        open_picture(encoded(frames[0], format, save_all=True, append_images=frames[1:]), where="row 3")


def test_a_mask_is_white_where_painted_on_black_or_on_nothing():
    on_black, on_nothing = Image.new("L", (4, 4)), Image.new("RGBA", (4, 4), (255, 255, 255, 0))
    for mask, white in ((on_black, 255), (on_nothing, (255, 255, 255, 255))):
        mask.putpixel((1, 2), white)
    assert painted(on_nothing).tobytes() == painted(on_black.convert("RGB")).tobytes() == on_black.tobytes()


def test_grey_of_16_bits_keeps_its_shades():
    ramp = Image.fromarray(np.array([[0, 257 * 100, 65535]], dtype=np.uint16))
    assert [open_picture(encoded(ramp), where="x").getpixel((i, 0))[0] for i in range(3)] == [0, 100, 255]


def profile(text=b"test"):
    """A colour profile in which red is sRGB's green and green its red."""
    plain = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    tags = {plain[132 + 12 * i :][:4]: 132 + 12 * i + 4 for i in range(int.from_bytes(plain[128:132], "big"))}
    red, green = (plain[tags[n] : tags[n] + 8] for n in (b"rXYZ", b"gXYZ"))
    other = bytearray(plain)
    other[tags[b"rXYZ"] : tags[b"rXYZ"] + 8], other[tags[b"gXYZ"] : tags[b"gXYZ"] + 8] = green, red
    return bytes(other).replace("sRGB".encode("utf-16-be"), text.decode().encode("utf-16-be"))


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_colours_are_those_of_the_pictures_profile(mode):
    red = Image.new(mode, (4, 4), (255, 0, 0, 128)[: len(mode)])
    found = open_picture(encoded(red, icc_profile=profile()), where="x", alpha=True)
    assert np.allclose(found.getpixel((0, 0)), (0, 255, 0, 128)[: len(mode)], atol=3)
    assert "icc_profile" not in found.info


@pytest.mark.parametrize("own", [profile(b"sRGB"), b"damaged", None])
def test_without_another_profile_pixels_stay_bit_for_bit(own):
    noise = Image.effect_noise((16, 16), 90).convert("RGB")
    assert open_picture(encoded(noise, icc_profile=own), where="x").tobytes() == noise.tobytes()


def test_what_a_decoder_raises_is_told_as_bad_data():
    told = PngImagePlugin.PngInfo()
    told.add_text("Comment", "x" * 2**21, zip=True)  # Pillow refuses to unpack it, by a ValueError
    with pytest.raises(DataError, match=r"row 7: not a whole picture \(Decompressed data too large"):
        open_picture(encoded(Image.new("RGB", (8, 8)), pnginfo=told), where="row 7")


def test_formats_that_are_programs_and_numbers_that_are_no_colours_are_refused():
    for image, kind, told in ((Image.new("RGB", (8, 8)), "EPS", "not a whole picture"), (Image.new("F", (8, 8)), "TIFF", "not colours")):
        buffer = io.BytesIO()
        image.save(buffer, kind)
        with pytest.raises(DataError, match=told):
            open_picture(buffer.getvalue(), where="here")
