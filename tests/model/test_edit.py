import copy
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops, ImageDraw

from ip2p.dataset.world_writer import write_triplets
from ip2p.diffusion import encode_images, encode_text
from ip2p.errors import DataError, ModelError
from ip2p.model import guidance
from ip2p.model.edit import edit_batch, edit_pictures, feathered, load_editor, working_size
from ip2p.model.guidance import EditOptions, EditRequest, Guide, guided_predictor
from ip2p.model.seen import read_seen
from ip2p.models import EMBEDDED
from ip2p.pictures import from_pillow, to_pillow
from ip2p.world.truth import read_edit, truth_of

REQUESTS = [EditRequest("make it winter", 4.0, 1.3, 1), EditRequest("make it night", 2.0, 1.8, 2), EditRequest("add rain", 6.0, 1.0, 3)]
THREE = EditOptions(steps=3)


@pytest.fixture
def images():
    torch.manual_seed(1)
    return torch.rand(3, 3, 96, 96)


@pytest.fixture
def rows(monkeypatch):
    """Rows of each UNet call."""
    counted, run = [], guidance.run_unet
    monkeypatch.setattr(guidance, "run_unet", lambda editor, x, *rest: counted.append(len(x)) or run(editor, x, *rest))
    return counted


def picture(size, colour="green"):
    drawn = Image.new("RGB", size, colour)
    ImageDraw.Draw(drawn).ellipse((size[0] // 4, size[1] // 4, size[0] // 2, size[1] // 2), fill="red")
    return drawn


def test_a_seed_gives_the_same_picture_alone_and_in_any_batch(editor, images):
    together = edit_batch(editor, images, REQUESTS, THREE)
    for i, request in enumerate(REQUESTS):
        alone = edit_batch(editor, images[i : i + 1], [request], THREE)
        assert torch.allclose(alone[0], together[i], atol=1e-3)


def test_seed_text_and_image_each_matter(editor, images):
    base = edit_batch(editor, images[:1], REQUESTS[:1], THREE)
    others = [
        edit_batch(editor, images[:1], [EditRequest("make it winter", 4.0, 1.3, 9)], THREE),
        edit_batch(editor, images[:1], [EditRequest("make it night", 4.0, 1.3, 1)], THREE),
        edit_batch(editor, images[1:2], REQUESTS[:1], THREE),
    ]
    assert all((base - other).abs().max() > 1e-3 for other in others)


def by_pipeline(editor, images, request, *, steps):
    """The edit as diffusers' pipeline makes it: same weights, scheduler and noise."""
    from diffusers import EulerAncestralDiscreteScheduler, StableDiffusionInstructPix2PixPipeline

    scheduler = EulerAncestralDiscreteScheduler.from_config(editor.scheduler.config, timestep_spacing="linspace")
    pipeline = StableDiffusionInstructPix2PixPipeline(
        editor.vae, editor.text_encoder, editor.tokenizer, editor.unet, scheduler, None, None, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        request.instruction,
        image=images * 2 - 1,
        num_inference_steps=steps,
        guidance_scale=request.text_guidance,
        image_guidance_scale=request.image_guidance,
        generator=torch.Generator().manual_seed(request.seed),
        output_type="pt",
    ).images


def assert_same(ours, theirs, most=1e-4):
    """But for how float32 rounds, which the processor and the number of threads decide."""
    apart = (ours - theirs).abs()
    assert apart.mean() <= 1e-5 and apart.max() <= most


@pytest.mark.parametrize("seed", [0, 7])
def test_edits_are_those_of_diffusers_pipeline(editor, images, seed):
    request = EditRequest("make it winter", 4.0, 1.3, seed)
    ours = edit_batch(editor, images[:1], [request], EditOptions(steps=6))
    assert_same(ours, by_pipeline(editor, images[:1], request, steps=6), most=1e-3)  # strongly guided; a quarter of an 8-bit level


@pytest.mark.parametrize("steps", [8, 15])  # 15: timesteps that are no whole numbers
def test_edits_of_the_shipped_editor_are_those_of_diffusers_pipeline(images, steps):
    shipped, request = load_editor("world", device=torch.device("cpu")), EditRequest("make it winter", 1.5, 1.2, 3)
    ours = edit_batch(shipped, images[:1], [request], EditOptions(steps=steps))
    assert_same(ours, by_pipeline(shipped, images[:1], request, steps=steps))


def test_an_editor_that_predicts_something_else_is_refused(editor_folder, tmp_path):
    shutil.copytree(editor_folder, tmp_path / "editor")
    config = tmp_path / "editor" / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"prediction_type": "sample"}))
    with pytest.raises(ModelError, match="predicts `sample`; epsilon and v_prediction are known"):
        load_editor(tmp_path / "editor", device=torch.device("cpu"))


