"""Dataset → editor (paper §3.2): the teacher's UNet, grown, learns to denoise the edited image given the source.

Crash-safe: checkpoints carry everything and every step seeds its own randomness, so a killed run resumed gives the same
losses. The global batch is drawn alike by all and split over workers, so it does not depend on their number.
"""

from __future__ import annotations

import copy
import fcntl
import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ip2p.diffusion import Diffusion
from ip2p.errors import DataError, ModelError, ParamsError, UserError
from ip2p.model.data import Latents, example_pairs, load_latents
from ip2p.model.edit import edit_batch
from ip2p.model.folder import save_editor
from ip2p.model.guidance import EditRequest, edit_options
from ip2p.model.lora import merge_lora
from ip2p.model.objective import learning_rate, require_optimizer
from ip2p.model.plan import memory_gb, out_of_memory, require_memory
from ip2p.model.preferences import Preferences, load_preferences, preferences_folder
from ip2p.model.seen import NONE, Seen, known_by, read_seen
from ip2p.model.trainer import Job, Trainer
from ip2p.model.unet import require_start
from ip2p.models import editor_folder, editor_named, load_diffusion, model_digest, model_label, placement
from ip2p.parallel import barrier, joined, launch
from ip2p.params import Params, TrainParams
from ip2p.pictures import grid, to_pillow
from ip2p.records import MLFLOW_RUN, StageReport
from ip2p.sampler import PREDICTIONS
from ip2p.startup import expect_processes
from ip2p.store import Folder, code_mark, digest, fingerprint, read_json, read_shards, write_json
from ip2p.track import MADE, Run, track

_GRID, _GRID_PIXELS = 6, 2**21
"""Examples of a sample grid, and pixels of them that are edited at once."""
_MEMORY = {"accumulate", "gradient_checkpointing", "compile", "ema_on_cpu"}
_WITHOUT_EFFECT = {"workers", "log_every", "grid_every", "checkpoint_every", "keep", "cache_gb", *_MEMORY}
"""Parameters that do not change what is learned, up to the order of sums."""
CODE = (
    *(f"model/{n}.py" for n in ("train", "trainer", "objective", "lora", "data", "unet", "preferences")),
    *(f"{n}.py" for n in ("attention", "compiled", "diffusion", "models", "muon", "parallel", "pictures", "sampler")),
)
"""What decides what is learned."""
Progress = Callable[[int, int], None]
Loaded = tuple[Diffusion, tuple[Latents, ...], Preferences | None]


class DivergedError(UserError):
    """The loss, or a weight, is no longer a number."""


def run(params: Params, *, dataset: Folder, marker: Path, out: Path, work: Path, progress: Progress = lambda done, of: None) -> StageReport:
    """Train an editor into the diffusers folder `out`, resuming from `work`. Raises `DataError` if not validated."""
    began = time.monotonic()
    section = params.train
    if not marker.exists():
        raise DataError(f"{marker}: missing, so {dataset} was not validated; run `ip2p validate` (or `dvc repro`) first")
    device, dtype = placement(params.models)
    if params.models.threads:
        torch.set_num_threads(params.models.threads)
    rank, launched = joined(cpu=device.type == "cpu")
    workers = launched if launched > 1 else section.workers if device.type == "cpu" else 1
    if launched == 1 and device.type == "cuda" and (cards := torch.cuda.device_count()) > 1:
        print(f"train: one of {cards} GPUs is used; `accelerate launch --num_processes {cards} -m ip2p.cli train` uses all", flush=True)
    _require_shares(section, workers)
    if launched == 1 < workers:
        expect_processes()
    data = digest(dataset)
    if read_json(marker).get("dataset") != data:
        raise DataError(f"{dataset}: changed since it was validated; run `ip2p validate` (or `dvc repro`) first")
    preferences = preferences_folder(section.preferences) if section.preferences else None
    mark = fingerprint(
        "train",
        section.model_dump(exclude=_WITHOUT_EFFECT),
        digest(preferences) if preferences else None,
        params.seed,
        str(dtype),
        data,
        model_digest(*start_of(params)),
        code_mark(*CODE),
    )
    job = Job(params, dataset, data, work / mark, out, preferences)
    job.work.mkdir(parents=True, exist_ok=True)
    with _alone(work) if rank == 0 else nullcontext():
        _all(rank, launched, workers, job, partial(_told_of, job, progress))
    last = read_json(job.work / "progress.json")
    seen = section.steps * section.batch
    extra = {"loss": last["loss"], "samples_per_second": last["samples_per_second"], "dataset": data[:16], "run": mark}
    extra[MLFLOW_RUN] = (job.work / "mlflow-run").read_text(encoding="utf-8")
    return StageReport(stage="train", seen=seen, kept=seen, seconds=time.monotonic() - began, extra=extra)


