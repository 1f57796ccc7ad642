import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from ip2p.errors import ModelError, ParamsError
from ip2p.model import check
from ip2p.model.edit import load_editor
from ip2p.model.folder import save_editor
from ip2p.models import load_diffusion
from ip2p.params import TrainParams
from ip2p.release import export
from ip2p.release.export import export_editor
from ip2p.store import digest
from tests.grown import grow_unet


@pytest.fixture
def grown(teacher, cpu):
    """An editor that never was trained: it has the teacher's weights and does not see its picture."""
    return replace(teacher, unet=grow_unet(teacher.unet).eval())


def findings(editor, teacher, made, folder=None):
    return {f.name: f for f in check.check(editor, teacher, made / "dataset", folder, pairs=8)}


def test_an_untrained_editor_keeps_the_teachers_loss_and_does_not_read_its_picture(grown, teacher, made):
    found = findings(grown, teacher, made)
    assert found["bias of conv_in kept"].good
    assert found["latents of unit spread"].good
    assert found["trained without the picture"].good
    assert found["reads the picture"].good is False
    assert found["trained without the text"].good is None  # of one that does not read its picture nothing is said
    assert found["moving average"].good is None
    assert found["source latents unscaled"].good is None  # the world's factor is 1: nothing to tell apart


def test_a_new_bias_is_found(grown, teacher, made):
    torch.manual_seed(0)
    with torch.no_grad():
        torch.nn.init.uniform_(grown.unet.conv_in.bias, -0.1, 0.1)
    found = findings(grown, teacher, made)["bias of conv_in kept"]
    assert found.good is False
    assert "FAULT" in found.line()


def test_another_teachers_bias_is_not_compared(grown, teacher):
    wider = replace(teacher, unet=SimpleNamespace(conv_in=torch.nn.Conv2d(4, 8, 3)))
    with pytest.raises(ModelError, match=r"models\.teacher: its UNet is \d+ channels wide, the editor's \d+"):
        check.bias_kept(grown, wider)


def test_an_editor_that_lost_what_the_teacher_knew_is_found(grown, teacher, made):
    with torch.no_grad():
        grown.unet.conv_in.weight[:, : grown.latent_channels] *= 0.5
    assert findings(grown, teacher, made)["trained without the picture"].good is False


def test_a_wrong_scaling_factor_is_found(grown, teacher, made):
    vae = load_diffusion("world", device=teacher.device).vae
    vae.register_to_config(scaling_factor=0.18215)
    assert findings(replace(grown, vae=vae), teacher, made)["latents of unit spread"].good is False


@pytest.fixture
def recorded(teacher, tmp_path):
    record = {"start": "world", "dataset": "d" * 64, "pairs": 7, "loss": 0.25, "train": TrainParams().model_dump()}
    save_editor(grow_unet(teacher.unet), teacher, tmp_path / "editor", record=record)
    return tmp_path / "editor"


def test_the_training_record_tells_of_the_moving_average_and_makes_a_card(recorded, teacher, made, cpu):
    found = findings(load_editor(recorded, device=cpu), teacher, made, recorded)
    assert found["moving average"].good
    assert not any("_name_or_path" in path.read_text() for path in recorded.rglob("config.json"))
    card = (recorded / "README.md").read_text()
    assert "pipeline_tag: image-to-image" in card
    assert "7 image pairs" in card
    assert "600 steps of 32, adamw at 0.0001, EMA 0.9999" in card


def test_an_exported_folder_carries_the_figures_of_its_own_evaluation(recorded, tmp_path):
    values = {"direction_similarity": 0.4, "image_similarity": 0.8, "success": 0.45}
    head = values | {"setting": {"text_guidance": 1.5}, "intervals": {n: (v - 0.1, v + 0.1) for n, v in values.items()}}
    report = tmp_path / "report.json"
    report.write_text(json.dumps({"editor": digest(recorded), "count": 66, "headline": head}))
    export_editor(recorded, "diffusers", str(tmp_path / "mine"), evaluation=report)
    assert "both: 0.450, 95% interval 0.350 to 0.550" in (tmp_path / "mine" / "README.md").read_text()
    report.write_text(json.dumps({"editor": "another", "count": 66, "headline": head}))
    export_editor(recorded, "diffusers", str(tmp_path / "other"), evaluation=report)
    assert "How good it is" not in (tmp_path / "other" / "README.md").read_text()
    with pytest.raises(ParamsError, match="exists; give another name"):
        export_editor(recorded, "diffusers", str(tmp_path / "mine"))
    with pytest.raises(ParamsError, match=r"must end with \.safetensors"):
        export_editor(recorded, "single", str(tmp_path / "x.ckpt"))


def test_a_trained_editor_becomes_the_embedded_one_in_half_the_bytes(recorded, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "EMBEDDED", tmp_path / "weights")
    folder = Path(export_editor(recorded, "embedded", None))
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    assert folder == tmp_path / "weights/editor" and {p.name for p in folder.iterdir()} == {
        "unet",
        "training.json",
        "README.md",
        "captions.safetensors",
    }
    assert {v.dtype for v in load_file(weights).values()} == {torch.float16} and weights.stat().st_mode & 0o044
    assert "--model world" in (folder / "README.md").read_text()
    # trained on from another editor of the same teacher it is taken too, with another autoencoder it is not
    record = json.loads((recorded / "training.json").read_text())
    (recorded / "training.json").write_text(json.dumps(record | {"start": "first-leg"}))
    export_editor(recorded, "embedded", None)
    vae = recorded / "vae" / "diffusion_pytorch_model.safetensors"
    save_file({k: v + 0.01 for k, v in load_file(vae).items()}, vae, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="its vae is not the embedded teacher's"):
        export_editor(recorded, "embedded", None)
