"""Kept pairs an hour: ours against the reference algorithm written plainly, same models, thresholds and triplets, one run.

`python benchmarks/pairs.py` prints a Markdown table; each row adds one ingredient to the row above it. The reference makes
one pair at a time, 100 Euler-ancestral steps, `N` samples a triplet, attention maps written out, texts embedded each time.
Quality is read off the kept pairs: direction similarity; whether the edited image prefers its caption to those of the same
scene unedited and after six other edits ("read right"); and mean change outside the edited region.
"""

from __future__ import annotations

import argparse
import random
import time
from dataclasses import dataclass

import torch

from ip2p.clip import image_features, load_clip, similarities, text_features
from ip2p.dataset.alignment import align
from ip2p.dataset.pairs import draw_sample, sample_rounds
from ip2p.dataset.synthesis import load_synthesiser, similar
from ip2p.dataset.thresholds import reject_reason
from ip2p.dataset.world_writer import write_triplets
from ip2p.diffusion import decode_latents, encode_text
from ip2p.models import load_diffusion, resolve_device
from ip2p.params import FilterParams, ModelsParams, PairsParams, load_params
from ip2p.records import Triplet
from ip2p.world.edits import apply_edit, sample_any_edit
from ip2p.world.language import read_caption, write_caption

N, STEPS = 4, 100


@dataclass
class Kept:
    """What one way of sampling kept: the two images of each pair, its direction similarity and its triplet."""

    triplets: list
    direction: list
    before: list
    after: list
    made: int


def best(found, made, keep) -> Kept:
    """The best `keep` of each triplet's passing pairs, (direction, source, edited) each."""
    rows = [(t, *pair) for t, pairs in found.items() for pair in sorted(pairs, key=lambda p: -p[0])[:keep]]
    return Kept(*(list(column) for column in zip(*rows, strict=True)), made=made) if rows else Kept([], [], [], [], made)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--triplets", type=int, default=33, help="triplets sampled by each (default: %(default)s)")
    parser.add_argument("--params", default="params.yaml")
    options = parser.parse_args()
    from pathlib import Path

    params = load_params(Path(options.params))
    triplets = list(write_triplets(count=options.triplets, stream="benchmark-pairs"))
    base = params.pairs.model_copy(update={"samples": N, "steps": STEPS, "solver": "euler_ancestral", "batch": 8, "strategy": "best_of_n"})
    fast = {"steps": params.pairs.steps, "solver": "dpmpp_2m"}
    adaptive = fast | {"strategy": "adaptive", "patience": N, "batch": 8}
    ways = [
        ("the reference, written plainly", None, "float32"),
        ("+ 8 pairs a batch, fused attention, texts once", {}, "float32"),
        (f"+ {fast['steps']} steps of DPM-Solver++(2M)", fast, "float32"),
        ("+ bfloat16 where the hardware has it", fast, "auto"),
        ("+ adaptive: stop at enough or hopeless", adaptive, "auto"),
        ("+ abandon hopeless samples halfway", adaptive | {"abandon_at": 0.5}, "auto"),
    ]
    clip = load_clip(params.models.clip, device=resolve_device(params.models.device))
    print(
        "| | kept of made | seconds | CPU seconds | kept an hour | × | direction | read right | outside |\n" + "|---" * 9 + "|", flush=True
    )
    first = 0.0
    for name, changes, dtype in ways:
        models = params.models.model_copy(update={"dtype": dtype})
        if changes is None:
            work = reference(models, base, params.filter, triplets)
        else:
            work = ours(models, base.model_copy(update=changes), params.filter, triplets)
        began, burnt = time.monotonic(), time.process_time()
        kept = work()
        seconds, burnt = time.monotonic() - began, time.process_time() - burnt
        rate = len(kept.triplets) / seconds * 3600
        first = first or rate
        direction = sum(kept.direction) / max(1, len(kept.direction))
        outside = align(torch.stack(kept.before), torch.stack(kept.after)).outside.mean() if kept.before else float("nan")
        right = read_right(clip, kept)
        counted = f"{len(kept.triplets)} of {kept.made} | {seconds:.0f} | {burnt:.0f} | {rate:.0f} | {rate / first:.1f}"
        print(f"| {name} | {counted} | {direction:.3f} | {right:.2f} | {outside:.3f} |", flush=True)


