"""A version of the registry: an editor's folder as an MLflow model, with its evaluation."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ip2p.model.guidance import EditOptions
from ip2p.params import EvaluateParams, Params
from ip2p.pictures import to_png

_LOCK = Path("dvc.lock")


def send_version(mlflow: Any, client: Any, params: Params, editor: Path, report: dict[str, Any], tags: dict[str, str]) -> str:
    """Log an editor with its report in a run of its own and register it; returns the version's number."""
    metrics = {k: v for k, v in report["headline"].items() if isinstance(v, float)}
    experiment = client.get_experiment_by_name(params.track.experiment)
    mlflow.set_experiment(experiment_id=experiment.experiment_id) if experiment else mlflow.set_experiment(params.track.experiment)
    with mlflow.start_run(run_name="register"):
        mlflow.log_metrics(metrics)
        mlflow.log_dict(report, "report.json")
        if _LOCK.exists():
            mlflow.log_artifact(str(_LOCK))  # which data these are, for `dvc checkout`
        logged = mlflow.pyfunc.log_model(
            name="editor",
            python_model=str(Path(__file__).with_name("pyfunc.py")),
            artifacts={"editor": str(editor)},
            signature=_signature(params.evaluate),
            input_example=_example(params.evaluate),
            pip_requirements=[f"ip2p=={version('ip2p')}"],
        )
        model_version = mlflow.register_model(logged.model_uri, params.register_.name, tags=tags)
        client.set_model_version_tag(params.register_.name, model_version.version, "report", json.dumps(metrics))
    return str(model_version.version)


def settings_of(section: EvaluateParams) -> dict[str, Any]:
    """The scales and sampling parameters, by the names that a version's signature gives them."""
    return {
        "text_guidance": section.text_guidance,
        "image_guidance": section.image_guidance,
        "steps": section.steps,
        "solver": section.solver,
        "guidance_from": section.guidance_interval[0],
        "guidance_until": section.guidance_interval[1],
        "guidance_every": section.guidance_every,
    }


def options_of(settings: Mapping[str, Any]) -> EditOptions:
    """How edits are sampled by such settings."""
    interval = settings["guidance_from"], settings["guidance_until"]
    return EditOptions(settings["steps"], settings["solver"], interval, settings["guidance_every"])


def with_settings(params: Params, settings: Mapping[str, Any]) -> Params:
    """Parameters that edit by such scales and so sampled."""
    same = {name: settings[name] for name in ("text_guidance", "image_guidance", "steps", "solver", "guidance_every")}
    return params.changed("evaluate", **same, guidance_interval=(settings["guidance_from"], settings["guidance_until"]))


def code_version() -> str:
    """Package version and, in a git checkout, the commit."""
    here = Path(__file__).parent
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    return f"{version('ip2p')}+{commit.stdout.strip()}" if commit.returncode == 0 else version("ip2p")


def _example(section: EvaluateParams) -> tuple[Any, dict[str, Any]]:
    """A row and parameters that a version can be tried with."""
    import pandas as pd

    side = 32
    shades = torch.linspace(0, 1, side).expand(3, side, side)
    frame = pd.DataFrame({"image": [to_png(shades)], "instruction": ["make it winter"]})
    return frame, {"steps": section.steps, "seed": 0}


def _signature(section: EvaluateParams) -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    types = {float: DataType.double, int: DataType.long, str: DataType.string}
    settings = settings_of(section) | {"seed": 0}
    inputs = Schema([ColSpec(DataType.binary, "image"), ColSpec(DataType.string, "instruction")])
    return ModelSignature(
        inputs=inputs,
        outputs=Schema([ColSpec(DataType.binary, "image")]),
        params=ParamSchema([ParamSpec(name, types[type(value)], value) for name, value in settings.items()]),
    )
