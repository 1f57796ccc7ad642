"""How much memory training takes, known before it starts: weights and their kin by arithmetic, activations by a dry pass.

The dry pass runs the UNet on fake tensors, which have shapes and no data, and counts what autograd would keep. The
estimate leaves out the allocator's gaps and workspaces; `_SLACK` covers them.
"""

from __future__ import annotations

import re
import resource
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from ip2p.diffusion import Diffusion, text_arguments
from ip2p.errors import ParamsError
from ip2p.model.lora import add_lora
from ip2p.params import Params, TrainParams

_SLACK = 1.15
_FLOAT = 4
_SMALLEST = 4
"""Samples at once below which a part is too small to be proposed."""
_RANK = 64
"""Of the LoRA that is proposed."""
_GROUP = Path("/sys/fs/cgroup")
_RECOMPUTED = 1 / 8
"""Share of all activations that is alive at once while checkpointed layers compute theirs again."""


@dataclass(frozen=True)
class Memory:
    """Estimated memory of one training process, GB."""

    weights: float
    frozen: float
    """Autoencoder and text encoder; with DPO, the UNet as it was at the start."""
    gradients: float
    optimizer: float
    ema: float
    activations: float
    grids: float
    """A copy of the UNet with the averaged weights, which draws sample grids while there are no activations."""
    checkpoint: float
    """A copy of what a checkpoint holds, while it is written and there are no activations; of a GPU's training it is in `host`."""
    host: float
    """Of a GPU's training, in the machine's memory and not part of the total: a checkpoint, and an average that is kept there."""

    @property
    def total(self) -> float:
        """All of it, with slack."""
        kept = self.weights + self.frozen + self.gradients + self.optimizer + self.ema
        return _SLACK * (kept + max(self.activations, self.grids, self.checkpoint))

    def lines(self) -> list[str]:
        """A table, a line each."""
        rows = [(f.name, getattr(self, f.name)) for f in fields(self) if f.name != "host"]
        rows.append((f"in all, with {_SLACK - 1:.0%} for gaps (activations, grids and a checkpoint are not there at once)", self.total))
        rows += [("of the machine's memory, while a checkpoint is written", self.host)] if self.host else []
        return [f"{value:8.2f} GB  {name}" for name, value in rows]


@dataclass(frozen=True)
class DryPass:
    """What passes without data told of a UNet."""

    parameters: int
    trained: int
    once: float
    """Bytes that autograd keeps whatever the batch: weights in lower precision."""
    each: float
    """Bytes that it keeps of each sample."""


def estimate(base: Diffusion, section: TrainParams, *, gpu: bool, workers: int = 1) -> Memory:
    """Memory of one process of `workers` that trains `base` as the parameters say, at the model's own picture size; on a GPU, the GPU's."""
    return _memory(base, section, _dry_pass(base, section), gpu=gpu, workers=workers)


