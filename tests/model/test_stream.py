import pytest
import torch

from ip2p.model import edit
from ip2p.model.edit import Remembered, edit_batch
from ip2p.model.guidance import EditOptions, EditRequest
from ip2p.model.stream import advance_all, begin_editing, pictures_of

REQUESTS = (
    EditRequest("make it winter", 3.0, 1.2, 1),
    EditRequest("make it night", 1.5, 1.0, 2),
    EditRequest("add a red boat", 2.0, 2.0, 3),
)


@pytest.mark.parametrize("solver", ["euler_ancestral", "dpmpp_2m"])
@pytest.mark.parametrize("every", [1, 2])
def test_a_request_that_joins_late_gets_the_picture_it_gets_alone(editor, solver, every):
    options = EditOptions(4, solver, every=every)
    images = torch.rand(3, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    alone = torch.cat([edit_batch(editor, images[i : i + 1], [r], options) for i, r in enumerate(REQUESTS)])
    remembered, waiting, under_way, ended = Remembered(), [0, 1, 2], [], {}
    while waiting or under_way:
        if waiting:  # one more joins at each step
            i = waiting.pop(0)
            under_way.append((i, begin_editing(editor, images[i], REQUESTS[i], options, remembered)))
        advance_all(editor, [e for _, e in under_way])
        ended |= {i: pictures_of(editor, [e])[0] for i, e in under_way if e.ended}
        under_way = [(i, e) for i, e in under_way if not e.ended]
    assert (torch.stack([ended[i] for i in range(3)]) - alone).abs().max() < 1e-3


def test_a_prediction_on_the_way_is_a_picture(editor):
    editing = begin_editing(editor, torch.rand(3, 96, 96), REQUESTS[0], EditOptions(4), Remembered())
    advance_all(editor, [editing])
    assert not editing.ended
    assert pictures_of(editor, [editing]).shape == (1, 3, 96, 96)


def test_what_is_remembered_is_not_computed_again_and_changes_nothing(editor, monkeypatch):
    image, options = torch.rand(3, 96, 96, generator=torch.Generator().manual_seed(0)), EditOptions(2)
    request, remembered, made = EditRequest("make it winter"), Remembered(most=2), []
    for _ in range(2):
        editing = begin_editing(editor, image, request, options, remembered)
        while not editing.ended:
            advance_all(editor, [editing])
        made.append(pictures_of(editor, [editing]))
        monkeypatch.setattr(edit, "encode_images", None)
        monkeypatch.setattr(edit, "encode_text", None)
    assert torch.equal(*made)
    monkeypatch.undo()
    begin_editing(editor, image, EditRequest("something new"), options, remembered)
    assert set(remembered.texts) == {"", "something new"} and len(remembered.sources) == 1
