import pytest
import torch

from ip2p.world.truth import read_edit, structural_similarity, truth_of

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
