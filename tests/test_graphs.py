"""CUDA graphs: only where there is a GPU."""

from functools import partial

import pytest
import torch

from ip2p import graphs
from ip2p.diffusion import unet_output
from ip2p.graphs import Graphed
from ip2p.torchvision_cpu import declare_operators

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="wants a GPU")


@pytest.fixture
def unet():
    declare_operators()
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    config = {"block_out_channels": (16, 16, 32, 32), "norm_num_groups": 8, "cross_attention_dim": 32, "attention_head_dim": 8}
    return UNet2DConditionModel(sample_size=8, in_channels=8, layers_per_block=1, **config).cuda().eval().requires_grad_(False)


def given(rows, side=8):
    x, text = torch.randn(rows, 8, side, side).cuda(), torch.randn(rows, 12, 32).cuda()
    return (x, torch.rand(rows).cuda() * 999), {"encoder_hidden_states": text}


def test_a_replay_gives_the_calls_bits_for_every_shape_again_and_again(unet):
    call = partial(unet_output, unet)
    graphed = Graphed(call)
    with torch.inference_mode():
        for rows, side in [(3, 8), (6, 8), (3, 16)] * 4:
            arguments, options = given(rows, side)
            assert torch.equal(graphed(*arguments, **options), call(*arguments, **options))


def test_of_many_shapes_the_latest_are_remembered(unet, monkeypatch):
    monkeypatch.setattr(graphs, "_MOST", 4)
    call = partial(unet_output, unet)
    graphed = Graphed(call)
    with torch.inference_mode():
        for rows in [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5, 6, 6, 6, 1, 1, 1]:
            arguments, options = given(rows)
            assert torch.equal(graphed(*arguments, **options), call(*arguments, **options))
    assert len(graphed._recordings) == 4 and all(graphed._recordings.values())


def test_while_another_thread_loads_the_call_is_made_plainly_and_recorded_after(unet):
    call = partial(unet_output, unet)
    graphed = Graphed(call)
    arguments, options = given(3)
    with torch.inference_mode():
        with graphs.undisturbed:
            for _ in range(3):
                assert torch.equal(graphed(*arguments, **options), call(*arguments, **options))
        assert not any(graphed._recordings.values())
        assert torch.equal(graphed(*arguments, **options), call(*arguments, **options))
    assert all(graphed._recordings.values())