def test_the_shipped_editor_edits_pictures_of_either_size():
    triplets = list(write_triplets(count=12, stream="either-size", avoid=read_seen(EMBEDDED / "editor")))
    requests = [EditRequest(t.instruction, 1.5, 1.2, i) for i, t in enumerate(triplets)]
    for name, size in (("world", 96), ("world-128", 128)):
        shipped = load_editor(name, device=torch.device("cpu"))
        assert shipped.image_size == size
        truths = [truth_of(t.caption.text, t.instruction, seed=i, size=size) for i, t in enumerate(triplets)]
        edited = edit_batch(shipped, torch.stack([t.source_CHW for t in truths]), requests, EditOptions(steps=8))
        assert sum(r.done and r.stayed for r in map(read_edit, edited, truths)) >= 7


def test_pictures_that_are_no_numbers_are_an_error_and_not_black(editor, images):
    vae = copy.deepcopy(editor.vae)
    with torch.no_grad():
        vae.decoder.conv_out.bias.fill_(float("nan"))
    with pytest.raises(ModelError, match=r"models\.dtype: .* no numbers in torch\.float32"):
        edit_batch(replace(editor, vae=vae), images[:1], REQUESTS[:1], THREE)


@pytest.mark.parametrize(("s_text", "s_image", "branches"), [(4.0, 1.3, 3), (4.0, 1.0, 2), (1.5, 1.5, 2), (0.0, 1.3, 2), (1.0, 1.0, 1)])
def test_a_branch_without_weight_is_not_computed_and_the_result_is_the_formulas(editor, images, rows, s_text, s_image, branches):
    request = EditRequest("make it winter", s_text, s_image, 3)
    source, _ = encode_images(editor, images[:1])
    empty, text = encode_text(editor, [""]), encode_text(editor, [request.instruction])
    x, t = torch.randn(source.shape, generator=torch.Generator().manual_seed(0)), torch.tensor(500.0)
    found = guided_predictor(editor, Guide([request], source, empty, text, THREE))(x, t, 0)
    assert rows == [branches]
    with torch.no_grad():
        neither, image, both = (
            editor.unet(torch.cat([x, i], 1), t, c).sample for i, c in ((torch.zeros_like(source), empty), (source, empty), (source, text))
        )
    assert torch.allclose(found, neither + s_image * (image - neither) + s_text * (both - image), atol=1e-4)


def test_requests_of_a_batch_need_only_their_own_branches(editor, images, rows):
    edit_batch(editor, images, [EditRequest("a", 4.0, 1.3), EditRequest("b", 2.0, 1.0), EditRequest("c", 1.0, 1.0)], THREE)
    assert rows == [6, 6, 6]


def test_an_interval_and_kept_differences_save_rows_and_change_the_picture_a_little(editor, images, rows):
    whole = edit_batch(editor, images[:1], REQUESTS[:1], EditOptions(steps=8))
    assert rows == [3] * 8
    rows.clear()
    partly = edit_batch(editor, images[:1], REQUESTS[:1], EditOptions(steps=8, interval=(0.2, 0.8)))
    assert rows == [1, 1, 3, 3, 3, 3, 1, 1]
    rows.clear()
    kept = edit_batch(editor, images[:1], REQUESTS[:1], EditOptions(steps=8, every=2))
    assert rows == [3, 1] * 4
    rows.clear()
    assert torch.allclose(edit_batch(editor, images[:1], REQUESTS[:1], EditOptions(steps=8, every=1)), whole, atol=1e-5)
    other = edit_batch(editor, images[:1], [replace(REQUESTS[0], seed=5)], EditOptions(steps=8))
    far = (other - whole).abs().mean()
    assert 0 < (kept - whole).abs().mean() < far and 0 < (partly - whole).abs().mean() < 2 * far


