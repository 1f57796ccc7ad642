"""`ip2p doctor`: is this machine ready? Versions, device, disk, embedded models, offline state, parameters."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ip2p.errors import UserError
from ip2p.params import load_params

_PACKAGES = ("ip2p", "torch", "diffusers", "transformers", "open_clip_torch", "prefect", "dvc", "mlflow", "great_expectations", "pyarrow")
_FREE_GB = 3
_OFFLINE = ("HF_HUB_OFFLINE", "PREFECT_API_URL", "MLFLOW_TRACKING_URI")


def diagnose(params_path: Path) -> tuple[list[str], bool]:
    """Lines to print and whether all is well."""
    checks = [_python(), *_packages(), _device(), _disk(), _weights(), _parameters(params_path)]
    lines = [f"{'ok  ' if good else 'FAIL'}  {line}" for good, line in checks]
    lines += [f"      {name}={os.environ.get(name, '(not set)')}" for name in _OFFLINE]
    return lines, all(good for good, _ in checks)


def _python() -> tuple[bool, str]:
    return sys.version_info >= (3, 11), f"python {platform.python_version()}"


def _packages() -> list[tuple[bool, str]]:
    found = []
    for package in _PACKAGES:
        try:
            found.append((True, f"{package} {version(package)}"))
        except PackageNotFoundError:
            found.append((False, f"{package} is not installed; run `make setup`"))
    return found


def _device() -> tuple[bool, str]:
    import torch

    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
    return True, f"device: {os.cpu_count()} CPU cores, {torch.get_num_threads()} torch threads, GPU {gpu}"


def _disk() -> tuple[bool, str]:
    free = shutil.disk_usage(".").free / 1e9
    return free > _FREE_GB, f"disk: {free:.1f} GB free" + ("" if free > _FREE_GB else f"; a run wants {_FREE_GB} GB")


def _weights() -> tuple[bool, str]:
    from ip2p.models import EMBEDDED

    files = list(EMBEDDED.rglob("*.safetensors"))
    size = sum(f.stat().st_size for f in files) / 1e6
    return len(files) >= 4, f"embedded models: {len(files)} files, {size:.1f} MB" + ("" if len(files) >= 4 else "; run `ip2p pretrain`")


def _parameters(path: Path) -> tuple[bool, str]:
    try:
        params = load_params(path)
    except UserError as error:
        return False, str(error)
    return True, f"parameters: {path} (teacher {params.models.teacher}, clip {params.models.clip})"
