import pytest
import torch
from PIL import Image

from ip2p.errors import ModelError
from ip2p.model.edit import EditRequest, edit_batch, edit_picture, load_editor, working_size


@pytest.fixture
def images():
    torch.manual_seed(1)
    return torch.rand(3, 3, 96, 96)


REQUESTS = [EditRequest("make it winter", 4.0, 1.3, 1), EditRequest("make it night", 2.0, 1.8, 2), EditRequest("add rain", 6.0, 1.0, 3)]


def test_a_seed_gives_the_same_picture_alone_and_in_any_batch(editor, images):
    together = edit_batch(editor, images, REQUESTS, steps=3)
    for i, request in enumerate(REQUESTS):
        alone = edit_batch(editor, images[i : i + 1], [request], steps=3)
        assert torch.allclose(alone[0], together[i], atol=1e-3)


def test_seed_text_and_image_each_matter(editor, images):
    base = edit_batch(editor, images[:1], REQUESTS[:1], steps=3)
    others = [
        edit_batch(editor, images[:1], [EditRequest("make it winter", 4.0, 1.3, 9)], steps=3),
        edit_batch(editor, images[:1], [EditRequest("make it night", 4.0, 1.3, 1)], steps=3),
        edit_batch(editor, images[1:2], REQUESTS[:1], steps=3),
    ]
    assert all((base - other).abs().max() > 1e-3 for other in others)


@pytest.mark.parametrize("size", [(96, 96), (301, 120), (33, 500)])
def test_any_size_comes_back_at_its_own_size(editor, size):
    picture = Image.new("RGB", size, "green")
    assert edit_picture(editor, picture, EditRequest("make it winter"), steps=2).size == size
    assert all(side % 32 == 0 for side in working_size(editor, size))


def test_a_missing_editor_is_named(cpu, tmp_path):
    with pytest.raises(ModelError, match=r"no folder .*nowhere; give"):
        load_editor(tmp_path / "nowhere", device=cpu)


def test_a_folder_without_a_part_is_named(cpu, tmp_path):
    with pytest.raises(ModelError, match="has no `vae` folder"):
        load_editor(tmp_path, device=cpu)
