"""What bfloat16 arithmetic saves and costs in sampling: `python benchmarks/precision.py`.

Medians of processor time on one thread, float32 beside bfloat16 in one run, for one batch of the UNet and of the decoder.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from ip2p.diffusion import decode_latents, run_unet
from ip2p.models import load_diffusion
from ip2p.world.report import psnr

BATCH, ROUNDS = 32, 7


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = load_diffusion("world", device=torch.device("cpu"))
    half = load_diffusion("world", device=torch.device("cpu"), dtype=torch.bfloat16)
    side, channels = model.unet.config.sample_size, model.latent_channels
    latents, text = torch.randn(BATCH, channels, side, side), torch.randn(BATCH, 48, model.text_encoder.config.hidden_size)
    with torch.inference_mode():
        for name, run in (
            ("UNet", lambda m: run_unet(m, latents, torch.tensor(500.0), text)),
            ("decoder", lambda m: decode_latents(m, latents)),
        ):
            single, double = (seconds(run, m) for m in (half, model))
            exact, rounded = run(model), run(half)
            error = ((rounded - exact).square().mean().sqrt() / exact.std()).item()
            told = f"{psnr(exact, rounded):.0f} dB PSNR" if name == "decoder" else f"relative error {error:.3f}"
            print(f"{name:8} bfloat16 takes {single / double:.2f} of float32 ({1000 * double / BATCH:.1f} ms a row); {told}")


def seconds(run: Callable[[object], Tensor], model: object) -> float:
    """Median processor time of a call."""
    times = []
    for _ in range(ROUNDS):
        began = time.process_time()
        run(model)
        times.append(time.process_time() - began)
    return statistics.median(times)


if __name__ == "__main__":
    main()
