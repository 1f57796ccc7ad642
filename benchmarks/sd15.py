"""Pairs a second at Stable Diffusion 1.5's true size, and the share of the device's measured peak: random weights, known shape.

`python benchmarks/sd15.py` wants a GPU (512 px, bfloat16). `--small` checks the whole command on a CPU with a folder of the same
shape and few channels. Nothing is downloaded: speed does not depend on what the weights hold.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path

import torch

from benchmarks.card import cost_of, seconds
from ip2p.models import EMBEDDED
from ip2p.torchvision_cpu import declare_operators


def build(folder: Path, *, small: bool, sample_size: int = 64, editor: bool = False) -> Path:
    """A diffusers folder of Stable Diffusion 1.5's configuration (runwayml/stable-diffusion-v1-5's), random weights, the world's words."""
    declare_operators()
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(EMBEDDED / "teacher" / "tokenizer")
    width, channels = (32, (16, 16, 32, 32)) if small else (768, (320, 640, 1280, 1280))
    UNet2DConditionModel(
        sample_size=8 if small else sample_size,
        in_channels=8 if editor else 4,
        block_out_channels=channels,
        cross_attention_dim=width,
        attention_head_dim=8,
        layers_per_block=2,
        norm_num_groups=8 if small else 32,
    ).save_pretrained(folder / "unet")
    AutoencoderKL(
        block_out_channels=(8, 8, 16, 16) if small else (128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1 if small else 2,
        norm_num_groups=8 if small else 32,
        latent_channels=4,
    ).save_pretrained(folder / "vae")
    layers = 2 if small else 12
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=layers,
        max_position_embeddings=48 if small else 77,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    tokenizer.save_pretrained(folder / "tokenizer")
    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    DDIMScheduler(prediction_type="epsilon", **schedule).save_pretrained(folder / "scheduler")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="few channels, 64 px: checks the command, its speed says nothing")
    parser.add_argument("--pairs", type=int, default=32)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--batch", type=int, default=0, help="pairs at once; 0: what fits")
    parser.add_argument("--compile", action="store_true", help="also with torch.compile")
    options = parser.parse_args()
    from ip2p.dataset.pairs import draw_sample
    from ip2p.dataset.synthesis import free_pairs, load_synthesiser, sample_pairs
    from ip2p.dataset.world_writer import write_triplets
    from ip2p.params import FilterParams, ModelsParams, PairsParams

    with tempfile.TemporaryDirectory() as work:
        folder = build(Path(work) / "sd15", small=options.small)
        batch = min(options.pairs, options.batch or free_pairs(ModelsParams(teacher=str(folder))))
        section = PairsParams(steps=options.steps, solver="dpmpp_2m", batch=batch, samples=1, guidance=(7.5, 15.0))
        triplets = list(write_triplets(count=options.pairs // batch * batch, stream="sd15"))
        print("| | pairs/s | peak | bandwidth |\n|---|---|---|---|", flush=True)
        cost = None
        for compiled in (False, True)[: 1 + options.compile]:
            maker = load_synthesiser(ModelsParams(teacher=str(folder), compile=compiled), section, FilterParams(), 0)
            device, dtype = maker.teacher.device, maker.teacher.dtype
            one = partial(work_once, maker, section, draw_sample, sample_pairs)
            cost = cost or cost_of(partial(one, triplets[:batch]))  # compiled code cannot be counted
            one(triplets[:batch])  # warms up
            spent = [seconds(partial(one, triplets[i : i + batch]), device) for i in range(0, len(triplets), batch)]
            name = f"{options.steps} steps, batches of {batch}, {str(dtype).removeprefix('torch.')}{', compiled' * compiled}"
            print(f"| {name} | {len(triplets) / sum(spent):.2f} | {cost.shares(min(spent), device, dtype)} |", flush=True)


def work_once(maker, section, draw_sample, sample_pairs, triplets) -> None:
    sample_pairs(maker, triplets, [draw_sample(t, 0, section, 0) for t in triplets])


if __name__ == "__main__":
    main()
