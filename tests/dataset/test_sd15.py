"""Stable Diffusion 1.5's shape (4 latent channels, f=8, eps-prediction, CLIP text encoder) through the same stages, small."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.sd15 import build
from ip2p.dataset import filter, pairs, triplets
from ip2p.models import load_diffusion
from ip2p.params import ModelsParams
from ip2p.store import read_shards


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build(tmp_path_factory.mktemp("sd") / "sd15", small=True)


def test_a_folder_of_its_shape_samples_scores_and_filters_with_every_method(folder, tiny, tmp_path):
    assert json.loads((folder / "scheduler" / "scheduler_config.json").read_text())["prediction_type"] == "epsilon"
    section = tiny.pairs.model_copy(update={"samples": 1, "method": "both", "guidance": (7.5, 15.0), "negative_prompt": "blurred"})
    params = tiny.model_copy(update={"models": ModelsParams(teacher=str(folder)), "pairs": section})
    triplets.run(params, out=tmp_path / "triplets", work=tmp_path / "work")
    report = pairs.run(params, triplets=tmp_path / "triplets", out=tmp_path / "pairs", work=tmp_path / "work")
    assert report.kept == tiny.triplets.count
    table = read_shards(tmp_path / "pairs")
    assert all(torch.isfinite(torch.tensor(table[c].to_pylist())).all() for c in ("sim_direction", "outside", "contrast"))
    assert filter.run(params, pairs=tmp_path / "pairs", out=tmp_path / "dataset", work=tmp_path / "work").kept > 0


def test_the_names_that_its_autoencoder_had_at_first_are_no_missing_weights(folder, tmp_path, cpu):
    shutil.copytree(folder, tmp_path / "old")
    (path,) = (tmp_path / "old" / "vae").glob("*.safetensors")
    old, renamed = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}, {}
    for name, tensor in load_file(path).items():
        key = next((name.replace(f".{new}.", f".{was}.") for new, was in old.items() if f".{new}." in name), name)
        renamed[key] = tensor
    assert renamed.keys() != load_file(path).keys()
    save_file(renamed, path, {"format": "pt"})
    one, other = (load_diffusion(str(x), device=cpu).vae.state_dict() for x in (folder, tmp_path / "old"))
    assert all(torch.equal(one[k], other[k]) for k in one)
