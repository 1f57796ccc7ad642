import pytest
import torch
from safetensors import safe_open

from benchmarks.sd15 import build
from ip2p.errors import ModelError
from ip2p.model.folder import save_editor
from ip2p.models import load_diffusion
from ip2p.release.single_file import save_single_file
from tests.grown import grow_unet


@pytest.fixture(scope="module")
def sd_shaped(tmp_path_factory, cpu):
    """An editor of Stable Diffusion 1.5's layout with few channels."""
    root = tmp_path_factory.mktemp("sd")
    teacher = load_diffusion(str(build(root / "teacher", small=True)), device=cpu)
    save_editor(grow_unet(teacher.unet), teacher, root / "editor")
    return root / "editor"


@pytest.mark.parametrize("which", ["world", "sd"])
def test_diffusers_reads_the_single_file_back(which, editor_folder, sd_shaped, cpu, tmp_path):
    from diffusers import StableDiffusionInstructPix2PixPipeline
    from diffusers.loaders.single_file_utils import infer_diffusers_model_type

    folder = editor_folder if which == "world" else sd_shaped
    editor = load_diffusion(str(folder), device=cpu)
    path = save_single_file(editor, tmp_path / "editor.safetensors", dtype=torch.float32)
    with safe_open(path, framework="pt") as file:
        shapes = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    if which == "sd":
        assert infer_diffusers_model_type(shapes) == "instruct-pix2pix"
    pipeline = StableDiffusionInstructPix2PixPipeline.from_single_file(
        str(path), config=str(folder), local_files_only=True, safety_checker=None, feature_extractor=None
    )
    for part in ("unet", "vae", "text_encoder"):
        ours, theirs = getattr(editor, part).state_dict(), getattr(pipeline, part).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[k], theirs[k]) for k in ours), part


def test_the_names_are_those_of_stable_diffusion(sd_shaped, cpu, tmp_path):
    path = save_single_file(load_diffusion(str(sd_shaped), device=cpu), tmp_path / "editor.safetensors")
    with safe_open(path, framework="pt") as file:
        names = set(file.keys())
        assert file.get_tensor("model.diffusion_model.input_blocks.0.0.weight").shape[1] == 8
    unet = "model.diffusion_model."
    assert {
        unet + "time_embed.2.bias",
        unet + "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight",
        unet + "input_blocks.3.0.op.weight",
        unet + "input_blocks.7.0.skip_connection.weight",
        unet + "middle_block.1.proj_in.weight",
        unet + "output_blocks.2.1.conv.weight",
        unet + "output_blocks.5.2.conv.weight",
        unet + "output_blocks.11.0.out_layers.3.weight",
        unet + "out.2.weight",
        "first_stage_model.encoder.down.0.downsample.conv.weight",
        "first_stage_model.encoder.mid.attn_1.q.weight",
        "first_stage_model.decoder.up.3.block.0.norm1.weight",
        "first_stage_model.decoder.norm_out.weight",
        "first_stage_model.post_quant_conv.weight",
        "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight",
        "cond_stage_model.transformer.text_model.final_layer_norm.bias",
    } <= names


def test_what_readers_would_take_for_another_model_is_refused(sd_shaped, cpu, tmp_path):
    editor = load_diffusion(str(sd_shaped), device=cpu)
    editor.unet.register_to_config(cross_attention_dim=1024)
    with pytest.raises(ModelError, match="Stable Diffusion 2"):
        save_single_file(editor, tmp_path / "editor.safetensors")
