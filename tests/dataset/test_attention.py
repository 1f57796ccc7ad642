import copy

import pytest
import torch

from ip2p.dataset.attention import share_self_attention


@pytest.fixture
def rows(teacher):
    torch.manual_seed(0)
    side = teacher.unet.config.sample_size
    x = torch.randn(2, teacher.latent_channels, side, side)
    context = torch.randn(2, 8, teacher.unet.config.cross_attention_dim)
    return x, torch.tensor(500), context


@torch.no_grad()
def test_off_it_computes_what_diffusers_computes(teacher, rows):
    unet = copy.deepcopy(teacher.unet)
    stock = unet(*rows).sample
    share_self_attention(unet)
    assert torch.allclose(unet(*rows).sample, stock, atol=1e-5)


@torch.no_grad()
def test_on_the_source_is_untouched_and_the_target_follows_it(teacher, rows):
    unet = copy.deepcopy(teacher.unet)
    sharing = share_self_attention(unet)
    plain = unet(*rows).sample
    sharing.rows_B = torch.tensor([0, 0])
    shared = unet(*rows).sample
    assert torch.allclose(shared[0], plain[0], atol=1e-5)
    assert (shared[1] - plain[1]).abs().max() > 1e-3


@torch.no_grad()
def test_fused_sharing_equals_the_sources_attention_map_over_the_targets_values(teacher):
    """softmax(Q_s K_sᵀ) V_t, written out as the reference has it."""
    unet = copy.deepcopy(teacher.unet)
    sharing = share_self_attention(unet)
    attn = unet.mid_block.attentions[0].transformer_blocks[0].attn1
    hidden = torch.randn(2, 9, attn.to_q.in_features)
    sharing.rows_B = torch.tensor([0, 0])
    fused = attn.processor(attn, hidden)
    q, k, v = (f(hidden).unflatten(-1, (attn.heads, -1)).transpose(1, 2) for f in (attn.to_q, attn.to_k, attn.to_v))
    weights = (q[0] @ k[0].transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
    written = attn.to_out[0]((weights @ v[1]).transpose(0, 1).flatten(1))
    assert torch.allclose(fused[1], written, atol=1e-5)
