"""The unmodified `openai` client against the server."""

import base64
import io
import json
import re

import openai
import pytest
from PIL import Image

from tests.serve.conftest import png, ready, running, serving


@pytest.fixture
def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def picture(data):
    return Image.open(io.BytesIO(base64.b64decode(data)))


def apart(first, second):
    """The greatest difference of two pictures' bytes."""
    return max(abs(a - b) for a, b in zip(first, second, strict=True))


def not_stored(server):
    """Edits that the metrics say were not stored."""
    return float(re.search(r"^ip2p_edits_not_stored_total (\S+)$", server.client.get("/metrics").text, re.MULTILINE)[1])


def test_an_edit_comes_back_at_its_size_with_what_makes_it_again(server, client):
    told = client.images.edit(image=("x.png", png()), prompt="make it winter", extra_body={"seed": 7, "num_inference_steps": 2})
    made = picture(told.data[0].b64_json)
    assert made.size == (120, 90)
    parameters = json.loads(made.text["parameters"])
    assert (parameters["seed"], parameters["steps"], parameters["instruction"]) == (7, 2, "make it winter")


def test_several_pictures_have_seeds_that_count_up_and_the_same_seed_gives_the_same_picture(tiny, editor_folder, tmp_path):
    exact = tiny.changed("models", dtype="float32")  # in another batch bfloat16 rounds otherwise, by as much as the processor likes
    with running(serving(exact, tmp_path, editor_folder), tmp_path) as server:
        ready(server)
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        body = {"num_inference_steps": 2, "seed": 3}
        many = client.images.edit(image=png(), prompt="make it night", n=2, extra_body=body).data
        again = client.images.edit(image=png(), prompt="make it night", extra_body=body | {"seed": 4}).data
    first, second, third = (picture(x.b64_json).tobytes() for x in (*many, *again))
    assert apart(first, second) > 50 and apart(second, third) <= 1


def test_where_the_mask_is_opaque_the_picture_stays_bit_for_bit(client):
    mask = Image.new("RGBA", (120, 90), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, 60, 90))
    buffer = io.BytesIO()
    mask.save(buffer, "PNG")
    told = client.images.edit(image=png(), mask=buffer.getvalue(), prompt="make it winter", extra_body={"num_inference_steps": 2})
    made, source = picture(told.data[0].b64_json), Image.open(io.BytesIO(png()))
    assert made.crop((60, 0, 120, 90)).tobytes() == source.crop((60, 0, 120, 90)).tobytes()
    assert made.crop((0, 0, 30, 90)).tobytes() != source.crop((0, 0, 30, 90)).tobytes()


def test_streaming_gives_pictures_on_the_way_then_the_edit(client):
    steps = {"num_inference_steps": 60}  # a preview stands for 20 of them, so that a busy server sees it in time
    events = list(client.images.edit(image=png(), prompt="make it winter", stream=True, partial_images=2, extra_body=steps))
    kinds = [e.type for e in events]
    assert kinds[-1] == "image_edit.completed" and kinds.count("image_edit.partial_image") == 2
    assert all(picture(e.b64_json).size == (120, 90) for e in events)


def test_size_and_format_are_as_asked(client):
    told = client.images.edit(image=png(), prompt="x", size="256x128", output_format="jpeg", extra_body={"num_inference_steps": 2})
    made = picture(told.data[0].b64_json)
    assert (made.size, made.format) == ((256, 128), "JPEG")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"n": 11}, "n"),
        ({"n": 0}, "n"),
        ({"size": "1x"}, "size"),
        ({"image": b"<svg xmlns='http://www.w3.org/2000/svg'/>"}, "image"),
        ({"response_format": "url"}, "response_format"),
        ({"extra_body": {"num_inference_steps": "many"}}, "num_inference_steps"),
        ({"extra_body": {"seed": -1}}, "seed"),
        ({"extra_body": {"seed": 2**53}}, "seed"),  # which JSON does not carry
        ({"extra_body": {"guidance_scale": "nan"}}, "guidance_scale"),
        ({"extra_body": {"guidance_scale": 99}}, "guidance_scale"),
        ({"extra_body": {"image_guidance_scale": 99}}, "image_guidance_scale"),
        ({"extra_body": {"num_inference_steps": 500}}, "num_inference_steps"),
        ({"prompt": " "}, "prompt"),
        ({"mask": png(mode="RGBA", color=(0, 0, 0, 255))}, "mask"),  # nothing is transparent
        ({"mask": png()}, "mask"),
        ({"image": png((16400, 600)), "output_format": "webp"}, "image"),  # over max_pixels here
    ],
)
def test_what_cannot_be_done_is_told_as_openai_tells_it(client, changes, field):
    with pytest.raises(openai.APIStatusError) as raised:
        client.images.edit(**({"image": png(), "prompt": "make it winter"} | changes))
    assert 400 <= raised.value.status_code < 500
    assert raised.value.body["param"] == field and raised.value.body["message"].startswith(f"{field}: ")


def test_models_are_listed_and_others_are_not_found(client):
    assert [m.id for m in client.models.list()] == ["ip2p-editor", "ip2p-editor:folder"]
    with pytest.raises(openai.NotFoundError, match="not served"):
        client.images.edit(image=png(), prompt="x", model="gpt-image-1")


def test_an_edit_that_cannot_be_stored_is_given_out_all_the_same_and_counted(tiny, editor_folder, tmp_path):
    with running(serving(tiny, tmp_path, editor_folder), tmp_path) as server:
        ready(server)
        before = not_stored(server)  # a process counts for all its servers
        (tmp_path / "pictures").write_text("in the way")
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        assert client.images.edit(image=png(), prompt="make it winter", extra_body={"num_inference_steps": 2}).data[0].b64_json
        asked = {"image": png(), "prompt": "make it night", "stream": True, "extra_body": {"num_inference_steps": 2}}
        assert [e.type for e in client.images.edit(**asked)][-1] == "image_edit.completed"
        assert server.edit()["state"] == "failed"  # there is nowhere to fetch it from
        assert not_stored(server) == before + 3