def test_a_picture_too_long_for_its_width_is_refused(editor):
    with pytest.raises(DataError, match="3300×100 pixels; no side may be more than 32 times the other"):
        edit_pictures(editor, [picture((3300, 100))], [EditRequest("make it winter")], THREE)


@pytest.mark.parametrize("size", [(96, 96), (301, 120), (33, 500)])
def test_any_size_comes_back_at_its_own_size(editor, size):
    (edited,) = edit_pictures(editor, [picture(size)], [EditRequest("make it winter")], EditOptions(steps=2))
    assert edited.size == size
    assert all(side % 32 == 0 for side in working_size(editor, size))


def test_pictures_of_many_sizes_go_in_batches_and_come_back_in_order(editor, rows):
    pictures = [picture(s, c) for s, c in (((96, 96), "green"), ((200, 80), "blue"), ((64, 64), "yellow"), ((210, 84), "gray"))]
    requests = [EditRequest(f"edit {i}", seed=i) for i in range(4)]
    together = edit_pictures(editor, pictures, requests, THREE)
    assert rows == [6] * 6  # two working sizes, two pictures each
    for i in range(4):
        (alone,) = edit_pictures(editor, [pictures[i]], [requests[i]], THREE)
        assert alone.size == pictures[i].size
        # a level of float rounding at working size, stretched by the resampling back to the picture's own
        assert np.abs(np.asarray(alone, int) - np.asarray(together[i], int)).max() <= 3


def test_outside_a_mask_every_bit_stays(editor):
    original, mask = picture((150, 110)), Image.new("L", (150, 110))
    ImageDraw.Draw(mask).rectangle((60, 30, 120, 80), fill=255)
    (edited,) = edit_pictures(editor, [original], [EditRequest("make it winter", 7.5, 1.0)], THREE, masks=[mask])
    changed, inside = (np.asarray(edited) != np.asarray(original)).any(-1), np.asarray(mask) > 127
    assert not changed[~inside].any() and changed[inside].mean() > 0.5
    with pytest.raises(DataError, match="mask: 10×10 pixels, the picture has 150×110"):
        edit_pictures(editor, [original], [EditRequest("x")], THREE, masks=[mask.resize((10, 10))])


@pytest.mark.parametrize("side", [64, 512])
def test_what_is_small_in_a_mask_is_edited_too_and_what_is_large_has_a_soft_edge(side):
    mask = Image.new("L", (side, side), 0)
    pen = ImageDraw.Draw(mask)
    pen.rectangle((0, 0, side // 2, side // 2), fill=255)
    pen.ellipse((side * 0.8, side * 0.8, side * 0.82, side * 0.82), fill=255)
    pen.line((side * 0.7, side * 0.1, side * 0.7, side * 0.6), fill=255, width=2)
    soft = feathered(mask)
    for part in ((0, 0, side // 2, side // 2), (side * 0.75, side * 0.75, side, side), (side * 0.6, 0, side, side * 0.65)):
        assert soft.crop(tuple(map(int, part))).getextrema()[1] == 255
    assert ImageChops.subtract(soft, mask).getbbox() is None  # never beyond it
    assert 0 < soft.getpixel((side // 2 - 1, side // 4)) < 255 or side == 64


def test_transparency_is_kept(editor):
    original = picture((96, 96)).convert("RGBA")
    original.putalpha(Image.linear_gradient("L").resize((96, 96)))
    (edited,) = edit_pictures(editor, [original], [EditRequest("make it winter")], THREE)
    assert edited.mode == "RGBA" and edited.getchannel("A").tobytes() == original.getchannel("A").tobytes()


def test_a_square_picture_of_the_training_size_goes_through_untouched_by_resizing(editor):
    original = picture((96, 96))
    (edited,) = edit_pictures(editor, [original], [REQUESTS[0]], THREE)
    batch = edit_batch(editor, from_pillow(original)[None], [REQUESTS[0]], THREE)
    assert edited.tobytes() == to_pillow(batch[0]).tobytes()


def test_a_missing_editor_is_named(cpu, tmp_path):
    with pytest.raises(ModelError, match=r"no folder .*nowhere; give"):
        load_editor(tmp_path / "nowhere", device=cpu)


def test_a_folder_without_a_part_is_named(cpu, tmp_path):
    with pytest.raises(ModelError, match="has no `unet` folder"):
        load_editor(tmp_path, device=cpu)
