import pytest
import torch

from ip2p.model import evaluate
from ip2p.model.evaluate import bootstrap, held_out, measure, sdedit


@pytest.fixture(scope="module")
def held(tiny, made, clip):
    return held_out(tiny, made / "triplets", clip, size=96)


def test_the_truth_scores_perfectly_and_the_source_does_nothing(held, clip):
    truth = measure("truth", {}, torch.stack([t.target_CHW for t in held.truths]), held, clip)
    source = measure("source", {}, held.sources(), held, clip)
    assert (truth.done, truth.stayed, truth.distance) == (1.0, 1.0, 0.0)
    assert (source.done, source.stayed) == (0.0, 1.0)
    assert source.image_similarity == pytest.approx(1.0, abs=1e-4)
    assert truth.direction_similarity > source.direction_similarity


def test_held_out_captions_were_not_trained_on(held, made):
    from ip2p.dataset.read import read_triplets

    assert not {t.caption.text for t in held.triplets} & {t.caption.text for t in read_triplets(made / "triplets")}


def test_sdedit_changes_more_with_more_noise(held, teacher):
    sources = held.sources()[:3]
    captions, seeds = [t.edited_caption for t in held.triplets[:3]], [1, 2, 3]
    weak, strong = (sdedit(teacher, sources, captions, seeds, strength=s, steps=8, guidance=3.0) for s in (0.2, 0.95))
    assert (weak - sources).abs().mean() < (strong - sources).abs().mean()


def test_the_interval_holds_the_mean():
    low, high = bootstrap([0.0, 1.0] * 40)
    assert 0.35 < low < 0.5 < high < 0.65


def test_edit_types_are_reported_apart(held, clip):
    point = measure("source", {}, held.sources(), held, clip)
    assert set(point.by_type) == {t.edit_type for t in held.triplets}
    assert evaluate._numbers(point)["done"] == 0.0
