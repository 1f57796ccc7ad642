import io
import struct
import zlib

import pytest
from PIL import Image

from ip2p.serve.intake import RefusedError, from_base64, read_upload, to_png, with_parameters
from tests.serve.conftest import png


def read(data, most=10**6):
    return read_upload(data, field="image", max_pixels=most)


def bomb(width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(b"\0" * (height * (width // 8 + 1)), 9)
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def animated(kind):
    buffer = io.BytesIO()
    frames = [Image.new("RGB", (32, 32), c) for c in ("red", "blue")]
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:])
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_still_pictures_are_read_whatever_they_are_called(kind):
    assert read(png(format=kind)).size == (120, 90)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415),
        (b"GIF89a" + b"\0" * 32, 415),
        (b"", 415),
        (png() + b"PK\x03\x04 an archive", 415),
        (png(format="JPEG") + b"<script>alert(1)</script>", 415),
        (png(format="WEBP") + b"<html>", 415),
        (animated("PNG"), 415),
        (animated("WEBP"), 415),
        (png()[:-30], 415),
        (png(format="JPEG")[:300], 415),
        (png().replace(b"IDAT", b"IDAX"), 400),
        (bomb(40_000, 40_000), 413),
        (png((8, 8)), 400),
        (png((2000, 20)), 400),
    ],
)
def test_everything_else_is_refused(data, status):
    with pytest.raises(RefusedError) as refused:
        read(data)
    assert refused.value.status == status


def boxes(*kinds, short=0):
    made = b"".join(struct.pack(">I4s", 24, kind) + bytes(16) for kind in kinds)
    return made + struct.pack(">I4sQ", 1, b"mdat", 40) + bytes(24 - short)


NOTES = b"\0\0\x01\x0a note " + b"SEFH" + bytes(20) + struct.pack("<I", 24) + b"SEFT"


@pytest.mark.parametrize(
    "tail", [NOTES, b"MotionPhoto_Data" + boxes(b"ftyp") + NOTES, boxes(b"ftyp", b"moov"), b"\0" * 9, png(format="JPEG") + NOTES]
)
def test_what_telephones_put_behind_a_photograph_is_passed_over(tail):
    assert read(png(format="JPEG") + tail).size == (120, 90)
    with pytest.raises(RefusedError):  # of other kinds nobody has seen it
        read(png(format="WEBP") + tail.strip(b"\0") + b"x")


@pytest.mark.parametrize(
    "tail",
    [
        NOTES[:-1],
        b"SEFT",
        b"PK\x03\x04" + NOTES[-8:],
        struct.pack("<I", 2**31) + b"SEFT",
        boxes(b"moov"),
        boxes(b"ftyp", short=1),
        boxes(b"ftyp") + b"<html>",
    ],
)
def test_what_only_looks_like_it_is_refused(tail):
    with pytest.raises(RefusedError) as refused:
        read(png(format="JPEG") + tail)
    assert refused.value.status == 415


@pytest.mark.parametrize("filling", [b"\xff\x00", b"\xff\xff", b"\xff\xe0\x00\x02"])
def test_a_hostile_jpeg_is_refused_whatever_it_is_filled_with(filling):
    with pytest.raises(RefusedError):
        read(b"\xff\xd8\xff\xda\x00\x02" + filling * 8_000_000)


def test_a_jpeg_has_scans_within_reason():
    data = png(format="JPEG", progressive=True)
    assert read(data).size == (120, 90)
    scan = b"\xff\xda\x00\x08\x01\x01\x00\x3f\x3f\x00" + b"\0"
    with pytest.raises(RefusedError) as refused:
        read(data[:-2] + scan * 100 + data[-2:])
    assert refused.value.status == 415


def test_parameters_stand_in_a_png_before_its_pixels_which_stay(tmp_path):
    picture = Image.linear_gradient("L").convert("RGBA")
    (tmp_path / "told.png").write_bytes(with_parameters(to_png(picture), "make it “winter”"))
    with Image.open(tmp_path / "told.png") as told:
        assert told.info["parameters"] == "make it “winter”"  # known before the pixels are read
        assert told.tobytes() == picture.tobytes()


def test_a_picture_is_set_upright_and_its_metadata_is_dropped():
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Secret Camera"
    picture = read(png((120, 90), format="JPEG", exif=exif))
    assert picture.size == (90, 120)
    assert not picture.getexif() and not picture.info


def test_transparency_stays():
    assert read(png(color=(1, 2, 3, 4), mode="RGBA")).getpixel((0, 0))[3] == 4


@pytest.mark.parametrize("text", ["http://127.0.0.1/x.png", "https://x/y.png", "file:///etc/passwd", "ftp://x", 5, None, "%%%"])
def test_urls_and_other_texts_are_no_pictures(text):
    with pytest.raises(RefusedError) as refused:
        from_base64(text, field="image")
    assert refused.value.status == 400
