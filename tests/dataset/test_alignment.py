import pytest
import torch

from ip2p.dataset.alignment import _zoomed, align, layout_kept
from ip2p.dataset.world_writer import write_triplets
from ip2p.world.truth import truth_of


@pytest.fixture(scope="module")
def pictures():
    truths = [truth_of(t.caption.text, t.instruction, seed=i, size=96) for i, t in enumerate(write_triplets(count=44, stream="align"))]
    return torch.stack([t.source_CHW for t in truths]), torch.stack([t.target_CHW for t in truths])


def share(flags):
    return flags.float().mean().item()


def test_true_edits_are_aligned_and_identical_pictures_exactly_so(pictures):
    found = align(*pictures)
    assert share(found.shift < 0.02) > 0.9 and share(found.zoom == 1) > 0.9 and found.outside.mean() < 0.03
    same = align(pictures[0], pictures[0])
    assert same.shift.max() == 0 and same.outside.max() == 0 and (same.zoom == 1).all()


def test_a_shift_is_measured(pictures):
    found = align(pictures[0], pictures[1].roll((5, 0), (3, 2)))
    assert share((found.shift - 5 / 96).abs() < 0.011) > 0.8


@pytest.mark.parametrize("zoom", [0.95, 1.05])
def test_a_zoom_is_measured(pictures, zoom):
    found = align(pictures[0], _zoomed(pictures[1], zoom))
    assert share((found.zoom - zoom).abs() < 0.06) > 0.7 and share(found.zoom == 1) < 0.25


def test_another_picture_is_neither_aligned_nor_unchanged_outside(pictures):
    other = pictures[0].roll(1, 0)
    assert share(align(pictures[0], other).shift > 0.02) > 0.9
    assert align(pictures[0], other).outside.mean() > 2 * align(*pictures).outside.mean()


def test_layout_is_kept_by_another_colour_and_not_by_another_picture(pictures):
    sources, _ = pictures
    assert (layout_kept(sources, 1 - sources) > 0.99).all()
    assert (layout_kept(sources, sources.roll(1, 0)) < 0.5).all()