@contextmanager
def _alone(work: Path) -> Iterator[None]:
    """Hold the folder of checkpoints; who dies lets go. Raises `UserError` if another training holds it."""
    with (work / ".lock").open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{work}: another training is under way there; wait for it, or end it and run again") from error
        yield


def _all(rank: int, launched: int, workers: int, job: Job, watch: Callable[[], None]) -> None:
    """Train, in this process or in several, and drop what earlier trainings left."""
    base = load_base(job.params)
    require_start(base.unet, base.latent_channels)
    require_optimizer(job.params.train)
    require_memory(job.params, base, workers=workers)
    loaded = base, *_data(job, base, rank, launched)  # encoded once, before several processes want it
    if launched > 1 or workers == 1:
        _work(rank, workers, job, loaded, watch)
    else:
        del base, loaded
        launch(workers, _work, job, watch=watch)
    barrier()
    if rank == 0:
        for old in job.work.parent.iterdir():
            if old.is_dir() and old != job.work:
                shutil.rmtree(old)


def _require_shares(section: TrainParams, workers: int) -> None:
    """Raise `ParamsError` unless a step's samples, and its preferences, fall evenly to processes and their parts."""
    shares = f"{workers} processes" + (f" × train.accumulate = {section.accumulate}" if section.accumulate > 1 else "")
    for name in ("batch", *(("preference_batch",) if section.preferences else ())):
        if (asked := getattr(section, name)) % (workers * section.accumulate):
            raise ParamsError(f"train.{name}: {asked} cannot be shared by {shares}; make it a multiple")


def start_of(params: Params) -> tuple[str, str]:
    """What training starts from: the name of a model, and what `world` stands for there (an editor, or the teacher)."""
    return (params.train.start, "editor") if params.train.start else (params.models.teacher, "teacher")


def load_base(params: Params) -> Diffusion:
    """The model that training starts from: the teacher, or an editor; told to predict what the parameters say."""
    from diffusers import DDIMScheduler

    models, section = params.models, params.train
    device, dtype = placement(models)
    name, kind = start_of(params)
    subject = "train.start" if section.start else "models.teacher"
    base = load_diffusion(name, device=device, dtype=dtype, kind=kind, subject=subject, exact=True)
    for size in section.sizes:
        if size % base.factor:
            raise ParamsError(f"train.sizes: {size} pixels are no multiple of the autoencoder's {base.factor}")
    base = replace(base, side=max(section.sizes, default=None))
    if section.preferences and section.preference_loss == "dpo" and section.prediction not in (None, base.prediction):
        raise ParamsError(f"train.prediction: leave it out, for DPO measures against the start, which predicts `{base.prediction}`")
    if section.prediction is not None:
        return replace(base, scheduler=DDIMScheduler.from_config(base.scheduler.config, prediction_type=section.prediction))
    if base.prediction not in PREDICTIONS:
        told = f"predicts `{base.prediction}`, which is not known here; set train.prediction to one of {', '.join(PREDICTIONS)}"
        raise ModelError(f"{subject}: {name} {told}")
    return base


def _data(job: Job, base: Diffusion, rank: int = 0, workers: int = 1) -> tuple[tuple[Latents, ...], Preferences | None]:
    params, cache = job.params, job.work.parent
    mark = model_digest(*start_of(params))
    of = partial(load_latents, job.dataset, base, params.train, model_digest=mark, seed=params.seed, cache=cache)
    latents = of(rank=rank, workers=workers, on_part=lambda part, parts: print(f"train: latents, part {part} of {parts}", flush=True))
    if job.preferences is None:
        return latents, None
    return latents, load_preferences(job.preferences, base, model_digest=mark, cache=cache, rank=rank)


def _told_of(job: Job, progress: Progress) -> None:
    """Tell how far the process that writes `progress.json`, this one or another, has come."""
    if (path := job.work / "progress.json").exists():
        progress(read_json(path)["step"], job.params.train.steps)


def _work(rank: int, workers: int, job: Job, loaded: Loaded | None = None, watch: Callable[[], None] = lambda: None) -> None:
    if loaded is None:
        base = load_base(job.params)
        loaded = base, *_data(job, base)
    trainer = Trainer(job, rank, workers, *loaded)
    del loaded
    if rank > 0:
        _train(trainer, None, watch)
        return
    params = job.params
    parameters = {f"train.{k}": v for k, v in params.train.model_dump().items()} | {
        "teacher": params.models.teacher,
        "seed": params.seed,
        "dataset": job.data_digest,
        "processes": workers,
    }
    with track(params.track, "train", parameters, resume=job.work / "mlflow-run") as tracked:
        _train(trainer, tracked, watch)
        if params.train.lora_rank:
            merge_lora(trainer.unet, trainer.ema, job.work / "lora")
        else:
            trainer.unet.load_state_dict(trainer.ema)
        record = {
            "start": model_label(*start_of(params)),
            "start_digest": model_digest(*start_of(params)),
            "dataset": job.data_digest,
            "seed": params.seed,
            "dtype": str(trainer.base.dtype),
            "pairs": len(trainer.latents[0]),
            "preferences": len(trainer.preferences or ()),
            "loss": read_json(job.work / "progress.json")["loss"],
            "train": recorded(params.train),
        }
        lora = job.work / "lora" if params.train.lora_rank else None
        save_editor(trainer.unet, trainer.base, job.out, lora=lora, record=record, seen=_seen(job))
        tracked.tag(MADE, digest(job.out))
        _log_grid(trainer, tracked)


