import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from ip2p.clip import image_features, load_clip
from ip2p.diffusion import decode_latents, encode_images, run_unet
from ip2p.errors import ModelError
from ip2p.model.seen import read_seen
from ip2p.models import EMBEDDED, editor_folder, editor_named, load_diffusion, model_digest, resolve_device
from ip2p.release.export import export_editor
from ip2p.world.language import write_caption
from ip2p.world.reading import read_attribute
from ip2p.world.report import held_out_scenes, sample_captions


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub model in the cache, at two commits; no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--acme--teacher"
    for commit, eps in (("a" * 40, "epsilon"), ("b" * 40, "v_prediction")):
        shutil.copytree(EMBEDDED / "teacher", made := folder / "snapshots" / commit)
        config = made / "scheduler" / "scheduler_config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"prediction_type": eps}))
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("b" * 40)
    model_digest.cache_clear()
    yield tmp_path
    model_digest.cache_clear()


def test_a_hub_model_may_be_pinned_to_a_commit(hub, cpu):
    def prediction(name):
        return load_diffusion(name, device=cpu).scheduler.config.prediction_type

    assert prediction("acme/teacher") == "v_prediction"
    assert prediction("acme/teacher@" + "a" * 40) == "epsilon"
    assert model_digest("acme/teacher", "teacher") != model_digest("acme/teacher@" + "a" * 40, "teacher")
    assert model_digest("acme/teacher", "teacher") == model_digest("acme/teacher@" + "b" * 40, "teacher")
    (hub / "models--acme--teacher" / "refs" / "main").write_text("a" * 40)  # who owns it puts another in its place
    model_digest.cache_clear()
    assert model_digest("acme/teacher", "teacher") == model_digest("acme/teacher@" + "a" * 40, "teacher")
    assert editor_named("acme/teacher@" + "a" * 40) == "acme/teacher@" + "a" * 40
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_diffusion("acme/teacher@" + "c" * 40, device=cpu)


def test_weights_held_in_bfloat16_predict_what_autocast_does_within_its_rounding(cpu):
    held = load_diffusion("world", device=cpu, dtype=torch.bfloat16)
    trained = load_diffusion("world", device=cpu, dtype=torch.bfloat16, exact=True)
    full = load_diffusion("world", device=cpu)
    assert {p.dtype for m in (held.unet, held.vae) for p in m.parameters()} == {torch.bfloat16}
    assert {p.dtype for m in (trained.unet, trained.vae, held.text_encoder) for p in m.parameters()} == {torch.float32}
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(2, held.latent_channels, 12, 12, generator=generator)
    text = torch.randn(2, 48, held.unet.config.cross_attention_dim, generator=generator)
    image = torch.rand(2, 3, 96, 96, generator=generator)
    with torch.no_grad():
        for use in (
            lambda m: run_unet(m, rows, torch.tensor(500.0), text),
            lambda m: encode_images(m, image)[0],
            lambda m: decode_latents(m, rows),
        ):
            exact, once, each = (use(m) for m in (full, held, trained))
            assert {exact.dtype, once.dtype, each.dtype} == {torch.float32}
            errors = [(x - exact).square().mean().sqrt() / exact.std() for x in (once, each)]
            assert 0 < errors[0] < 1.5 * errors[1] < 0.05, errors


def test_a_folder_is_a_folder_whatever_its_name_and_its_parts_are_missed(tmp_path, monkeypatch, cpu):
    monkeypatch.chdir(tmp_path)
    for name in ("ed", "ed@2"):
        shutil.copytree(EMBEDDED / "teacher", tmp_path / name)
    shutil.rmtree(tmp_path / "ed" / "unet")
    assert load_diffusion("./ed@2", device=cpu).latent_channels == 12
    with pytest.raises(ModelError, match="ed has no `unet` folder"):
        load_diffusion("./ed", device=cpu)
    with pytest.raises(ModelError, match="mps is not supported"):
        resolve_device("mps")


def test_what_an_editor_on_the_hub_was_trained_on_is_known(hub, tmp_path, capsys):
    shutil.copy(EMBEDDED / "editor" / "captions.safetensors", tmp_path / "models--acme--teacher/snapshots" / ("b" * 40))
    assert len(read_seen(editor_folder("acme/teacher"))) == len(read_seen(EMBEDDED / "editor")) > 0
    assert editor_folder("acme/teacher@" + "a" * 40) is None
    assert "cannot be had offline" in capsys.readouterr().out
    assert editor_folder("world") == editor_folder("world-128") == EMBEDDED / "editor"
    assert editor_named("~/mine") == Path.home() / "mine"


