"""params.yaml, typed: one section a stage, every field with its unit, range and source; unknown keys are errors.

`load_params` names file and field of what is wrong. Values in comments are the paper's (Brooks et al. 2023) or the
reference implementation's where they differ from the default, which is the illustrated world on a laptop.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from ip2p.errors import ParamsError
from ip2p.params.base import ModelsParams, Section, StorageParams
from ip2p.params.dataset import (
    EvaluateJudgeParams,
    FilterParams,
    JudgeParams,
    LlmParams,
    PairsParams,
    TripletsParams,
    TypeThresholds,
    ValidateParams,
)
from ip2p.params.model import EvaluateParams, PretrainParams, RegisterParams, ReportParams, TrackParams, TrainParams
from ip2p.params.serve import ServeParams

__all__ = [
    "EvaluateJudgeParams",
    "EvaluateParams",
    "FilterParams",
    "JudgeParams",
    "LlmParams",
    "ModelsParams",
    "PairsParams",
    "Params",
    "PretrainParams",
    "RegisterParams",
    "ReportParams",
    "ServeParams",
    "StorageParams",
    "TrackParams",
    "TrainParams",
    "TripletsParams",
    "TypeThresholds",
    "ValidateParams",
    "load_params",
]


class Params(Section):
    """All of params.yaml."""

    seed: int = 0
    models: ModelsParams = ModelsParams()
    storage: StorageParams = StorageParams()
    triplets: TripletsParams = TripletsParams()
    pairs: PairsParams = PairsParams()
    filter: FilterParams = FilterParams()
    validate_: ValidateParams = Field(default=ValidateParams(), alias="validate")
    train: TrainParams = TrainParams()
    evaluate: EvaluateParams = EvaluateParams()
    register_: RegisterParams = Field(default=RegisterParams(), alias="register")
    report: ReportParams = ReportParams()
    serve: ServeParams = ServeParams()
    track: TrackParams = TrackParams()
    pretrain: PretrainParams = PretrainParams()

    def changed(self, section: str, **values: Any) -> Params:
        """The same with other values in one section, which are not checked again."""
        return self.model_copy(update={section: getattr(self, section).model_copy(update=values)})


def load_params(path: Path) -> Params:
    """Read and check a params.yaml. Raises `ParamsError` naming file and field."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ParamsError(f"{path}: no such file; run from the project's root or give --params") from error
    except OSError as error:
        raise ParamsError(f"{path}: cannot be read ({error.strerror}); give a file with --params") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = " ".join(str(error).split())
        raise ParamsError(f"{path}: not valid YAML ({where}); mend that line") from error
    if not isinstance(raw, dict):
        raise ParamsError(f"{path}: {'is empty' if raw is None else 'holds no sections'}; it needs some, such as `pairs:`")
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        raise ParamsError(f"{path}: {_first_problem(error)}") from error


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    field = ".".join(str(p) for p in problem["loc"])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if problem["type"] == "extra_forbidden":
        return f"{field}: unknown key; check its spelling, or delete it{more}"
    if problem["type"] == "model_type" and problem["input"] is None:
        return f"{field}: is empty; write its values below it, or delete it{more}"
    said = problem["msg"].removeprefix("Value error, ")
    got = "" if isinstance(problem["input"], dict) else f", got {problem['input']!r}"  # of a whole section the message names the field
    return f"{field}: {said}{got}{more}"
