import copy

import pytest
import torch

from ip2p.dataset.p2p import processor
from ip2p.dataset.p2p.processor import METHODS, install, plan_step
from ip2p.dataset.p2p.words import align_words

LENGTH = 8


@pytest.fixture
def rows(teacher):
    """Source and target without text, source and target with text."""
    torch.manual_seed(0)
    side = teacher.unet.config.sample_size
    x = torch.randn(2, teacher.latent_channels, side, side)
    context = torch.randn(3, LENGTH, teacher.unet.config.cross_attention_dim)
    return torch.cat([x, x]), torch.tensor(500), context[[0, 0, 1, 2]]


def plan(active):
    words, new = align_words(range(LENGTH), [*range(LENGTH - 1), 99])
    return plan_step([active], (words[None], new[None]), torch.device("cpu"))


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
def test_off_every_method_computes_what_diffusers_computes(teacher, rows, method):
    unet = copy.deepcopy(teacher.unet)
    stock = unet(*rows).sample
    steering = install(unet, method)
    assert torch.allclose(unet(*rows).sample, stock, atol=1e-5)
    steering.plan = plan(False)
    assert torch.allclose(unet(*rows).sample, stock, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("method", [m for m in METHODS if m != "none"])
def test_on_the_source_is_untouched_and_the_target_follows_it(teacher, rows, method):
    unet = copy.deepcopy(teacher.unet)
    steering = install(unet, method)
    plain = unet(*rows).sample
    steering.plan = plan(True)
    shared = unet(*rows).sample
    assert torch.allclose(shared[[0, 2]], plain[[0, 2]], atol=1e-5)
    assert (shared[3] - plain[3]).abs().max() > 1e-3
    if method == "cross_attention":
        assert torch.allclose(shared[1], plain[1], atol=1e-5)


@torch.no_grad()
def test_fused_sharing_equals_the_sources_attention_map_over_the_targets_values(teacher):
    """softmax(Q_s K_sᵀ) V_t, written out as the reference has it."""
    torch.manual_seed(0)
    unet = copy.deepcopy(teacher.unet)
    steering = install(unet, "self_attention")
    attn = unet.mid_block.attentions[0].transformer_blocks[0].attn1
    hidden = torch.randn(4, 9, attn.to_q.in_features)
    steering.plan = plan(True)
    fused = attn.processor(attn, hidden)
    q, k, v = (f(hidden).unflatten(-1, (attn.heads, -1)).transpose(1, 2) for f in (attn.to_q, attn.to_k, attn.to_v))
    for source, target in ((0, 1), (2, 3)):
        weights = (q[source] @ k[source].transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        written = attn.to_out[0]((weights @ v[target]).transpose(0, 1).flatten(1))
        assert torch.allclose(fused[target], written, atol=1e-5)


@torch.no_grad()
def test_words_that_stay_keep_the_sources_map_and_new_words_their_own(teacher):
    torch.manual_seed(0)
    unet = copy.deepcopy(teacher.unet)
    steering = install(unet, "cross_attention")
    attn = unet.mid_block.attentions[0].transformer_blocks[0].attn2
    hidden, context = torch.randn(4, 9, attn.to_q.in_features), torch.randn(4, 4, attn.to_k.in_features)
    words, new = align_words([1, 2, 3], [1, 2, 7, 3])  # a refinement: the third target token is new
    words = torch.cat([words, torch.zeros(1, 4)])  # the source's text is one token shorter: what pads it goes nowhere
    steering.plan = plan_step([True], (words[None], new[None]), torch.device("cpu"))
    shared = attn.processor(attn, hidden, context)
    q, k, v = (
        f(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2) for f, x in ((attn.to_q, hidden), (attn.to_k, context), (attn.to_v, context))
    )
    maps = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
    mixed = torch.stack([maps[2, ..., 0], maps[2, ..., 1], maps[3, ..., 2], maps[2, ..., 2]], -1)
    mixed = mixed / mixed.sum(-1, keepdim=True)
    written = attn.to_out[0]((mixed @ v[3]).transpose(0, 1).flatten(1))
    assert torch.allclose(shared[3], written, atol=1e-5)


def test_swapped_words_share_the_maps_of_those_they_replace():
    words, new = align_words([5, 6, 7, 9], [5, 8, 9])
    assert words[:, 1].tolist() == [0, 1, 1, 0] and new.tolist() == [0, 0, 0]
    words, new = align_words([5, 6, 9], [5, 7, 8, 9])
    assert words[1].tolist() == [0, 0.5, 0.5, 0] and new.tolist() == [0, 0, 0, 0]
    words, new = align_words([5, 9], [5, 6, 9])
    assert words[0, 0] == words[1, 2] == 1 and new.tolist() == [0, 1, 0]


@torch.no_grad()
@pytest.mark.parametrize("method", ["self_attention", "both"])
def test_compiled_a_transformer_is_one_graph_whoever_shares(teacher, method, monkeypatch):
    """Which pairs share differs from step to step, and how many there are: it must not break the graph, nor have it compiled each time."""

    def of_any_batch(tensor):
        torch._dynamo.maybe_mark_dynamic(tensor, 0)  # as on a GPU
        return tensor

    monkeypatch.setattr(processor, "of_any_batch", of_any_batch)
    torch._dynamo.reset()
    unet = copy.deepcopy(teacher.unet)
    steering, width = install(unet, method), teacher.unet.config.cross_attention_dim
    block = unet.mid_block.attentions[0].transformer_blocks[0]
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(block, backend=count, fullgraph=True)
    for active in ([1, 1, 1], [1, 0, 1], [0, 1, 1, 0], [1, 0, 1, 1], [0, 1], [1, 1], [0, 0, 1], [0, 0, 0], [0, 0]):
        pairs = len(active)
        x, context = torch.randn(4 * pairs, 25, block.attn1.query_dim), torch.randn(4 * pairs, LENGTH, width)
        words, new = (torch.stack([w] * pairs) for w in align_words(range(LENGTH), [*range(LENGTH - 1), 99]))
        steering.plan = plan_step([bool(x) for x in active], (words, new), torch.device("cpu"))
        told = {"hidden_states": of_any_batch(x), "encoder_hidden_states": of_any_batch(context)}
        assert torch.allclose(compiled(**told), block(**told), atol=1e-5)
    assert len(graphs) <= 4  # all share, some do, one does, none does
    torch._dynamo.reset()
