import shutil
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ip2p.diffusion import encode_images
from ip2p.errors import ParamsError, UserError
from ip2p.model.data import _encode, draw_batch, dropout, load_latents
from ip2p.params import TrainParams
from ip2p.pictures import to_png


def test_the_four_dropout_ranges_are_the_methods():
    u = torch.tensor([0.0, 0.049, 0.05, 0.099, 0.10, 0.149, 0.15, 0.99])
    no_text, no_image = dropout(u, TrainParams())
    assert no_text.tolist() == [True] * 4 + [False] * 4
    assert no_image.tolist() == [False] * 2 + [True] * 4 + [False] * 2


@pytest.fixture(scope="module")
def latents(tiny, made, teacher, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    return load_latents(made / "dataset", teacher, tiny.train, model_digest="t", seed=0, cache=cache)[0]


def test_latents_that_were_cut_off_are_named_and_old_ones_go_before_new_are_made(tiny, made, teacher, tmp_path):
    old = tmp_path / "latents-0.safetensors"
    old.write_bytes(b"of other parameters")
    made_of = {"model_digest": "t", "seed": 0, "cache": tmp_path}
    load_latents(made / "dataset", teacher, tiny.train, **made_of, on_part=lambda done, of: old.exists() and pytest.fail("still there"))
    whole = next(tmp_path.glob("latents-*"))
    whole.write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(UserError, match=rf"{whole.name}: is damaged .* delete it and run again"):
        load_latents(made / "dataset", teacher, tiny.train, **made_of)


@torch.no_grad()
def test_the_source_is_the_unscaled_mode_and_the_edit_the_scaled_sample(latents, made, teacher):
    from ip2p.pictures import from_bytes
    from ip2p.store import read_shards

    row = read_shards(made / "dataset", "train-").slice(0, 1).to_pylist()[0]
    source, edit = (from_bytes(row[c]["bytes"], where=c)[None] * 2 - 1 for c in ("original_image", "edited_image"))
    assert torch.allclose(latents.source_NVCHW[0][0].float(), teacher.vae.encode(source).latent_dist.mode()[0], atol=5e-3)
    posterior = teacher.vae.encode(edit).latent_dist
    assert torch.allclose(latents.mean_NVCHW[0][0].float(), posterior.mean[0] * teacher.vae.config.scaling_factor, atol=5e-3)


def test_views_of_a_pair_are_cropped_alike(teacher):
    picture = {"bytes": to_png(torch.rand(3, 96, 96, generator=torch.Generator().manual_seed(0)))}
    row = {"pair_id": "a", "original_image": picture, "edited_image": picture, "edit_prompt": "make it winter"}
    encoded = _encode(pa.Table.from_pylist([row]), teacher, TrainParams(views=2), 0, 96)
    source, edited = encoded["source_NVCHW"][0].float(), encoded["mean_NVCHW"][0].float() / teacher.vae.config.scaling_factor
    assert torch.allclose(source, edited, atol=5e-3)
    assert (source[0] - source[1]).abs().mean() > 0.1


def test_latents_and_edits_are_those_of_diffusers_whatever_the_scaling_factor(tmp_path, cpu):
    """Stable Diffusion's is 0.18215: an edited latent is scaled, a source latent never."""
    from benchmarks.sd15 import build
    from ip2p.model.edit import edit_batch, load_editor
    from ip2p.model.guidance import EditOptions, EditRequest
    from tests.model.test_edit import assert_same, by_pipeline

    editor = load_editor(build(tmp_path / "sd15", small=True, editor=True), device=cpu)
    assert editor.vae.config.scaling_factor == 0.18215
    image = torch.rand(3, editor.image_size, editor.image_size, generator=torch.Generator().manual_seed(0)).mul(255).round() / 255
    picture = {"bytes": to_png(image)}
    row = {"pair_id": "a", "original_image": picture, "edited_image": picture, "edit_prompt": "make it winter"}
    encoded = _encode(pa.Table.from_pylist([row]), editor, TrainParams(views=1), 0, editor.image_size)
    with torch.no_grad():
        posterior = editor.vae.encode(image[None] * 2 - 1).latent_dist
    assert torch.allclose(encoded["source_NVCHW"][0].float(), posterior.mode(), atol=1e-3)
    assert torch.allclose(encoded["mean_NVCHW"][0].float(), 0.18215 * posterior.mode(), atol=1e-3)
    assert torch.allclose(encoded["std_NVCHW"][0].float(), 0.18215 * posterior.std, atol=1e-3)
    request = EditRequest("make it winter", 4.0, 1.3, 0)
    ours = edit_batch(editor, image[None], [request], EditOptions(steps=6))
    assert_same(ours, by_pipeline(editor, image[None], request, steps=6))


def test_batches_are_seeded_and_draw_triplets_evenly(tiny, latents):
    many = tiny.train.model_copy(update={"batch": 2000, "drop_text": 0.0, "drop_both": 0.0, "drop_image": 0.0})
    last = len(latents) - 1
    two = replace(latents, groups=(tuple(range(last)), (last,)))  # one triplet of many pairs, one of a single pair
    drawn = draw_batch(two, many, seed=0, step=0, count=400).source_BCHW
    single = (drawn[:, None] == latents.source_NVCHW[last].float()).flatten(2).all(-1).any(-1)
    assert 0.4 < single.float().mean() < 0.6
    first, again = (draw_batch(latents, tiny.train, seed=0, step=3) for _ in range(2))
    assert torch.equal(first.clean_BCHW, again.clean_BCHW)
    part = draw_batch(latents, tiny.train, seed=0, step=3, first=1, count=2)
    for name in ("clean_BCHW", "noise_BCHW", "timesteps_B", "source_BCHW", "text_BLD"):
        assert torch.equal(getattr(part, name), getattr(first, name)[1:3])
    assert not torch.equal(first.noise_BCHW[0], first.noise_BCHW[1])
    assert draw_batch(latents, tiny.train, seed=2**62, step=3).noise_BCHW.isfinite().all()  # any seed will do


def test_the_cache_is_reused_and_a_new_dataset_replaces_it(tiny, made, teacher, tmp_path, monkeypatch):
    options = {"model_digest": "t", "seed": 0, "cache": tmp_path}
    (latents,) = load_latents(made / "dataset", teacher, tiny.train, **options)
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr("ip2p.model.data._encode", lambda *a: pytest.fail("encoded again"))
    load_latents(made / "dataset", teacher, tiny.train, **options)
    assert sorted(tmp_path.iterdir()) == before
    # another shard: only that is encoded
    grown = tmp_path / "grown"
    shutil.copytree(made / "dataset", grown)
    shard = next(grown.glob("train-*"))
    rows = pq.read_table(shard).slice(0, 2)
    pq.write_table(rows, shard.with_name("train-99999.parquet"))
    seen = []
    monkeypatch.setattr("ip2p.model.data._encode", lambda table, *a: seen.append(len(table)) or _encode(table, *a))
    (more,) = load_latents(grown, teacher, tiny.train, **options)
    assert seen == [2]
    assert len(more) == len(latents) + 2


def test_views_are_mirrored_unless_the_instruction_names_a_side(teacher):
    ramp = torch.linspace(0, 1, 96).expand(3, 96, 96).contiguous()
    picture = {"bytes": to_png(ramp)}
    sides = {"make it winter": True, "move the cat to the Left": False, "brighten it": True, "remove the rightmost tree": False}
    rows = [{"pair_id": t, "original_image": picture, "edited_image": picture, "edit_prompt": t} for t in sides]
    encoded = _encode(pa.Table.from_pylist(rows), teacher, TrainParams(views=2), 0, 96)
    plain, other = encode_images(teacher, torch.stack([ramp, ramp.flip(-1)]))[0]
    for view, mirrored in zip(encoded["source_NVCHW"][:, 1].float(), sides.values(), strict=True):
        assert ((view - other).abs().mean() < (view - plain).abs().mean()) == mirrored


def test_a_cache_over_its_bound_is_refused(tiny, made, teacher, tmp_path):
    small = tiny.train.model_copy(update={"cache_gb": 1e-6})
    with pytest.raises(ParamsError, match=r"train\.cache_gb: latents of \d+ pairs .* raise it or lower train\.views"):
        load_latents(made / "dataset", teacher, small, model_digest="t", seed=0, cache=tmp_path)
    assert not list(tmp_path.iterdir())


def test_processes_that_begin_one_after_the_other_leave_no_part_out(tiny, made, teacher, tmp_path):
    options = {"model_digest": "t", "seed": 0, "cache": tmp_path, "workers": 2}
    with pytest.raises(UserError, match="one shared folder"):  # the first has made its share before the second looks what is missing
        load_latents(made / "dataset", teacher, tiny.train, rank=0, **options)
    assert len(load_latents(made / "dataset", teacher, tiny.train, rank=1, **options)[0]) > 0
