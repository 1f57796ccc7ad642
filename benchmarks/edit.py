"""Edits a second: ours against diffusers' pipeline on the same weights, with what each saving costs in quality.

`python benchmarks/edit.py` after `make run`. Two parts: the same picture, alone and in batches (largest difference of a
pixel from the pipeline's); then savings that change the picture, each row with its edit success on held-out edits.
Latency is the median over pictures edited one by one.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch

from ip2p.dataset.world_writer import write_triplets
from ip2p.model.edit import edit_batch, load_editor
from ip2p.model.guidance import EditOptions, EditRequest
from ip2p.model.measure import bootstrap
from ip2p.models import resolve_device
from ip2p.params import load_params
from ip2p.torchvision_cpu import declare_operators
from ip2p.world.truth import read_edit, truth_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--editor", type=Path, default=Path("models/editor"), help="editor folder (default: %(default)s)")
    parser.add_argument("--edits", type=int, default=66, help="held-out edits (default: %(default)s)")
    parser.add_argument("--timed", type=int, default=12, help="edits timed one by one (default: %(default)s)")
    options = parser.parse_args()
    section = load_params(Path("params.yaml")).evaluate
    device = resolve_device("auto")
    triplets = list(write_triplets(count=options.edits, stream="benchmark-edit"))
    whole, bf16 = (load_editor(options.editor.resolve(), device=device, dtype=d) for d in (torch.float32, torch.bfloat16))
    truths = [truth_of(t.caption.text, t.instruction, seed=i, size=whole.image_size) for i, t in enumerate(triplets)]
    sources = torch.stack([t.source_CHW for t in truths])
    requests = [EditRequest(t.instruction, section.text_guidance, section.image_guidance, i) for i, t in enumerate(triplets)]
    steps = section.steps
    pipeline = load_pipeline(options.editor, device)

    def theirs(some: slice) -> torch.Tensor:
        images = pipeline(
            [r.instruction for r in requests[some]],
            image=sources[some] * 2 - 1,
            num_inference_steps=steps,
            guidance_scale=section.text_guidance,
            image_guidance_scale=section.image_guidance,
            generator=[torch.Generator().manual_seed(r.seed) for r in requests[some]],
            output_type="pt",
        ).images
        return images.cpu()

    def ours(editor, how):
        return lambda some: edit_batch(editor, sources[some], requests[some], how).cpu()

    same = EditOptions(steps, "euler_ancestral")
    ways = [
        (f"diffusers' pipeline, {steps} steps", theirs),
        ("ours, float32", ours(whole, same)),
        ("ours, bfloat16", ours(bf16, same)),
        ("+ guidance differences kept for 2 steps", ours(bf16, EditOptions(steps, every=2))),
        ("+ guidance in the first three quarters only", ours(bf16, EditOptions(steps, interval=(0.0, 0.75), every=2))),
        ("DPM-Solver++(2M), half of the steps", ours(bf16, EditOptions(steps // 2, "dpmpp_2m"))),
        ("DPM-Solver++(2M), half of the steps, differences kept", ours(bf16, EditOptions(steps // 2, "dpmpp_2m", every=2))),
        ("DPM-Solver++(2M), a third of the steps, differences kept", ours(bf16, EditOptions(steps // 3, "dpmpp_2m", every=2))),
    ]
    print("| | ms alone | × | ms in batches of 11 | × | differs | success | done | stayed |\n" + "|---" * 9 + "|", flush=True)
    alone_first = batch_first = None
    reference = None
    for name, edit in ways:
        edit(slice(0, 1))
        alone = statistics.median(timed(edit, slice(i, i + 1)) for i in range(options.timed)) * 1000
        began = time.monotonic()
        pictures = torch.cat([edit(slice(i, i + 11)) for i in range(0, len(triplets), 11)])
        together = (time.monotonic() - began) / len(triplets) * 1000
        alone_first, batch_first = alone_first or alone, batch_first or together
        reference = pictures if reference is None else reference
        readings = [read_edit(x, t) for x, t in zip(pictures, truths, strict=True)]
        done, stayed = ([float(getattr(r, n)) for r in readings] for n in ("done", "stayed"))
        success = [a * b for a, b in zip(done, stayed, strict=True)]
        low, high = bootstrap(success)
        differs = (pictures - reference).abs().max()
        quality = f"{mean(success):.3f} [{low:.2f}, {high:.2f}] | {mean(done):.3f} | {mean(stayed):.3f}"
        speed = f"{alone:.0f} | {alone_first / alone:.1f} | {together:.0f} | {batch_first / together:.1f}"
        print(f"| {name} | {speed} | {differs:.1e} | {quality} |", flush=True)


def load_pipeline(folder: Path, device: torch.device):
    """diffusers' own pipeline with the reference's scheduler, as a user would load it."""
    declare_operators()
    from diffusers import AutoencoderKL, EulerAncestralDiscreteScheduler, StableDiffusionInstructPix2PixPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    parts = {"vae": AutoencoderKL, "unet": UNet2DConditionModel, "text_encoder": CLIPTextModel, "tokenizer": CLIPTokenizer}
    loaded = {name: kind.from_pretrained(folder, subfolder=name) for name, kind in parts.items()}
    scheduler = EulerAncestralDiscreteScheduler.from_pretrained(folder, subfolder="scheduler", timestep_spacing="linspace")
    pipeline = StableDiffusionInstructPix2PixPipeline(
        **loaded, scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    ).to(device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def timed(edit, some: slice) -> float:
    began = time.monotonic()
    edit(some)
    return time.monotonic() - began


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    main()
