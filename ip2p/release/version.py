"""A version of the registry: an editor's folder as an MLflow model, with its evaluation."""

from __future__ import annotations

import json
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ip2p.params import EvaluateParams, Params
from ip2p.pictures import to_png


def send_version(mlflow: Any, client: Any, params: Params, editor: Path, report: dict[str, Any], tags: dict[str, str]) -> str:
    """Log an editor with its report in a run of its own and register it; returns the version's number."""
    metrics = {k: v for k, v in report["headline"].items() if isinstance(v, float)}
    experiment = client.get_experiment_by_name(params.track.experiment)
    mlflow.set_experiment(experiment_id=experiment.experiment_id) if experiment else mlflow.set_experiment(params.track.experiment)
    with mlflow.start_run(run_name="register"):
        mlflow.log_metrics(metrics)
        mlflow.log_dict(report, "report.json")
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

    inputs = Schema([ColSpec(DataType.binary, "image"), ColSpec(DataType.string, "instruction")])
    return ModelSignature(
        inputs=inputs,
        outputs=Schema([ColSpec(DataType.binary, "image")]),
        params=ParamSchema(
            [
                ParamSpec("text_guidance", DataType.double, section.text_guidance),
                ParamSpec("image_guidance", DataType.double, section.image_guidance),
                ParamSpec("steps", DataType.long, section.steps),
                ParamSpec("solver", DataType.string, section.solver),
                ParamSpec("guidance_from", DataType.double, section.guidance_interval[0]),
                ParamSpec("guidance_until", DataType.double, section.guidance_interval[1]),
                ParamSpec("guidance_every", DataType.long, section.guidance_every),
                ParamSpec("seed", DataType.long, 0),
            ]
        ),
    )
