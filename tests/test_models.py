import torch

from ip2p.diffusion import run_unet
from ip2p.models import load_diffusion


def test_weights_cast_once_give_the_bits_of_autocast(cpu):
    once = load_diffusion("world", device=cpu, dtype=torch.bfloat16)
    each = load_diffusion("world", device=cpu, dtype=torch.bfloat16, exact=True)
    assert (once.unet.conv_in.weight.dtype, each.unet.conv_in.weight.dtype) == (torch.bfloat16, torch.float32)
    rows = torch.randn(2, once.latent_channels, 12, 12, generator=torch.Generator().manual_seed(0))
    text = torch.zeros(2, 48, once.unet.config.cross_attention_dim)
    with torch.no_grad():
        assert torch.equal(*(run_unet(m, rows, torch.tensor(500.0), text) for m in (once, each)))
