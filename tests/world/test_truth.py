import pytest
import torch
import torch.nn.functional as F

from ip2p.world.truth import layout_similarity, read_edit, structural_similarity, truth_of

CAPTION, INSTRUCTION = "a red house on the left and a blue boat on the right by a lake in summer", "make the house green"


def test_the_truth_is_done_and_stayed_and_the_source_is_not_done():
    truth = truth_of(CAPTION, INSTRUCTION, seed=1, size=96)
    perfect, untouched = read_edit(truth.target_CHW, truth), read_edit(truth.source_CHW, truth)
    assert perfect.done
    assert perfect.stayed
    assert perfect.distance == 0
    assert not untouched.done
    assert untouched.stayed


def test_spoiling_the_rest_is_seen():
    truth = truth_of(CAPTION, INSTRUCTION, seed=1, size=96)
    reading = read_edit(truth.target_CHW * 0.5, truth)
    assert not reading.stayed


def test_another_picture_of_the_edited_scene_did_the_edit_and_kept_nothing():
    truth = truth_of(CAPTION, INSTRUCTION, seed=1, size=96)
    another = truth_of(CAPTION, INSTRUCTION, seed=2, size=96)
    reading = read_edit(another.target_CHW, truth)
    assert not reading.stayed
    assert reading.structure < 0.6


def test_structural_similarity_is_that_of_the_paper():
    x = torch.rand(3, 24, 24, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(structural_similarity(x, x), torch.ones(24, 24))
    half = structural_similarity(x, x * 0.5)  # luminance and contrast terms of a halved picture are both 4/5
    assert half.mean() == pytest.approx(0.64, abs=0.02)
    assert structural_similarity(x, 1 - x).mean() < 0


def test_noise_does_not_pass_for_an_edit():
    truth = truth_of(CAPTION, "make it night", seed=1, size=96)
    noise = torch.rand(truth.source_CHW.shape, generator=torch.Generator().manual_seed(0))
    assert not read_edit(noise, truth).done


def test_a_faint_edit_is_not_done_and_a_half_way_one_needs_to_be_past_the_middle():
    truth = truth_of(CAPTION, INSTRUCTION, seed=1, size=96)
    assert not read_edit(truth.source_CHW.lerp(truth.target_CHW, 0.2), truth).done
    assert read_edit(truth.source_CHW.lerp(truth.target_CHW, 0.6), truth).done


@pytest.mark.parametrize("instruction", ["make it night", "make it a pencil sketch", "make it a watercolour painting"])
def test_of_an_edit_of_the_whole_picture_the_layout_must_stay(instruction):
    truth = truth_of(CAPTION, instruction, seed=1, size=96)
    assert not truth.beyond_HW.any()
    assert read_edit(truth.target_CHW, truth).stayed and read_edit(truth.source_CHW, truth).stayed
    flat = truth.target_CHW.mean((1, 2), keepdim=True).expand_as(truth.target_CHW)
    blurred = F.avg_pool2d(truth.target_CHW[None], 25, stride=1, padding=12, count_include_pad=False)[0]
    noise = torch.rand(truth.source_CHW.shape, generator=torch.Generator().manual_seed(0))
    assert not any(read_edit(x, truth).stayed for x in (flat, blurred, noise))


def test_layout_similarity_is_blind_to_colours_and_sees_where_things_are():
    truth = truth_of(CAPTION, INSTRUCTION, seed=1, size=96)
    x = truth.source_CHW
    assert layout_similarity(x, x) == pytest.approx(1.0)
    assert layout_similarity(x, 1 - x) == pytest.approx(1.0, abs=1e-4)
    assert layout_similarity(x, x.roll(12, dims=2)) < 0.5


def test_change_outside_the_edit_is_that_from_the_source():
    truth = truth_of(CAPTION, INSTRUCTION, seed=1, size=96)
    assert read_edit(truth.target_CHW, truth).outside < 0.01
    assert read_edit((truth.source_CHW * 0.5 + 0.4), truth).outside > 0.05
    lighter = truth.source_CHW.clamp(max=0.7) + 0.3
    assert float((lighter - truth.source_CHW).abs().mean()) == pytest.approx(read_edit(lighter, truth).outside, abs=0.1)
    whole = truth_of(CAPTION, "make it night", seed=1, size=96)
    assert read_edit(whole.source_CHW, whole).outside == 0
