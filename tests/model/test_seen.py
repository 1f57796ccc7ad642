import json

import pytest

from ip2p.dataset.world_writer import write_triplets
from ip2p.errors import DataError, ModelError
from ip2p.model import train
from ip2p.model.heldout import held_out, of_world
from ip2p.model.seen import NONE, read_seen
from ip2p.models import EMBEDDED
from ip2p.records import CAPTIONS
from ip2p.store import digest, read_shards


def test_marks_are_kept_and_answer_for_their_captions_alone(tmp_path):
    seen = NONE.with_captions(["a red cat", ""]).with_captions(["a blue dog", "a red cat"])
    seen.write(tmp_path)
    again = read_seen(tmp_path)
    assert len(again) == 2
    assert "a red cat" in again and "a blue dog" in again
    assert "a red dog" not in again and "" not in again and "a red cat" not in NONE
    (tmp_path / CAPTIONS).write_bytes(b"torn")
    with pytest.raises(ModelError, match=r"captions\.safetensors: cannot be read"):
        read_seen(tmp_path)


def test_an_editor_knows_the_captions_of_its_dataset_and_of_its_start_and_none_is_held_out(tiny, made, track_in, tmp_path):
    marker = tmp_path / "validated.json"
    marker.write_text(json.dumps({"dataset": digest(made / "dataset")}))
    section = tiny.train.model_copy(update={"start": "world", "steps": 1})
    params = tiny.model_copy(update={"train": section, "track": track_in(tmp_path)})
    train.run(params, dataset=made / "dataset", marker=marker, out=tmp_path / "editor", work=tmp_path / "work")
    seen = read_seen(tmp_path / "editor")
    own = set(read_shards(made / "dataset", "train-", columns=["original_prompt"])["original_prompt"].to_pylist())
    shipped = read_seen(EMBEDDED / "editor")
    before = [t.caption.text for t in write_triplets(count=50, stream="0/triplets")]  # of params/long.yaml
    assert own and all(c in seen for c in own)
    assert all(c in shipped and c in seen for c in before)
    assert len(seen) == len(shipped) + sum(c not in shipped for c in own)
    assert json.loads((tmp_path / "editor/training.json").read_text())["start"] == "world/editor"

    first = of_world(count=11, stream="x", triplets=made / "triplets", size=96)
    marked = NONE.with_captions([first.edits[0].caption])
    others = of_world(count=11, stream="x", triplets=made / "triplets", size=96, seen=marked)
    assert first.edits[0].caption not in {e.caption for e in others.edits}
    assert len(others.edits) == 11 and first.mark != others.mark
    test_split = tiny.model_copy(update={"evaluate": tiny.evaluate.model_copy(update={"held_out": "dataset"})})
    paths = {"triplets": made / "triplets", "dataset": made / "dataset", "size": 96}
    kept = held_out(test_split, **paths).edits
    with pytest.raises(DataError, match="captions that the editor has not seen"):
        held_out(test_split, **paths, seen=NONE.with_captions(e.caption for e in kept))
