import random
from dataclasses import replace

import pytest
import torch

from ip2p.dataset import pairs
from ip2p.errors import ModelError
from ip2p.models import resolve_device
from ip2p.params import ModelsParams
from ip2p.pictures import from_pillow
from ip2p.safety import load_safety, rate_unsafe
from ip2p.store import read_shards
from ip2p.torchvision_cpu import declare_operators
from ip2p.world.render import render
from ip2p.world.scenes import sample_scene

declare_operators()  # before transformers

from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor  # noqa: E402

SIDE = 32


def scenes(time, count, first=0):
    made = [replace_time(sample_scene(random.Random(i)), time) for i in range(first, first + count)]
    return torch.stack([from_pillow(render(s, seed=i, size=SIDE)) for i, s in enumerate(made)])


def replace_time(scene, time):
    return replace(scene, time=time, style="illustration", weather="clear")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A small classifier, trained here, that holds night for unsafe."""
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=SIDE, patch_size=8, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        num_labels=2, id2label={0: "normal", 1: "nsfw"}, label2id={"normal": 0, "nsfw": 1},
    )  # fmt: skip
    model = ViTForImageClassification(config)
    x = torch.cat([scenes("day", 24), scenes("night", 24)]) * 2 - 1
    y = torch.tensor([0] * 24 + [1] * 24)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(pixel_values=x).logits, y).backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("safety")
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": SIDE, "width": SIDE}, image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(folder)
    return folder


def test_a_classifier_from_a_folder_rates_pictures(classifier):
    safety = load_safety(str(classifier), device=resolve_device("cpu"))
    night, day = (rate_unsafe(safety, scenes(t, 12, first=100)) for t in ("night", "day"))
    assert (night > 0.5).float().mean() > 0.8 > 0.2 > (day > 0.5).float().mean()


def test_pairs_are_rated_as_they_are_made_and_the_classifier_is_in_their_fingerprint(tiny, made, classifier, tmp_path):
    params = tiny.model_copy(update={"models": ModelsParams(safety=str(classifier))})
    pairs.run(params, triplets=made / "triplets", out=tmp_path / "pairs", work=tmp_path / "work")
    rated = read_shards(tmp_path / "pairs", columns=["unsafe"])["unsafe"].to_pylist()
    assert all(0 <= r <= 1 for r in rated) and max(rated) > 0.5 > min(rated)
    assert set(read_shards(made / "pairs", columns=["unsafe"])["unsafe"].to_pylist()) == {None}
    assert pairs.run(tiny, triplets=made / "triplets", out=tmp_path / "pairs", work=tmp_path / "work").extra["shards_resumed"] == 0


def test_a_classifier_without_an_unsafe_label_is_refused(classifier, tmp_path):
    model = ViTForImageClassification.from_pretrained(classifier)
    model.config.id2label = {0: "cat", 1: "dog"}
    model.save_pretrained(tmp_path)
    ViTImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"models\.safety: .* knows \['cat', 'dog'\], none of nsfw"):
        load_safety(str(tmp_path), device=resolve_device("cpu"))
    with pytest.raises(ModelError, match=r"models\.safety: no folder \./nowhere"):
        load_safety("./nowhere", device=resolve_device("cpu"))
