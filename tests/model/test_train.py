import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from ip2p.errors import DataError, ParamsError, UserError
from ip2p.model import train
from ip2p.params import TrackParams, TrainParams
from ip2p.store import digest


@pytest.fixture
def setup(tiny, made, tmp_path):
    marker = tmp_path / "validated.json"
    marker.write_text(json.dumps({"dataset": digest(made / "dataset")}))
    params = tiny.model_copy(update={"track": TrackParams(uri=f"sqlite:///{tmp_path}/mlflow.db")})
    return params, {"dataset": made / "dataset", "marker": marker, "out": tmp_path / "editor", "work": tmp_path / "work"}


def weights(folder):
    return load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")


def same(a, b):
    return all(torch.equal(a[k], b[k]) for k in a)


def test_a_killed_run_resumed_ends_with_the_same_bits(setup, monkeypatch):
    params, paths = setup
    torch.set_num_threads(1)
    train.run(params, **paths)
    whole = weights(paths["out"])
    shutil.rmtree(paths["work"])
    # die after step 3, with a checkpoint at step 2
    advance = train.Trainer.advance

    def dying(self):
        if self.step == 3:
            raise KeyboardInterrupt
        return advance(self)

    with monkeypatch.context() as patch:
        patch.setattr(train.Trainer, "advance", dying)
        with pytest.raises(KeyboardInterrupt):
            train.run(params, **paths)
    train.run(params, **paths)
    assert same(whole, weights(paths["out"]))


def test_two_workers_take_the_same_samples_as_one(setup, tmp_path):
    params, paths = setup
    torch.set_num_threads(1)
    exact = params.models.model_copy(update={"dtype": "float32"})
    one = params.model_copy(update={"models": exact, "train": params.train.model_copy(update={"steps": 2})})
    train.run(one, **paths)
    alone = weights(paths["out"])
    two = one.model_copy(update={"train": one.train.model_copy(update={"workers": 2})})
    train.run(two, **{**paths, "work": tmp_path / "work2", "out": tmp_path / "editor2"})
    together = weights(tmp_path / "editor2")
    assert all(torch.allclose(alone[k], together[k], atol=2e-4) for k in alone)


def test_the_editor_folder_loads_in_diffusers(setup):
    from diffusers import StableDiffusionInstructPix2PixPipeline

    params, paths = setup
    train.run(params, **paths)
    pipeline = StableDiffusionInstructPix2PixPipeline.from_pretrained(paths["out"], local_files_only=True)
    assert pipeline.unet.config.in_channels == 2 * pipeline.vae.config.latent_channels


def test_an_unvalidated_dataset_is_refused(setup):
    params, paths = setup
    paths["marker"].unlink()
    with pytest.raises(DataError, match="was not validated; run"):
        train.run(params, **paths)


def test_a_dataset_changed_since_it_was_validated_is_refused(setup):
    params, paths = setup
    paths["marker"].write_text('{"dataset": "another"}')
    with pytest.raises(DataError, match="changed since it was validated"):
        train.run(params, **paths)


def test_a_users_error_in_a_worker_is_told_as_such(setup):
    params, paths = setup
    wild = params.model_copy(update={"train": params.train.model_copy(update={"lr": 1e30, "workers": 2})})
    with pytest.raises(UserError, match=r"the loss is .* lower train\.lr"):
        train.run(wild, **paths)


def test_a_batch_that_cannot_be_shared_is_refused(setup):
    params, paths = setup
    odd = params.model_copy(update={"train": params.train.model_copy(update={"batch": 3, "workers": 2})})
    with pytest.raises(ParamsError, match=r"train\.batch: 3"):
        train.run(odd, **paths)


def test_schedules_are_the_methods():
    section = TrainParams(steps=100, lr=1.0, warmup=10, decay=0.5)
    assert train.learning_rate(section, 0) == pytest.approx(0.1)
    assert train.learning_rate(section, 20) == 1.0
    assert train.learning_rate(section, 75) == pytest.approx(0.5)
    assert train.ema_rate(section, 0) == pytest.approx(0.1)
    assert train.ema_rate(TrainParams(), 10**6) == 0.9999