def test_an_editor_of_others_on_the_hub_comes_as_a_folder_with_what_it_tells(hub, tmp_path):
    export_editor("world", "diffusers", str(tmp_path / "whole"))
    snapshot = hub / "models--acme--editor" / "snapshots" / ("c" * 40)
    shutil.copytree(tmp_path / "whole", snapshot)
    (hub / "models--acme--editor" / "refs").mkdir()
    (hub / "models--acme--editor" / "refs" / "main").write_text("c" * 40)
    export_editor("acme/editor", "diffusers", str(tmp_path / "told"))
    assert (tmp_path / "told" / "training.json").read_text() == (snapshot / "training.json").read_text()
    (snapshot / "training.json").unlink()
    export_editor("acme/editor", "diffusers", str(tmp_path / "untold"))
    assert not (tmp_path / "untold" / "training.json").exists()
    assert len(read_seen(tmp_path / "untold")) == len(read_seen(snapshot)) > 0


def emptied(folder):
    for file in (folder / "tokenizer").iterdir():
        if file.name != "tokenizer_config.json":
            file.unlink()


def robbed(part):
    def rob(folder):
        (path,) = (folder / part).glob("*.safetensors")
        tensors = load_file(path)
        del tensors[sorted(tensors)[3]]
        save_file(tensors, path, {"format": "pt"})

    return rob


def mistyped(folder):
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"block_out_channels": 64}))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (emptied, r"tokenizer (knows \d+ words, its text encoder|cannot be loaded)"),
        (robbed("text_encoder"), "text_encoder lacks the weights .*; bring the whole folder"),
        (robbed("unet"), "unet (lacks the weights|cannot be loaded)"),
        (robbed("vae"), "vae (lacks the weights|cannot be loaded)"),
        (mistyped, "unet cannot be loaded"),
    ],
)
def test_a_folder_that_lost_something_is_no_other_model(spoil, told, tmp_path, cpu):
    shutil.copytree(EMBEDDED / "teacher", tmp_path / "teacher")
    spoil(tmp_path / "teacher")
    with pytest.raises(ModelError, match=rf"models\.teacher: .*/{told}"):
        load_diffusion(str(tmp_path / "teacher"), device=cpu)


def test_a_clip_without_weights_of_its_own_is_refused(tmp_path, cpu):
    shutil.copytree(EMBEDDED / "clip", tmp_path / "clip", ignore=shutil.ignore_patterns("*.safetensors"))
    for name in (str(tmp_path / "clip"), "RN50-quickgelu"):
        with pytest.raises(ModelError, match=r"models\.clip: .* cannot be loaded"):  # OpenCLIP would draw them at random
            load_clip(name, device=cpu)
    with pytest.raises(ModelError, match="weights of QuickGELU; write ViT-L-14-quickgelu:openai"):
        load_clip("ViT-L-14:openai", device=cpu)


def test_what_a_schedule_does_not_say_is_not_clipped(tmp_path, cpu):
    shutil.copytree(EMBEDDED / "teacher", tmp_path / "teacher")
    path = tmp_path / "teacher" / "scheduler" / "scheduler_config.json"
    said = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in said.items() if k not in ("clip_sample", "set_alpha_to_one")}))
    assert not load_diffusion(str(tmp_path / "teacher"), device=cpu).scheduler.config.clip_sample
    path.write_text(json.dumps(said | {"clip_sample": True}))
    assert load_diffusion(str(tmp_path / "teacher"), device=cpu).scheduler.config.clip_sample


def test_the_embedded_teacher_draws_larger_pictures_too(cpu, clip):
    teacher = load_diffusion("world-128", device=cpu)
    assert teacher.image_size == 128 and load_diffusion("world", device=cpu).image_size == 96
    assert model_digest("world-128", "teacher") != model_digest("world", "teacher")
    scenes = held_out_scenes(8)
    drawn = sample_captions(teacher, [write_caption(s, random.Random(0)) for s in scenes])
    assert drawn.shape == (8, 3, 128, 128)
    assert all(read_attribute(clip, image_features(clip, drawn), scenes, a).share >= 0.75 for a in ("setting", "time", "kind"))
    with pytest.raises(ModelError, match="the embedded clip is of 96 pixels: write `world`"):
        model_digest("world-128", "clip")
