"""What the sections of params.yaml share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
Similarity = Annotated[float, Field(ge=-1, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A section of params.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class StorageParams(Section):
    """Where training reads the dataset if none lies in data/: straight from a DVC remote, in the version that dvc.lock names."""

    remote: str | None = None
    """The remote's address, such as `s3://bucket/dvc`; none: `dvc pull` is wanted first. Keys come from the environment."""
    endpoint: str | None = None
    """Address of an S3 endpoint other than Amazon's, such as `http://127.0.0.1:8333`."""
    cache_gb: Positive = 20.0
    """Most that shards read from there take on this disk, GB; those used longest ago go first."""


class ModelsParams(Section):
    """Which models, and where they run."""

    teacher: str = "world"
    """`world` (embedded, 96 pixels; `world-128`: it draws 128), a diffusers text-to-image folder (`./path`), or a Hub id, which `@commit`
    pins (`owner/name@commit`)."""
    clip: str = "world"
    """`world`, an OpenCLIP folder (`./path`), or `ARCHITECTURE:PRETRAINED`, such as `ViT-L-14-quickgelu:openai`."""
    safety: str | None = None
    """An image classifier (transformers folder or Hub id, such as `Falconsai/nsfw_image_detection`) that rates pairs; none: not rated."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1` …"""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Arithmetic of UNet and autoencoder (weights that are trained, and the optimizer, stay float32); `auto`: bfloat16 where the
    hardware has it."""
    compile: bool = False
    """Whether sampling is compiled (`torch.compile`). On a GPU UNet and autoencoder: two minutes at the start for edits, more for
    pairs; on a CPU the UNet alone, a minute or two for each size of batch. It needs a C compiler, on a CPU one of C++."""
    threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads of a single-process stage; 0 leaves it to torch."""
