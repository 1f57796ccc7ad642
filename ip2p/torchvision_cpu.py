"""Let `torchvision` be imported beside a CPU build of torch that has no matching torchvision build.

open_clip and transformers import torchvision for its transforms only; its native operators `nms` and `qnms` are never
called. Where the native library cannot load, importing fails for want of their schemas: `declare_operators` adds them.
Call it before the first import of open_clip, transformers or diffusers.
"""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from pathlib import Path


@lru_cache(maxsize=1)
def declare_operators() -> None:
    """Declare the schemas of torchvision's operators if its native library cannot be loaded."""
    import torch

    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None or hasattr(torch.ops.torchvision, "nms"):
        return
    for library in Path(spec.origin).parent.glob("_C*.so"):
        try:
            torch.ops.load_library(str(library))
            return
        except OSError:
            continue
    schemas = torch.library.Library("torchvision", "DEF")
    schemas.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    schemas.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    declare_operators.__dict__["library"] = schemas
