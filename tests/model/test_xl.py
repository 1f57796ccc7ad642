"""A teacher of Stable Diffusion XL's shape: two text encoders, pooled text, picture sizes told to the UNet."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from ip2p.diffusion import encode_text
from ip2p.errors import ModelError
from ip2p.model import plan, train
from ip2p.model.edit import edit_batch, load_editor
from ip2p.model.guidance import EditOptions, EditRequest
from ip2p.models import EMBEDDED, load_diffusion
from ip2p.release.single_file import save_single_file
from ip2p.store import digest


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("xl")
    tokenizer = CLIPTokenizer.from_pretrained(EMBEDDED / "teacher" / "tokenizer")
    UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=48,
        attention_head_dim=8,
        norm_num_groups=8,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 24,
        use_linear_projection=True,
        layers_per_block=1,
    ).save_pretrained(folder / "unet")
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    AutoencoderKL(block_out_channels=(8, 16), norm_num_groups=8, latent_channels=4, **blocks).save_pretrained(folder / "vae")
    tokens = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
    shape = {"vocab_size": max(1000, len(tokenizer)), "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 32}
    CLIPTextModel(CLIPTextConfig(hidden_size=16, intermediate_size=32, **shape, **tokens)).save_pretrained(folder / "text_encoder")
    second = CLIPTextConfig(hidden_size=32, intermediate_size=64, projection_dim=24, **shape, **tokens)
    CLIPTextModelWithProjection(second).save_pretrained(folder / "text_encoder_2")
    for part in ("tokenizer", "tokenizer_2"):
        tokenizer.save_pretrained(folder / part)
    DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").save_pretrained(folder / "scheduler")
    return folder


@pytest.fixture(scope="module")
def trained(folder, tiny, made, tmp_path_factory, track_in):
    root = tmp_path_factory.mktemp("trained")
    (root / "validated.json").write_text(json.dumps({"dataset": digest(made / "dataset")}))
    models = tiny.models.model_copy(update={"teacher": str(folder), "dtype": "float32"})
    params = tiny.model_copy(update={"models": models, "track": track_in(root)})
    train.run(params, dataset=made / "dataset", marker=root / "validated.json", out=root / "editor", work=root / "work")
    return root / "editor"


def test_the_text_is_what_diffusers_encodes(folder, trained, cpu):
    from diffusers import StableDiffusionXLInstructPix2PixPipeline

    pipeline = StableDiffusionXLInstructPix2PixPipeline.from_pretrained(trained, local_files_only=True, add_watermarker=False)
    pipeline.tokenizer.model_max_length = pipeline.tokenizer_2.model_max_length = 32
    states, _, pooled, _ = pipeline.encode_prompt("make it winter", device=cpu, num_images_per_prompt=1, do_classifier_free_guidance=False)
    ours = encode_text(load_diffusion(str(folder), device=cpu), ["make it winter"])
    assert torch.allclose(ours[:, :-1], states, atol=1e-5)
    assert torch.allclose(ours[:, -1, :24], pooled, atol=1e-5)


def test_no_text_is_zeros_where_the_model_was_trained_so(folder, trained, cpu, tmp_path):
    from diffusers import StableDiffusionXLPipeline

    told = StableDiffusionXLPipeline.from_pretrained(trained, unet=None, vae=None, local_files_only=True, add_watermarker=False)
    told.tokenizer.model_max_length = told.tokenizer_2.model_max_length = 32
    assert told.config.force_zeros_for_empty_prompt  # as of its teacher, which does not say
    states, negative, pooled, negative_pooled = told.encode_prompt("a red boat", device=cpu, num_images_per_prompt=1)
    ours = encode_text(load_diffusion(str(folder), device=cpu), ["a red boat", ""])
    assert torch.allclose(ours[:1, :-1], states, atol=1e-5) and torch.allclose(ours[:1, -1, :24], pooled, atol=1e-5)
    assert torch.equal(ours[1:, :-1], negative) and torch.equal(ours[1:, -1, :24], negative_pooled) and not ours[1].any()
    encoded = tmp_path / "xl"
    shutil.copytree(folder, encoded)
    (encoded / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": false}')
    assert encode_text(load_diffusion(str(encoded), device=cpu), [""]).any()


def test_an_editor_grows_from_it_and_edits(trained, cpu):
    editor = load_editor(trained, device=cpu)
    assert editor.unet.config.in_channels == 8
    edited = edit_batch(editor, torch.rand(2, 3, 16, 16), [EditRequest("a", seed=1), EditRequest("b", seed=2)], EditOptions(2))
    assert edited.shape == (2, 3, 16, 16)
    assert torch.isfinite(edited).all()


def test_its_memory_is_planned(folder, tiny, cpu):
    assert plan.estimate(load_diffusion(str(folder), device=cpu), tiny.train, gpu=False).activations > 0


def test_a_single_file_of_it_is_refused(trained, cpu, tmp_path):
    assert load_file(trained / "unet" / "diffusion_pytorch_model.safetensors")["conv_in.weight"].shape[1] == 8
    with pytest.raises(ModelError, match="a single file is not written"):
        save_single_file(load_diffusion(str(trained), device=cpu), tmp_path / "x.safetensors")
