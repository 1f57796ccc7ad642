"""The unmodified `webuiapi` client against the server."""

import base64
import json

import pytest
import webuiapi
from PIL import Image

from tests.serve.conftest import png
from tests.services import until


@pytest.fixture
def client(server):
    return webuiapi.WebUIApi(baseurl=f"{server.url}/sdapi/v1")


def test_img2img_edits_at_the_size_that_is_named(client):
    told = client.img2img(
        images=[Image.new("RGB", (100, 80), "teal")], prompt="make it winter", steps=2, seed=5, width=128, height=96, cfg_scale=2
    )
    assert told.image.size == (128, 96)
    assert told.info["seed"] == 5
    assert told.info["sampler_name"] == "Euler a"
    assert told.info["cfg_scale"] == 2


def test_a_batch_is_made_and_a_mask_is_white_where_to_edit(client):
    mask = Image.new("L", (96, 96), 0)
    mask.paste(255, (0, 0, 48, 96))
    told = client.img2img(
        images=[Image.new("RGB", (96, 96), "teal")], mask_image=mask, prompt="make it night", steps=2, batch_size=2, width=96, height=96
    )
    assert len(told.images) == 2
    assert all(i.convert("RGB").crop((48, 0, 96, 96)).getcolors() == [(48 * 96, (0, 128, 128))] for i in told.images)
    # one with transparency is read by that, whatever its colours, as AUTOMATIC1111 does
    strokes = Image.new("RGBA", (96, 96), (0, 0, 0, 0))
    strokes.paste((0, 0, 0, 255), (0, 0, 48, 96))
    told = client.img2img(
        images=[Image.new("RGB", (96, 96), "teal")], mask_image=strokes, prompt="make it night", steps=2, width=96, height=96
    )
    assert told.image.convert("RGB").crop((48, 0, 96, 96)).getcolors() == [(48 * 96, (0, 128, 128))]
    assert told.image.convert("RGB").crop((0, 0, 40, 96)).getcolors() != [(40 * 96, (0, 128, 128))]


def test_what_clients_ask_at_their_start_is_answered(client, server):
    assert client.get_options()["sd_model_checkpoint"] == "ip2p-editor:folder"
    assert client.get_samplers()[0]["name"] == "Euler a"
    assert client.get_sd_models()[0]["title"] == "ip2p-editor:folder"
    until(lambda: client.get_progress()["state"]["job_count"] == 0)
    assert server.client.get("/sdapi/v1/scripts").json() == {"txt2img": [], "img2img": []}
    assert client.interrupt() == {}


def test_progress_moves_while_an_edit_is_under_way(client, server):
    asked = server.client.post("/api/v1/edits", files={"image": png()}, data={"instruction": "make it winter", "steps": "100"}).json()["id"]
    seen = []
    while server.client.get(f"/api/v1/edits/{asked}").json()["state"] in ("queued", "running"):
        told = client.get_progress()
        seen.append((told["progress"], told["state"]["sampling_step"], told["state"]["sampling_steps"]))
    moving = [x for x in seen if 0 < x[0] < 1]
    assert moving == sorted(moving) and len(set(moving)) > 1 and all(share == step / of and of == 100 for share, step, of in moving)


def test_the_extensions_client_is_understood(client, server):
    edit = webuiapi.InstructPix2PixInterface(client).img2img
    asked = {"images": [Image.new("RGB", (100, 80), "teal")], "prompt": "make it winter", "steps": 2, "output_image_width": 200}
    told = edit(**asked, text_cfg=3, image_cfg=1.1, output_batches=2, seed=9, randomize_seed=False)
    assert [i.size for i in told.images] == [(200, 160)] * 2
    assert (told.info["cfg_scale"], told.info["image_cfg_scale"], told.info["all_seeds"]) == (3, 1.1, [9, 10])
    assert len({edit(**asked).info["seed"] for _ in range(3)}) == 3  # drawn anew


def test_the_extensions_path_answers_in_its_form(server):
    body = {"init_images": [base64.b64encode(png()).decode()], "prompt": "make it winter", "steps": 2}
    told = server.client.post("/instruct-pix2pix/img2img", json=body).json()
    assert set(told) == {"images", "info", "prompt"} and told["prompt"] == "make it winter"


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"init_images": []}, 404),
        ({"init_images": ["http://127.0.0.1:1/x.png"]}, 400),
        ({"init_images": ["!!"]}, 400),
        ({"init_images": [{}]}, 400),
        ({"sampler_name": "Heun"}, 400),
        ({"sampler_name": ["Euler a"]}, 400),
        ({"prompt": "\ud800"}, 400),
        ({"prompt": "a\x00b"}, 400),
        ({"batch_size": 10**400}, 422),
        ({"steps": 1.5}, 422),
        ({"width": 1, "height": 1}, 400),
        ({"prompt": None}, 422),
        ({"prompt": " "}, 400),
        ({"mask": base64.b64encode(png(mode="L", color=0)).decode()}, 400),
    ],
)
def test_what_cannot_be_done_is_told_as_automatic1111_tells_it(server, changes, status):
    body = {"init_images": [base64.b64encode(png()).decode()], "prompt": "x", "steps": 2} | changes
    told = server.client.post("/sdapi/v1/img2img", content=json.dumps(body))
    assert told.status_code == status, told.text
    assert set(told.json()) == {"error", "detail", "body", "errors"}


def test_errors_name_the_fields_that_its_clients_know(server):
    body = {"init_images": [base64.b64encode(png()).decode()], "prompt": "x", "cfg_scale": 99}
    assert server.client.post("/sdapi/v1/img2img", json=body).json()["detail"].startswith("cfg_scale: give 0 to")
