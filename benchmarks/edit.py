"""Edits a second: ours against diffusers' pipeline on the same weights, with what each saving costs in quality.

`python -m benchmarks.edit`, with the editor that ships: the same picture first (*differs*: largest difference of a pixel from the
pipeline's), then savings that change the picture, each with its success on edits whose captions the editor was not trained on, and the
difference of that from the pipeline's, edit by edit. `--model sd15` builds a folder of Stable
Diffusion 1.5's true size with random weights (512 px; quality says nothing there) and wants a GPU; `sd15-small` checks that
command anywhere. All ways take turns at each picture and at each batch, for a machine that others use too is not as fast from one
minute to the next: × is the median over the turns of how many times as long the first way took in that turn, ms the median itself.
*peak* and *bandwidth* are the shares of what the device was measured to do; bytes are those of the operators one by one, unfused.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.card import Cost, cost_of, seconds
from benchmarks.sd15 import build
from ip2p.dataset.world_writer import write_triplets
from ip2p.diffusion import Diffusion
from ip2p.model.bootstrap import bootstrap, share_interval
from ip2p.model.edit import edit_batch, load_editor
from ip2p.model.folder import save_editor
from ip2p.model.guidance import EditOptions, EditRequest
from ip2p.model.seen import read_seen
from ip2p.models import editor_folder, editor_named, resolve_device
from ip2p.params import load_params
from ip2p.torchvision_cpu import declare_operators
from ip2p.world.truth import Truth, read_edit, truth_of

Edit = Callable[[slice], Tensor]


@dataclass(frozen=True)
class Work:
    """Held-out edits, and the scales and steps at which they are made."""

    folder: Path
    requests: list[EditRequest]
    truths: list[Truth]
    steps: int
    batch: int
    device: torch.device

    @property
    def sources(self) -> Tensor:
        return torch.stack([t.source_CHW for t in self.truths])


@dataclass
class Way:
    """A way to make the edits, and what it took: the seconds of each turn at one picture and at a batch, and the pictures."""

    name: str
    dtype: torch.dtype
    edit: Edit
    counted: Edit
    """The same way uncompiled and without graphs, for neither can be counted."""
    alone: list[float] = field(default_factory=list)
    batches: list[float] = field(default_factory=list)
    pictures: list[Tensor] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="world", help="`world`, an editor folder, sd15 or sd15-small (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=16, help="of the editing that others are compared with (default: %(default)s)")
    parser.add_argument("--edits", type=int, default=264, help="edits (default: %(default)s)")
    parser.add_argument("--timed", type=int, default=12, help="edits timed one by one (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=12, help="edits at once for throughput (default: %(default)s)")
    parser.add_argument("--compile", action="store_true", help="also with torch.compile")
    parser.add_argument("--half", action="store_true", help="bfloat16 alone, for a GPU that is had for minutes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        made = options.model in ("sd15", "sd15-small")
        path = build(Path(folder) / "sd15", small=options.model != "sd15", editor=True) if made else whole(options.model, Path(folder))
        work = prepare(path, options, made=made)
        tried = list(ways(work, compiled=options.compile, half=options.half))
        costs = [warm_up(way, work) for way in tried]
        take_turns(tried, work, timed=options.timed)
        print(table(tried, costs, work, made=made), flush=True)


def warm_up(way: Way, work: Work) -> Cost:
    """Make the first edits, for which graphs are captured and models compiled; what a batch costs."""
    for size in (1, work.batch):
        way.edit(slice(0, size))
    print(f"ready: {way.name}", file=sys.stderr, flush=True)
    return cost_of(partial(way.counted, slice(0, work.batch)))


def take_turns(ways: list[Way], work: Work, *, timed: int) -> None:
    """Time all ways at one picture after the other, then at one batch after the other."""
    for i in range(timed):
        for way in ways:
            way.alone.append(seconds(partial(way.edit, slice(i, i + 1)), work.device))
    for first in range(0, len(work.requests), work.batch):
        for way in ways:
            way.batches.append(seconds(partial(make, way, slice(first, first + work.batch)), work.device))
        print(f"{first + work.batch} of {len(work.requests)} edits", file=sys.stderr, flush=True)


def make(way: Way, some: slice) -> None:
    """Make edits and keep their pictures."""
    way.pictures.append(way.edit(some))


def table(ways: list[Way], costs: list[Cost], work: Work, *, made: bool) -> str:
    """A row for each way, against the first."""
    judged = () if made else ("success", "− the first row's")
    head = ("", "ms alone", "×", "ms in batches", "×", "differs", *judged, "peak", "bandwidth")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    reference = torch.cat(ways[0].pictures)
    usual = [] if made else successes(reference, work)
    for way, cost in zip(ways, costs, strict=True):
        pictures, together = torch.cat(way.pictures), statistics.median(way.batches)
        cells = [way.name, *speed(way.alone, ways[0].alone, 1), *speed(way.batches, ways[0].batches, work.batch)]
        cells += [f"{(pictures - reference).abs().max():.1e}", *([] if made else [quality(successes(pictures, work), usual)])]
        lines.append(f"| {' | '.join(cells)} | {cost.shares(together, work.device, way.dtype)} |")
    return "\n".join(lines)


def speed(spent: list[float], first: list[float], edits: int) -> tuple[str, str]:
    """Milliseconds an edit, and how many times as long the first way takes: medians over the turns."""
    return f"{statistics.median(spent) / edits * 1e3:.0f}", f"{statistics.median(a / b for a, b in zip(first, spent, strict=True)):.1f}"


def successes(pictures: Tensor, work: Work) -> list[float]:
    """Of each edit whether it did what was asked and nothing else."""
    return [float(r.done and r.stayed) for r in map(read_edit, pictures, work.truths)]


def whole(name: str, work: Path) -> Path:
    """The folder of an editor with all its parts, as diffusers' pipeline wants it."""
    named = editor_named(name)
    if isinstance(named, Path):
        return named.resolve()
    editor = load_editor(named, device=torch.device("cpu"))
    save_editor(editor.unet, editor, work / "editor", seen=read_seen(editor_folder(named)))
    return work / "editor"