def recorded(section: TrainParams) -> dict[str, Any]:
    """The section as an editor's record tells it, which leaves this machine: of paths the last part."""
    paths = {name: path for name in ("start", "preferences") if (path := getattr(section, name))}
    return section.model_dump(mode="json") | {name: Path(path).name for name, path in paths.items()}


def _seen(job: Job) -> Seen:
    """The captions trained on now, and those that an editor to go on from was trained on before."""
    name, kind = start_of(job.params)
    folder = editor_folder(editor_named(name)) if kind == "editor" else None
    rows = read_shards(job.dataset, "train-", columns=["original_prompt", "triplet_id"]).to_pylist()
    before = NONE if folder is None else read_seen(folder)
    return before.with_captions(known_by(row["original_prompt"], row["triplet_id"]) for row in rows)


def _train(trainer: Trainer, tracked: Run | None, watch: Callable[[], None]) -> None:
    """The loop: step, and on rank 0 log, checkpoint and draw sample grids."""
    section = trainer.job.params.train
    began, since = time.monotonic(), trainer.step
    while trainer.step < section.steps:
        try:
            loss = trainer.advance()
        except torch.OutOfMemoryError as error:
            raise out_of_memory(section, trainer.step + 1, workers=trainer.workers) from error
        last = trainer.step == section.steps
        keep = last or trainer.step % section.checkpoint_every == 0
        if not math.isfinite(loss) or (keep and not trainer.finite()):
            found = f"the loss is {loss}" if not math.isfinite(loss) else "weights are no longer finite"
            raise DivergedError(f"train: {found} at step {trainer.step}; lower train.lr in params.yaml, which begins anew")
        if tracked is None:
            continue
        values = None
        if last or trainer.step % section.log_every == 0:
            speed = (trainer.step - since) * section.batch / (time.monotonic() - began)
            values = _tell(trainer, speed)
            watch()
            began, since = time.monotonic(), trainer.step
        if keep:
            trainer.save()
        if values is not None:  # after what is kept, for it may wait for a server
            tracked.metrics(values, trainer.step)
        if not last and trainer.step % section.grid_every == 0:
            _log_grid(trainer, tracked)


def _tell(trainer: Trainer, speed: float) -> dict[str, float]:
    """How training goes: printed, written beside its checkpoints and returned."""
    section = trainer.job.params.train
    recent = trainer.losses[-((trainer.step - 1) % section.log_every + 1) :]
    values = {
        "loss": sum(recent) / len(recent),
        "samples_per_second": speed,
        "lr": learning_rate(section, trainer.step - 1),
        "gradient_norm": trainer.gradient_norm.item(),
        "memory_gb": memory_gb(trainer.base.device),
    } | ({} if trainer.preferences is None else {"preference_loss": trainer.preference_loss})
    write_json(trainer.job.work / "progress.json", {"step": trainer.step, **values})
    preferred = f"  of preferences {trainer.preference_loss:.4f}" if trainer.preferences else ""
    print(f"train {trainer.step}/{section.steps}  loss {values['loss']:.4f}{preferred}  {speed:.1f} samples/s", flush=True)
    return values


def _log_grid(trainer: Trainer, tracked: Run) -> None:
    """Log source, the dataset's edit and the editor's edit of a few examples, by the averaged weights and fixed seeds."""
    section, base = trainer.job.params.evaluate, trainer.base
    instructions, before, after = example_pairs(trainer.job.dataset, _GRID, base.image_size)
    averaged = copy.deepcopy(trainer.unet)
    averaged.load_state_dict(trainer.ema, strict=False)
    editor = replace(base, unet=averaged.eval())
    requests = [EditRequest(x, section.text_guidance, section.image_guidance, i) for i, x in enumerate(instructions)]
    some, options = max(1, _GRID_PIXELS // base.image_size**2), edit_options(section)
    edited = torch.cat([edit_batch(editor, before[i : i + some], requests[i : i + some], options) for i in range(0, len(before), some)])
    sheet = grid([[to_pillow(x) for x in trio] for trio in zip(before, after, edited, strict=True)])
    tracked.picture(sheet, f"grids/{trainer.step:06d}.png")
