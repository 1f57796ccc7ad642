import pytest
import torch

from ip2p.dataset.trace import regenerate, trace
from ip2p.errors import DataError
from ip2p.params import load_params
from ip2p.store import read_shards
from tests.conftest import ROOT


def folders(made):
    return {"triplets": made / "triplets", "pairs": made / "pairs"}


def test_a_pair_is_traced_to_its_caption_and_its_split(made):
    row = read_shards(made / "dataset", "train-").to_pylist()[0]
    told = "\n".join(trace(row["pair_id"], **folders(made), dataset=made / "dataset"))
    for part in (row["original_prompt"], row["edit_prompt"], row["triplet_id"], str(row["seed"]), "train, rank", "from world"):
        assert part in told
    assert row["pair_id"] in "\n".join(trace(row["triplet_id"], **folders(made), dataset=made / "dataset"))
    with pytest.raises(DataError, match="nothing: no pair"):
        trace("nothing", **folders(made), dataset=made / "dataset")


def test_a_pair_is_made_again_to_the_pixel_and_other_parameters_are_refused(tiny, made, tmp_path):
    torch.set_num_threads(1)  # as the processes that made them
    row = read_shards(made / "pairs").to_pylist()[4]
    files = regenerate(row["pair_id"], tiny, **folders(made), out=tmp_path)
    assert [f.read_bytes() for f in files] == [row["original_image"]["bytes"], row["edited_image"]["bytes"]]
    other = tiny.model_copy(update={"pairs": tiny.pairs.model_copy(update={"steps": 4})})
    with pytest.raises(DataError, match="was made with other parameters"):
        regenerate(row["pair_id"], other, **folders(made), out=tmp_path)


def test_the_parameter_set_for_stable_diffusion_is_valid_and_the_papers():
    params = load_params(ROOT / "params" / "sd15.yaml")
    assert (params.pairs.samples, params.pairs.guidance, params.filter.keep) == (100, (7.5, 15.0), 4)
    assert params.triplets.writer == "llm" and params.models.clip == "ViT-L-14-quickgelu:openai"