def prepare(folder: Path, options: argparse.Namespace, *, made: bool) -> Work:
    """The world's edits, drawn at the editor's size."""
    section = load_params(Path("params/sd15.yaml" if made else "params.yaml")).evaluate
    device = resolve_device("auto")
    size = load_editor(folder, device=device).image_size
    count = options.edits // options.batch * options.batch
    triplets = list(write_triplets(count=count, stream="benchmark-edit", avoid=read_seen(folder)))
    truths = [truth_of(t.caption.text, t.instruction, seed=i, size=size) for i, t in enumerate(triplets)]
    requests = [EditRequest(t.instruction, section.text_guidance, section.image_guidance, i) for i, t in enumerate(triplets)]
    return Work(folder, requests, truths, options.steps, options.batch, device)


def ways(work: Work, *, compiled: bool, half: bool) -> Iterator[Way]:
    """Each way to make the same edits, then the ways that cost quality."""
    steps, bfloat16 = work.steps, torch.bfloat16
    dtypes = (bfloat16,) if half else (torch.float32, bfloat16)
    same = EditOptions(steps, "euler_ancestral")
    for dtype in dtypes:
        edit = partial(by_pipeline, load_pipeline(work.folder, work.device, dtype), work)
        yield Way(f"diffusers' pipeline, {steps} steps, {told(dtype)}", dtype, edit, edit)
    for dtype in dtypes:
        editor = load_editor(work.folder, device=work.device, dtype=dtype)
        plain = replace(editor, graphed=None)
        yield Way(f"ours, {told(dtype)}", dtype, ours(editor, work, same), ours(plain, work, same))
        if compiled:
            editor = load_editor(work.folder, device=work.device, dtype=dtype, compiled=True)
            yield Way(f"ours, {told(dtype)}, compiled", dtype, ours(editor, work, same), ours(plain, work, same))
    half_steps, third = max(2, steps // 2), max(2, steps // 3)
    approximations = {
        "guidance differences kept for 2 steps": EditOptions(steps, every=2),
        "+ guidance in the first three quarters only": EditOptions(steps, interval=(0.0, 0.75), every=2),
        f"{half_steps} steps": EditOptions(half_steps),
        f"{half_steps} steps, differences kept for 2": EditOptions(half_steps, every=2),
        f"{third} steps": EditOptions(third),
        f"{third} steps, differences kept for 2": EditOptions(third, every=2),
        f"DPM-Solver++(2M), {half_steps} steps": EditOptions(half_steps, "dpmpp_2m"),
        f"DPM-Solver++(2M), {third} steps": EditOptions(third, "dpmpp_2m"),
    }
    for name, how in approximations.items():
        yield Way(f"{name}{', compiled' * compiled}", bfloat16, ours(editor, work, how), ours(plain, work, how))


def ours(editor: Diffusion, work: Work, how: EditOptions) -> Edit:
    sources = work.sources
    return lambda some: edit_batch(editor, sources[some], work.requests[some], how).cpu()


def by_pipeline(pipeline, work: Work, some: slice) -> Tensor:
    asked = work.requests[some]
    images = pipeline(
        [r.instruction for r in asked],
        image=work.sources[some] * 2 - 1,
        num_inference_steps=work.steps,
        guidance_scale=asked[0].text_guidance,
        image_guidance_scale=asked[0].image_guidance,
        generator=[torch.Generator().manual_seed(r.seed) for r in asked],
        output_type="pt",
    ).images
    return images.cpu().float()


def load_pipeline(folder: Path, device: torch.device, dtype: torch.dtype):
    """diffusers' own pipeline with the reference's scheduler, as a user would load it."""
    declare_operators()
    from diffusers import AutoencoderKL, EulerAncestralDiscreteScheduler, StableDiffusionInstructPix2PixPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    parts = {"vae": AutoencoderKL, "unet": UNet2DConditionModel, "text_encoder": CLIPTextModel, "tokenizer": CLIPTokenizer}
    loaded = {name: kind.from_pretrained(folder, subfolder=name) for name, kind in parts.items()}
    scheduler = EulerAncestralDiscreteScheduler.from_pretrained(folder, subfolder="scheduler", timestep_spacing="linspace")
    pipeline = StableDiffusionInstructPix2PixPipeline(
        **loaded, scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    ).to(device, dtype)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def quality(success: list[float], usual: list[float]) -> str:
    """Edit success with its interval, and its difference from the usual way's over the same edits."""
    (low, high), differences = share_interval(success), [a - b for a, b in zip(success, usual, strict=True)]
    least, most = bootstrap(differences)
    mean, less = statistics.mean(success), statistics.mean(differences)
    return f"{mean:.3f} [{low:.2f}, {high:.2f}] | {less:+.3f} [{least:+.3f}, {most:+.3f}]"


def told(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


if __name__ == "__main__":
    main()
