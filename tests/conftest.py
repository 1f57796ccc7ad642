"""Shared fixtures: the embedded models, loaded once a session, and a tiny dataset made with them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from ip2p.startup import start_quickly

start_quickly()
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["NO_PROXY"] = "127.0.0.1,localhost"
for name in [n for n in os.environ if n.startswith(("IP2P_", "MLFLOW_TRACKING", "MLFLOW_REGISTRY", "PREFECT_API", "AWS_ENDPOINT"))]:
    if name != "IP2P_PLATFORM_LOG":
        del os.environ[name]  # a shell that knows the platform of `make up`: tests are to leave its data alone
ROOT = Path(__file__).parents[1]
TINY = {
    "triplets": {"count": 11},
    "pairs": {"samples": 2, "steps": 3, "unit": 3, "batch": 3, "workers": 1},
    "filter": {"caption": -1, "image": -1, "direction": -1, "keep": 2, "splits": [0.2, 0.1]},
    "validate": {"min_pairs": 5},
    "train": {"steps": 4, "batch": 4, "checkpoint_every": 2, "log_every": 1, "grid_every": 2, "workers": 1},
    "evaluate": {"count": 11, "steps": 3, "image_guidance_sweep": [1.5], "sdedit_strengths": [0.5]},
}


def pytest_collection_modifyitems(items):
    """Those that take minutes come first, so that no process is left with one when the other has nothing to do."""
    items.sort(key=lambda item: "e2e" not in item.path.parts)


@pytest.fixture(scope="session")
def cpu():
    torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)
    return torch.device("cpu")


@pytest.fixture(scope="session")
def teacher(cpu):
    from ip2p.models import load_diffusion

    return load_diffusion("world", device=cpu)


@pytest.fixture(scope="session")
def clip(cpu):
    from ip2p.clip import load_clip

    return load_clip("world", device=cpu)


@pytest.fixture(scope="session")
def tiny():
    """Parameters of a run that takes seconds."""
    from ip2p.params import Params

    return Params.model_validate(TINY)


@pytest.fixture(scope="session")
def track_in(tmp_path_factory):
    """Puts an empty tracking database into a folder: MLflow takes seconds to make one, and a copy does."""
    from mlflow import MlflowClient

    from ip2p.params import TrackParams

    empty = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{empty}").search_experiments()

    def copied(folder):
        shutil.copyfile(empty, folder / "mlflow.db")
        return TrackParams(uri=f"sqlite:///{folder}/mlflow.db")

    return copied


@pytest.fixture(scope="session")
def made(tiny, tmp_path_factory):
    """Triplets, pairs and a dataset of the tiny run."""
    from ip2p.dataset import filter, pairs, triplets

    root = tmp_path_factory.mktemp("made")
    triplets.run(tiny, out=root / "triplets", work=root / "work-triplets")
    pairs.run(tiny, triplets=root / "triplets", out=root / "pairs", work=root / "work")
    filter.run(tiny, pairs=root / "pairs", out=root / "dataset", work=root / "work" / "filter")
    return root


@pytest.fixture(scope="session")
def editor_folder(teacher, tmp_path_factory):
    """An editor whose source channels have been nudged, so that the picture matters."""
    from ip2p.model.folder import save_editor
    from tests.grown import grow_unet

    folder = tmp_path_factory.mktemp("editor") / "editor"
    unet = grow_unet(teacher.unet)
    with torch.no_grad():
        torch.manual_seed(0)
        unet.conv_in.weight.add_(0.05 * torch.randn_like(unet.conv_in.weight))
    save_editor(unet, teacher, folder)
    return folder


@pytest.fixture(scope="session")
def editor(editor_folder, cpu):
    from ip2p.model.edit import load_editor

    return load_editor(editor_folder, device=cpu)