def ours(models: ModelsParams, section: PairsParams, thresholds: FilterParams, triplets: list[Triplet]):
    """The stage's own sampling, a unit of all triplets; models are loaded before the clock starts."""
    maker = load_synthesiser(models, section, thresholds, 0)

    def work() -> Kept:
        made, found = 0, {}
        for batch in sample_rounds(maker, triplets):
            made += len(batch.drawn)
            images = zip(batch.made.before_BCHW, batch.made.after_BCHW, strict=True)
            for i, scores, reason, pair in zip(batch.made.picks, batch.made.scores, batch.misses, images, strict=True):
                if reason is None:
                    found.setdefault(batch.triplets[i], []).append((scores.sim_direction, *pair))
        return best(found, made, thresholds.keep)

    return work


def reference(models: ModelsParams, section: PairsParams, thresholds: FilterParams, triplets: list[Triplet]):
    """The reference's loop: one pair at a time, everything computed anew, maps of self-attention written out."""
    device = resolve_device(models.device)
    teacher, clip = load_diffusion(models.teacher, device=device), load_clip(models.clip, device=device)
    shared = {"on": False}

    def processor(attn, hidden_states, encoder_hidden_states=None, *_, **__):
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            f(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for f, x in ((attn.to_q, hidden_states), (attn.to_k, context), (attn.to_v, context))
        )
        maps = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        if encoder_hidden_states is None and shared["on"]:
            maps = maps[[0, 0, 2, 2]]  # rows: source and target without text, source and target with text
        return attn.to_out[0]((maps @ v).transpose(1, 2).flatten(2))

    teacher.unet.set_attn_processor(processor)
    alphas = teacher.scheduler.alphas_cumprod.double()
    levels = ((1 - alphas) / alphas).sqrt()
    times = torch.linspace(len(levels) - 1, 0, section.steps, dtype=torch.float64)
    low, high = times.floor().long(), times.ceil().long()
    sigmas = torch.cat([levels.log()[low].lerp(levels.log()[high], times - low).exp(), torch.zeros(1)]).float()
    side = teacher.unet.config.sample_size

    @torch.inference_mode()
    def one(triplet, draw):
        generator = torch.Generator().manual_seed(draw.seed)
        text = encode_text(teacher, ["", "", triplet.caption.text, triplet.edited_caption])
        x = torch.randn(1, teacher.latent_channels, side, side, generator=generator).repeat(2, 1, 1, 1) * sigmas[0]
        for i in range(section.steps):
            shared["on"] = draw.p2p > i / (section.steps - 1)
            s, t = sigmas[i], sigmas[i + 1]
            v = teacher.unet(torch.cat([x, x]) / (s**2 + 1).sqrt(), times[i].float(), text).sample
            without, given = v.chunk(2)
            v = without + draw.guidance * (given - without)
            clean = x / (s**2 + 1) - v * s / (s**2 + 1).sqrt()
            up = torch.minimum(t, (t**2 * (s**2 - t**2) / s**2).clamp(min=0).sqrt())
            down = (t**2 - up**2).clamp(min=0).sqrt()
            noise = torch.randn(1, *x.shape[1:], generator=generator)
            x = clean if t == 0 else x + (x - clean) / s * (down - s) + noise * up
        before, after = decode_latents(teacher, x).chunk(2)
        texts = [text_features(clip, [c]) for c in (triplet.caption.text, triplet.edited_caption)]
        return before[0], after[0], similar(similarities(image_features(clip, before), image_features(clip, after), *texts))[0]

    def work() -> Kept:
        found = {}
        for triplet in triplets:
            for number in range(section.samples):
                before, after, scores = one(triplet, draw_sample(triplet, number, section, 0))
                if reject_reason(scores, thresholds, triplet.edit_type) is None:
                    found.setdefault(triplet, []).append((scores.sim_direction, before, after))
        return best(found, section.samples * len(triplets), thresholds.keep)

    return work


def read_right(clip, kept: Kept) -> float:
    """Share of kept pairs whose edited image prefers its caption to the unedited one and those of six other edits."""
    hits = 0
    for triplet, after in zip(kept.triplets, kept.after, strict=True):
        scene, rng = read_caption(triplet.caption.text), random.Random(triplet.id)
        others = [write_caption(apply_edit(scene, sample_any_edit(scene, rng)), rng) for _ in range(6)]
        texts = text_features(clip, [triplet.edited_caption, triplet.caption.text, *(o for o in others if o != triplet.edited_caption)])
        hits += int((texts @ image_features(clip, after[None])[0]).argmax()) == 0
    return hits / max(1, len(kept.triplets))


if __name__ == "__main__":
    main()