def _memory(base: Diffusion, section: TrainParams, dry: DryPass, *, gpu: bool, workers: int) -> Memory:
    part = section.batch // (workers * section.accumulate)
    weights, trained = dry.parameters * _FLOAT, dry.trained * _FLOAT
    moments = {"adamw": 2.0, "adamw8bit": 0.5, "muon": 1.0}[section.optimizer]
    orthogonalising = 2.5 * trained if section.optimizer == "muon" else 0.0  # measured: 10 bytes a weight, after the activations have gone
    frozen = [x for x in (base.vae, base.text_encoder, base.text_encoder_2) if x is not None]
    dpo = bool(section.preferences) and section.preference_loss == "dpo"
    start = weights if dpo else 0.0  # preferences are measured against the UNet as it was
    preferred = (1 + dpo) * (section.preference_batch // (workers * section.accumulate)) if section.preferences else 0
    parts = [weights, sum(map(_bytes, frozen)) + start, trained, moments * trained]
    parts += [0.0 if section.ema_on_cpu and gpu else trained, max(dry.once + max(part, preferred) * dry.each, orthogonalising), weights]
    checkpoint = (2 + moments) * trained  # weights, their average, moments
    parts += [0.0, checkpoint + (2 * trained if section.ema_on_cpu else 0.0)] if gpu else [checkpoint, 0.0]
    return Memory(*(x / 1e9 for x in parts))


def _dry_pass(base: Diffusion, section: TrainParams) -> DryPass:
    from torch._subclasses.fake_tensor import FakeTensorMode

    unet = _unet_without_data(base, section)
    with FakeTensorMode():
        _fill(unet)
        one, two = (float(_activations(unet, base, n)) for n in (1, 2))
        if section.gradient_checkpointing:
            unet.disable_gradient_checkpointing()
            one, two = (kept + _activations(unet, base, n) * _RECOMPUTED for n, kept in ((1, one), (2, two)))
    counts = [(p.numel(), p.requires_grad) for p in unet.parameters()]
    return DryPass(sum(n for n, _ in counts), sum(n for n, trained in counts if trained), once=2 * one - two, each=two - one)


def propose(base: Diffusion, section: TrainParams, *, limit_gb: float, gpu: bool, workers: int = 1) -> TrainParams | None:
    """The parameters with the least change of speed that fit into `limit_gb`; none if none do. What is learned stays, LoRA apart."""
    for changed in _savings(section, gpu=gpu):
        dry = _dry_pass(base, changed)
        share = section.batch // workers
        for accumulate in _divisions(section, workers):
            proposal = changed.model_copy(update={"accumulate": accumulate})
            if share // accumulate < min(_SMALLEST, share):
                break
            if _memory(base, proposal, dry, gpu=gpu, workers=workers).total <= limit_gb:
                return proposal
    return None


def memory_gb(device: torch.device) -> float:
    """The most memory that this process has held so far: the GPU's, or the machine's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def require_memory(params: Params, base: Diffusion, *, workers: int) -> None:
    """Raise `ParamsError` with a remedy if training cannot fit into the memory that is free."""
    gpu = base.device.type == "cuda"
    section, free = params.train, free_gb(base.device) / (1 if gpu else workers)
    if gpu:
        free += torch.cuda.memory_reserved(base.device) / 1e9  # the model itself, which the estimate counts
    need = estimate(base, section, gpu=gpu, workers=workers)
    if need.host > (host := free_gb(torch.device("cpu"))):
        told = f"writing checkpoints takes {need.host:.1f} GB of the machine's memory, {host:.1f} GB are free"
        smaller = "" if section.lora_rank else f", or set train.lora_rank: {_RANK}"
        raise ParamsError(f"train: {told}; give the machine or the container more{smaller} (`ip2p train plan` shows the parts)")
    if need.total <= free:
        return
    proposal = propose(base, section, limit_gb=free, gpu=gpu, workers=workers)
    advice = f"set {changes(section, proposal)}" if proposal else "take a smaller teacher or a larger machine"
    raise ParamsError(
        f"train: needs about {need.total:.1f} GB a process, {free:.1f} GB are free; {advice} (`ip2p train plan` shows the parts)"
    )


def out_of_memory(section: TrainParams, step: int, *, workers: int) -> ParamsError:
    """What to say when a step did not fit after all, because of gaps, or of others on the card."""
    smaller = next((n for n in _divisions(section, workers) if n > section.accumulate), None)
    ways = [f"train.accumulate: {smaller}"] if smaller else []
    ways += [] if section.gradient_checkpointing else ["train.gradient_checkpointing: true"]
    told = (
        f"set {' or '.join(ways)}, and run again: it goes on from the last checkpoint" if ways else "take a larger card, or train.lora_rank"
    )
    return ParamsError(f"train: the GPU's memory was full at step {step}; {told}")


def _divisions(section: TrainParams, workers: int) -> Iterator[int]:
    """Into how many parts, those of now or more, a process can divide its share of a step's samples and of its preferences."""
    shares = [section.batch // workers, *([section.preference_batch // workers] if section.preferences else ())]
    return (n for n in range(section.accumulate, min(shares) + 1) if all(s % n == 0 for s in shares))


def advise(params: Params, *, gpu_gb: float | None = None) -> list[str]:
    """What training would take, and the settings with which it fits into `gpu_gb` (or what is free here)."""
    from ip2p.model.train import load_base

    base, section = load_base(params), params.train
    gpu = base.device.type == "cuda" or gpu_gb is not None
    if gpu_gb is not None and params.models.dtype == "auto":
        base = replace(base, dtype=torch.bfloat16)  # what `auto` means on a card, whatever this machine has
    workers = 1 if gpu else section.workers
    limit = gpu_gb or free_gb(base.device) / workers
    need = estimate(base, section, gpu=gpu, workers=workers)
    lines = [f"a process, {section.batch // workers // section.accumulate} samples at once, {base.dtype}:", *need.lines()]
    if need.total <= limit:
        return [*lines, f"fits into {limit:.1f} GB"]
    proposal = propose(base, section, limit_gb=limit, gpu=gpu, workers=workers)
    if proposal is None:
        return [*lines, f"does not fit into {limit:.1f} GB, whatever is saved; take a smaller teacher or a larger machine"]
    then = estimate(base, proposal, gpu=gpu, workers=workers).total
    return [*lines, f"does not fit into {limit:.1f} GB; {then:.1f} GB with {changes(section, proposal)}"]


def changes(before: TrainParams, after: TrainParams) -> str:
    """What differs, as it is written in params.yaml."""
    old, new = before.model_dump(), after.model_dump()
    return ", ".join(f"train.{k}: {str(v).lower()}" for k, v in new.items() if v != old[k]) or "nothing"


def free_gb(device: torch.device) -> float:
    """Memory that can be had on a GPU; or on the machine, within the limit of the container."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / 1e9
    available = int(psutil.virtual_memory().available)
    try:
        limit, used = (int((_GROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        cached = re.search(r"^inactive_file (\d+)", (_GROUP / "memory.stat").read_text(), re.MULTILINE)
        available = min(available, limit - used + int(cached[1] if cached else 0))
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        pass
    return available / 1e9


def _savings(section: TrainParams, *, gpu: bool) -> Iterator[TrainParams]:
    yield section
    lean = section.model_copy(update={"gradient_checkpointing": True})
    yield lean
    if gpu:
        lean = lean.model_copy(update={"ema_on_cpu": True} | ({"optimizer": "adamw8bit"} if section.optimizer == "adamw" else {}))
        yield lean
    yield lean.model_copy(update={"lora_rank": section.lora_rank or _RANK})


def _bytes(module: Any) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())


def _activations(unet: Any, base: Diffusion, batch: int) -> int:
    """Bytes that autograd keeps of a batch for one backward pass."""
    side, context = base.image_size // base.factor, base.text_encoder.config.max_position_embeddings
    rows = torch.empty(batch, unet.config.in_channels, side, side)
    text = torch.empty(batch, context + (base.text_encoder_2 is not None), unet.config.cross_attention_dim)
    known = {x.untyped_storage()._cdata for x in unet.parameters()}
    kept: list[Tensor] = []

    def pack(x: Tensor) -> Tensor:
        if x.untyped_storage()._cdata not in known:
            known.add(x.untyped_storage()._cdata)
            kept.append(x)
        return x

    low = torch.autocast("cpu", dtype=torch.bfloat16, enabled=base.dtype != torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), low:
        unet(rows, torch.zeros(batch, dtype=torch.long), **text_arguments(base, text, (side, side)))
    return sum(x.untyped_storage().nbytes() for x in kept)


def _unet_without_data(base: Diffusion, section: TrainParams) -> Any:
    """The UNet that would be trained, in shapes only; call outside of a `FakeTensorMode`, then `_fill` inside."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config({**base.unet.config, "in_channels": 2 * base.latent_channels}).train()
        if section.lora_rank:
            add_lora(unet, section.lora_rank, seed=0)
    if section.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    return unet


def _fill(unet: Any) -> None:
    """Put tensors that look like those of a CPU in place of shapes; call in a `FakeTensorMode`."""
    for module in unet.modules():
        for name, p in module._parameters.items():
            if p is not None:
                module._parameters[name] = torch.nn.Parameter(torch.empty(p.shape, device="cpu"), requires_grad=p.requires_grad)
