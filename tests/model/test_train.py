import argparse
import fcntl
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file

from benchmarks import train as benchmark
from ip2p.checkpoint import trained_state
from ip2p.errors import DataError, ModelError, ParamsError, UserError
from ip2p.model import objective, plan, train, trainer
from ip2p.model.data import TrainBatch, draw_batch
from ip2p.model.folder import save_editor
from ip2p.model.unet import new_editor_unet
from ip2p.models import EMBEDDED, load_diffusion
from ip2p.params import TrainParams
from ip2p.store import digest
from tests.compilers import halved
from tests.grown import grow_unet


@pytest.fixture
def setup(tiny, made, tmp_path, track_in):
    marker = tmp_path / "validated.json"
    marker.write_text(json.dumps({"dataset": digest(made / "dataset")}))
    params = tiny.model_copy(update={"track": track_in(tmp_path)})
    return params, {"dataset": made / "dataset", "marker": marker, "out": tmp_path / "editor", "work": tmp_path / "work"}


def weights(folder):
    return load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")


def same(a, b):
    return all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize(
    ("dtype", "steps", "every", "optimizer"),
    [("float32", 4, 2, "adamw"), ("float32", 4, 2, "adamw8bit"), ("float16", 2, 1, "adamw")],  # float16 carries a loss scale, and is slow
)
def test_a_killed_run_resumed_ends_with_the_same_bits(setup, monkeypatch, dtype, steps, every, optimizer):
    if optimizer == "adamw8bit":
        pytest.importorskip("bitsandbytes", reason="`pip install -e '.[gpu]'`")
    params, paths = setup
    changes = {"batch": 2, "steps": steps, "checkpoint_every": every, "grid_every": 100, "optimizer": optimizer}
    small = {
        "train": params.train.model_copy(update=changes),
        "evaluate": params.evaluate.model_copy(update={"steps": 1}),
    }
    params = params.model_copy(update={"models": params.models.model_copy(update={"dtype": dtype}), **small})
    torch.set_num_threads(1)
    train.run(params, **paths)
    whole = weights(paths["out"])
    (record,) = paths["work"].glob("*/progress.json")
    shutil.rmtree(record.parent)  # the latents stay
    # die before the last step: of float32 a step after its checkpoint
    advance = train.Trainer.advance

    def dying(self):
        if self.step == steps - 1:
            raise KeyboardInterrupt
        return advance(self)

    with monkeypatch.context() as patch:
        patch.setattr(train.Trainer, "advance", dying)
        with pytest.raises(KeyboardInterrupt):
            train.run(params, **paths)
    train.run(params, **paths)
    assert same(whole, weights(paths["out"]))
    (newest,) = sorted(paths["work"].glob("*/step-*.safetensors"))[-1:]
    assert (optimizer == "adamw8bit") == any(v.dtype == torch.uint8 for v in load_file(newest).values())


def test_two_workers_take_the_same_samples_as_one(setup, tmp_path):
    params, paths = setup
    torch.set_num_threads(1)
    one = with_train(exact(params), steps=2)
    train.run(one, **paths)
    alone = weights(paths["out"])
    two = one.model_copy(update={"train": one.train.model_copy(update={"workers": 2})})
    train.run(two, **{**paths, "work": tmp_path / "work2", "out": tmp_path / "editor2"})
    together = weights(tmp_path / "editor2")
    assert all(torch.allclose(alone[k], together[k], atol=2e-4) for k in alone)
    assert norm_of(paths["work"]) == pytest.approx(norm_of(tmp_path / "work2"), rel=1e-3)


def test_every_process_begins_with_the_same_low_rank_weights(tiny):
    params = with_train(tiny, lora_rank=4)
    ours, theirs = (train_state(params, noise) for noise in (1, 2))
    assert any(v.any() for k, v in ours.items() if "lora" in k)
    assert same(ours, theirs)


def train_state(params, noise):
    """What a process begins to train, whatever it has drawn before."""
    torch.manual_seed(noise)
    return trained_state(trainer.new_unet(train.load_base(params), params))


def test_the_editor_folder_loads_in_diffusers_and_what_training_did_is_in_mlflow(setup):
    from diffusers import StableDiffusionInstructPix2PixPipeline
    from mlflow import MlflowClient

    params, paths = setup
    train.run(params, **paths)
    pipeline = StableDiffusionInstructPix2PixPipeline.from_pretrained(paths["out"], local_files_only=True)
    assert pipeline.unet.config.in_channels == 2 * pipeline.vae.config.latent_channels

    client = MlflowClient(params.track.uri)
    (run,) = client.search_runs([client.get_experiment_by_name(params.track.experiment).experiment_id])
    for name in ("loss", "lr", "samples_per_second", "memory_gb", "gradient_norm"):
        assert [m.step for m in client.get_metric_history(run.info.run_id, name)] == [1, 2, 3, 4]
    losses = losses_of(paths["work"]).tolist()
    assert [m.value for m in client.get_metric_history(run.info.run_id, "loss")] == pytest.approx(losses, rel=1e-6)
    assert run.data.params["dataset"] == digest(paths["dataset"]) and run.data.params["train.steps"] == "4"
    assert [a.path for a in client.list_artifacts(run.info.run_id, "grids")] == ["grids/000002.png", "grids/000004.png"]


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


def test_a_teacher_that_predicts_what_is_not_known_is_refused(setup, tmp_path):
    params, paths = setup
    shutil.copytree(EMBEDDED / "teacher", tmp_path / "teacher")
    config = tmp_path / "teacher/scheduler/scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"prediction_type": "sample"}))
    told = params.model_copy(update={"models": params.models.model_copy(update={"teacher": str(tmp_path / "teacher")})})
    with pytest.raises(ModelError, match=r"models\.teacher: .* predicts `sample`.*set train\.prediction"):
        train.run(told, **paths)


def test_two_trainings_do_not_share_a_folder_of_checkpoints(setup):
    params, paths = setup
    paths["work"].mkdir()
    with (paths["work"] / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another training is under way there"):
            train.run(params, **paths)
    train.run(params, **paths)


def test_a_loss_that_is_no_number_ends_the_run(setup):
    params, paths = setup
    with pytest.raises(UserError, match=r"the loss is .* lower train\.lr"):
        train.run(with_train(params, lr=1e30), **paths)


def test_a_batch_that_cannot_be_shared_is_refused(setup):
    params, paths = setup
    odd = params.model_copy(update={"train": params.train.model_copy(update={"batch": 3, "workers": 2})})
    with pytest.raises(ParamsError, match=r"train\.batch: 3"):
        train.run(odd, **paths)


def test_schedules_are_the_methods():
    section = TrainParams(steps=100, lr=1.0, warmup=10, decay=0.5)
    assert objective.learning_rate(section, 0) == pytest.approx(0.1)
    assert objective.learning_rate(section, 20) == 1.0
    assert objective.learning_rate(section, 75) == pytest.approx(0.5)
    assert objective.ema_rate(section, 0) == pytest.approx(0.1)
    assert objective.ema_rate(TrainParams(), 10**6) == 0.9999


def with_train(params, **changes):
    return params.model_copy(update={"train": params.train.model_copy(update=changes)})


def losses_of(work):
    (newest,) = sorted(work.glob("*/step-*.safetensors"))[-1:]
    return load_file(newest)["extra.losses"]


def norm_of(work):
    """Of the last step's gradient, which optimizers that look at its direction alone would not tell."""
    (told,) = work.glob("*/progress.json")
    return json.loads(told.read_text())["gradient_norm"]


def exact(params):
    """In float32: how bfloat16 rounds is up to the processor, and to how many rows it is given at once."""
    return params.changed("models", dtype="float32")


def test_parts_of_a_batch_one_after_the_other_make_the_same_step(setup, tmp_path):
    params, paths = setup
    whole = with_train(exact(params), steps=2)
    train.run(whole, **paths)
    parted = with_train(whole, accumulate=4, gradient_checkpointing=True, ema_on_cpu=True)
    train.run(parted, **{**paths, "work": tmp_path / "work2", "out": tmp_path / "editor2"})
    assert torch.allclose(losses_of(paths["work"]), losses_of(tmp_path / "work2"), rtol=1e-4)
    assert norm_of(paths["work"]) == pytest.approx(norm_of(tmp_path / "work2"), rel=1e-3)
    one, other = weights(paths["out"]), weights(tmp_path / "editor2")
    assert all(torch.allclose(one[k], other[k], atol=2e-4) for k in one)


def test_processes_launched_together_have_the_loss_curve_of_one(setup, tmp_path):
    params, paths = setup
    one = with_train(exact(params), steps=3)
    train.run(one, **paths)
    (tmp_path / "params.json").write_text(one.model_dump_json(by_alias=True))
    code = (
        "import sys; from pathlib import Path; from ip2p.params import Params; from ip2p.model.train import run;"
        "p, dataset, marker, out, work = map(Path, sys.argv[1:]);"
        "run(Params.model_validate_json(p.read_text()), dataset=dataset, marker=marker, out=out, work=work)"
    )
    script = tmp_path / "launched.py"
    script.write_text(code)
    where = [tmp_path / "params.json", paths["dataset"], paths["marker"], tmp_path / "editor2", tmp_path / "work2"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    subprocess.run([*launcher, script, *where], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=240)
    assert torch.allclose(losses_of(paths["work"]), losses_of(tmp_path / "work2"), rtol=1e-5)
    alone, together = weights(paths["out"]), weights(tmp_path / "editor2")
    assert all(torch.allclose(alone[k], together[k], atol=2e-4) for k in alone)


def test_training_goes_on_from_an_editor(setup, editor_folder):
    params, paths = setup
    still = with_train(params, start=str(editor_folder), lr=1e-12, steps=1)
    train.run(still, **paths)
    start, end = weights(editor_folder), weights(paths["out"])
    assert all(torch.allclose(start[k], end[k], atol=1e-6) for k in start)


def test_lora_trains_few_weights_and_diffusers_puts_them_on_the_start(setup, teacher, monkeypatch):
    from diffusers import StableDiffusionInstructPix2PixPipeline

    params, paths = setup
    low = with_train(exact(params), lora_rank=4, lr=0.05, optimizer="adamw")
    train.run(low, **paths)
    (checkpoint,) = sorted(paths["work"].glob("*/step-*.safetensors"))[-1:]
    assert all("lora_" in k for k in load_file(checkpoint) if k.startswith("model."))
    merged, start = weights(paths["out"]), grow_unet(teacher.unet)
    assert not torch.equal(merged["conv_in.weight"], start.conv_in.weight)
    pipeline = StableDiffusionInstructPix2PixPipeline.from_pretrained(paths["out"], local_files_only=True)
    pipeline.unet = start.eval()
    torch.manual_seed(0)
    pipeline.load_lora_weights(paths["out"] / "lora")
    rows, text = torch.randn(1, start.config.in_channels, 12, 12), torch.randn(1, 7, start.config.cross_attention_dim)
    with torch.no_grad():
        together = pipeline.unet(rows, 500, text).sample
        start.unload_lora()
        start.load_state_dict(merged)
        alone = start(rows, 500, text).sample
    assert torch.allclose(together, alone, atol=1e-4)


def test_a_disk_that_is_full_when_the_editor_is_written_is_told_and_nothing_half_written_stays(teacher, tmp_path):
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))  # the kernel refuses the write, as a full disk does
    try:
        with pytest.raises(UserError, match=r"editor: cannot be written .* make room on the disk"):
            save_editor(grow_unet(teacher.unet), teacher, tmp_path / "editor")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(tmp_path.iterdir())


def test_a_unet_of_neither_teacher_nor_editor_is_refused(teacher):
    with pytest.raises(ModelError, match="takes 12 channels"):
        new_editor_unet(teacher.unet, teacher.latent_channels - 1)


def test_min_snr_caps_the_weight_of_easy_timesteps():
    alpha = torch.tensor([0.999, 0.5, 0.01])
    snr = alpha / (1 - alpha)
    assert torch.allclose(objective.snr_weight(alpha, "epsilon", 5.0), torch.tensor([5 / 999, 1.0, 1.0]), rtol=1e-3)
    assert torch.allclose(objective.snr_weight(alpha, "v_prediction", 5.0), snr.clamp(max=5) / (snr + 1))
    assert objective.snr_weight(torch.tensor([0.0]), "epsilon", 5.0).item() == 1.0  # zero terminal SNR


def test_min_snr_weighs_the_loss_of_each_sample(teacher):
    unet, generator = grow_unet(teacher.unet).eval(), torch.Generator().manual_seed(0)
    side, channels = teacher.image_size // teacher.factor, teacher.latent_channels
    clean, noise, source = (torch.randn(3, channels, side, side, generator=generator) for _ in range(3))
    text = torch.randn(3, teacher.text_encoder.config.max_position_embeddings, unet.config.cross_attention_dim, generator=generator)
    batch = TrainBatch(clean, noise, torch.tensor([1, 500, 990]), source, text)
    with torch.no_grad():
        errors, plain, weighed = (
            objective._errors(unet, batch, teacher),
            *(objective.loss_of(unet, batch, teacher, min_snr=g) for g in (0, 5)),
        )
    alpha = teacher.scheduler.alphas_cumprod[batch.timesteps_B]
    assert plain.item() == pytest.approx(errors.mean().item())
    expected = (errors * objective.snr_weight(alpha, "v_prediction", 5.0)).mean().item()
    assert weighed.item() == pytest.approx(expected) and weighed.item() != pytest.approx(plain.item())


def test_gradients_are_clipped_to_the_norm_that_is_asked_for(setup, teacher):
    params, paths = setup
    start, moved = grow_unet(teacher.unet).state_dict(), []
    for clip_norm in (0.0, 1e-12):  # so small that AdamW's epsilon leaves nothing of a step
        train.run(with_train(params, steps=1, ema=0.0, weight_decay=0.0, clip_norm=clip_norm), **paths)
        moved.append(max((v - start[k]).abs().max().item() for k, v in weights(paths["out"]).items()))
    assert moved[0] > 1e-5 and moved[1] < 1e-7


def test_the_prediction_is_the_parameters(setup):
    params, paths = setup
    train.run(with_train(params, prediction="epsilon", min_snr=5.0), **paths)
    assert json.loads((paths["out"] / "scheduler" / "scheduler_config.json").read_text())["prediction_type"] == "epsilon"


def test_the_plan_counts_what_autograd_keeps(teacher):
    base = replace(teacher, dtype=torch.bfloat16)
    unet, kept = grow_unet(base.unet).train(), {}
    weights = {p.untyped_storage().data_ptr() for p in unet.parameters()}

    def pack(x):
        if x.untyped_storage().data_ptr() not in weights:
            kept[x.untyped_storage().data_ptr()] = x
        return x

    side = base.image_size // base.factor
    rows, text = torch.randn(4, unet.config.in_channels, side, side), torch.randn(4, 77, unet.config.cross_attention_dim)
    text = text[:, : base.text_encoder.config.max_position_embeddings]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), base.arithmetic():
        unet(rows, torch.zeros(4, dtype=torch.long), text)
    real = sum(x.untyped_storage().nbytes() for x in kept.values())
    assert plan.estimate(base, TrainParams(batch=4), gpu=False).activations * 1e9 == pytest.approx(real, rel=0.05)


def test_the_plan_proposes_what_fits_and_the_run_refuses_what_does_not(setup, teacher, monkeypatch):
    params, paths = setup
    section = TrainParams(batch=64)
    needs = plan.estimate(teacher, section, gpu=False).total
    proposal = plan.propose(teacher, section, limit_gb=0.6 * needs, gpu=False)
    assert plan.estimate(teacher, proposal, gpu=False).total <= 0.6 * needs
    assert proposal.accumulate > 1 or proposal.gradient_checkpointing
    assert plan.propose(teacher, section, limit_gb=0.001, gpu=False) is None
    voted = section.model_copy(update={"preferences": "data/preferences", "preference_batch": 8})
    proposal = plan.propose(teacher, voted, limit_gb=0.6 * needs, gpu=False)
    assert voted.preference_batch % proposal.accumulate == 0  # else the run would refuse it
    lean = section.model_copy(update={"ema_on_cpu": True})
    assert plan.estimate(teacher, lean, gpu=True).ema == 0 < plan.estimate(teacher, lean, gpu=False).ema
    monkeypatch.setattr(plan, "free_gb", lambda device: 0.9 * plan.estimate(teacher, params.train, gpu=False).total)
    with pytest.raises(ParamsError, match=r"train: needs about .* GB are free; set train\."):
        train.run(params, **paths)


def test_a_card_that_is_full_after_all_is_told_and_training_goes_on_with_what_that_advises(setup, monkeypatch):
    params, paths = exact(setup[0]), setup[1]
    whole = train.run(params, **{**paths, "work": paths["work"].with_name("whole")}).extra["loss"]
    changed, advance = with_train(params, checkpoint_every=1), trainer.Trainer.advance

    def full(self):
        if self.step == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return advance(self)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "advance", full)
        with pytest.raises(ParamsError, match=r"full at step 3; set train\.accumulate: 2 or train\.gradient_checkpointing: true"):
            train.run(changed, **paths)
    again = train.run(with_train(changed, accumulate=2), **paths)
    assert again.extra["loss"] == pytest.approx(whole, rel=1e-5)


def test_what_a_full_card_is_told_to_set_is_not_refused_then():
    section = TrainParams(batch=24, accumulate=8, gradient_checkpointing=True)
    assert "accumulate: 12" in str(plan.out_of_memory(section, 1, workers=1))
    voted = section.model_copy(update={"preferences": "votes", "preference_batch": 8})
    assert "larger card" in str(plan.out_of_memory(voted, 1, workers=1))
    assert "accumulate: 12" in str(plan.out_of_memory(section.model_copy(update={"accumulate": 9}), 1, workers=2))


def test_the_plan_counts_a_checkpoint_as_it_is_written(setup, teacher, monkeypatch):
    params, paths = setup
    train.run(params, **paths)
    (file, *_) = sorted(paths["work"].rglob("step-*.safetensors"))
    on_cpu, on_gpu = (plan.estimate(teacher, params.train, gpu=x) for x in (False, True))
    assert on_cpu.checkpoint * 1e9 == pytest.approx(file.stat().st_size, rel=0.02)
    assert (on_gpu.host, on_gpu.checkpoint, on_cpu.host) == (on_cpu.checkpoint, 0, 0)
    averaged = plan.estimate(teacher, params.train.model_copy(update={"ema_on_cpu": True}), gpu=True)
    assert averaged.host == pytest.approx(on_gpu.host + 2 * on_gpu.ema) and "machine's memory" in averaged.lines()[-1]
    monkeypatch.setattr(plan, "estimate", lambda *a, **k: replace(on_gpu, host=1e6))
    with pytest.raises(ParamsError, match=r"writing checkpoints takes 1000000.0 GB .* or set train\.lora_rank"):
        plan.require_memory(params, teacher, workers=1)


def test_free_memory_is_within_the_limit_of_the_container(cpu, tmp_path, monkeypatch):
    for name, value in (
        ("memory.max", "4000000000"),
        ("memory.current", "3500000000"),
        ("memory.stat", "anon 1\ninactive_file 500000000\n"),
    ):
        (tmp_path / name).write_text(value + "\n")
    monkeypatch.setattr(plan, "_GROUP", tmp_path)
    assert plan.free_gb(cpu) == pytest.approx(1.0)
    (tmp_path / "memory.max").write_text("max\n")
    assert plan.free_gb(cpu) > 0.1


def test_what_cannot_be_trained_is_refused_before_latents_are_encoded(setup, teacher, monkeypatch):
    params, paths = setup
    monkeypatch.setattr(train, "load_latents", lambda *a, **k: pytest.fail("latents were encoded first"))
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ParamsError, match="adamw8bit needs bitsandbytes"):
        train.run(with_train(params, optimizer="adamw8bit"), **paths)
    with monkeypatch.context() as patch:
        patch.setattr(plan, "free_gb", lambda device: 0.01)
        patch.setattr(plan, "propose", lambda *a, **k: None)
        with pytest.raises(ParamsError, match="train: needs about"):
            train.run(params, **paths)
    from diffusers import UNet2DConditionModel

    inpainting = UNet2DConditionModel.from_config({**teacher.unet.config, "in_channels": 9})
    monkeypatch.setattr(train, "load_base", lambda params: replace(teacher, unet=inpainting))
    with pytest.raises(ModelError, match="takes 9 channels"):
        train.run(params, **paths)


def test_weights_that_blow_up_in_the_last_step_are_not_saved(setup, monkeypatch):
    params, paths = setup
    advance = train.Trainer.advance

    def exploding(self):
        loss = advance(self)
        self.ema["conv_in.bias"][0] = float("inf")
        return loss

    monkeypatch.setattr(train.Trainer, "advance", exploding)
    with pytest.raises(train.DivergedError, match=r"weights are no longer finite at step 1; lower train\.lr"):
        train.run(with_train(params, steps=1), **paths)
    assert not paths["out"].exists()
    assert not list(paths["work"].glob("*/step-*"))


def test_the_plan_proposes_for_a_card_what_a_card_has(setup, teacher):
    section = TrainParams(batch=4)
    least = plan.estimate(teacher, section.model_copy(update={"gradient_checkpointing": True}), gpu=False).total
    assert plan.propose(teacher, section, limit_gb=0.9 * least, gpu=False).lora_rank  # nothing of a GPU's for a CPU
    params, _ = setup
    assert "torch.bfloat16" in plan.advise(params, gpu_gb=24.0)[0]


def test_it_may_be_trained_on_smaller_pictures_than_it_edits(setup, teacher):
    params, paths = setup
    train.run(with_train(params, sizes=(48,)), **paths)
    latents, *_ = paths["work"].glob("latents-*.safetensors")
    assert load_file(latents)["source_NVCHW"].shape[-2:] == (6, 6)
    assert load_diffusion(str(paths["out"]), device=teacher.device, kind="editor").image_size == teacher.image_size == 96
    small, usual = (plan.estimate(train.load_base(with_train(params, sizes=s)), params.train, gpu=False) for s in ((48,), ()))
    assert small.activations < usual.activations
    with pytest.raises(ParamsError, match=r"train\.sizes: 50 pixels are no multiple of the autoencoder's 8"):
        train.run(with_train(params, sizes=(48, 50)), **paths)


def test_steps_take_the_sizes_in_turns(setup, teacher, monkeypatch):
    params, paths = setup
    seen = []
    monkeypatch.setattr(trainer, "draw_batch", lambda *a, **k: seen.append(x := draw_batch(*a, **k)) or x)
    train.run(with_train(params, sizes=(48, 96), steps=3), **paths)
    assert [x.clean_BCHW.shape[-1] for x in seen] == [6, 12, 6]
    assert all(x.source_BCHW.shape == x.noise_BCHW.shape == x.clean_BCHW.shape for x in seen)
    kept = set(paths["work"].glob("latents-*"))
    seen.clear()
    train.run(with_train(params, sizes=(96, 96, 48), steps=3), **paths)  # twice as often, and encoded once
    assert [x.clean_BCHW.shape[-1] for x in seen] == [12, 12, 6] and set(paths["work"].glob("latents-*")) == kept
    train.run(with_train(params, sizes=(96,), steps=4), **paths)  # encodes nothing, and what it does not need goes
    left = set(paths["work"].glob("latents-*"))
    assert left < kept and 2 * len(left) == len(kept)


def test_what_saves_memory_does_not_begin_anew(setup):
    params, paths = setup
    first = train.run(params, **paths).extra["run"]
    again = train.run(with_train(params, accumulate=2, gradient_checkpointing=True), **paths).extra["run"]
    assert first == again


def test_compiled_training_is_refused_where_it_would_learn_something_else(setup, monkeypatch):
    params, paths = setup
    params = with_train(params, compile=True, steps=1)
    way = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: way(self, backend=halved))
    with pytest.raises(UserError, match=r"this UNet's gradients are others \(by 50%\); set train.compile to false"):
        train.run(params, **paths)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: way(self, backend="aot_eager"))
    train.run(params, **paths)
    assert len(losses_of(paths["work"])) == 1


def test_grids_and_checks_take_pairs_of_any_size(setup, made, tmp_path):
    from PIL import Image

    from ip2p.model.data import example_pairs
    from ip2p.store import read_shard, shards, write_shard

    folder = tmp_path / "mixed"
    table = read_shard(shards(made / "dataset", "train-")[0])
    rows = table.slice(0, 3).to_pylist()
    large = Image.open(io.BytesIO(rows[1]["original_image"]["bytes"])).resize((160, 128))
    buffer = io.BytesIO()
    large.save(buffer, "PNG")
    rows[1]["original_image"]["bytes"] = buffer.getvalue()
    write_shard(folder / "train-00000.parquet", pa.Table.from_pylist(rows), "x")
    instructions, before, after = example_pairs(folder, 3, 96)
    assert (len(instructions), before.shape, after.shape) == (3, (3, 3, 96, 96), (3, 3, 96, 96))


def test_the_benchmark_trains(tmp_path, track_in):
    options = argparse.Namespace(batch=2, steps=2)
    params = benchmark.parameters(tmp_path, "world", options).model_copy(update={"track": track_in(tmp_path)})
    benchmark.make_dataset(tmp_path / "dataset", 4, size=96)
    (tmp_path / "validated.json").write_text(json.dumps({"dataset": digest(tmp_path / "dataset")}))
    tried = list(benchmark.ways(params, half=True, compiled=True))
    assert [w.name for w in tried][-2:] == ["ours, bfloat16, compiled", "+ a process a core"] and tried[-1].params.train.workers == 2
    rate, losses = tried[1].loop(tried[1].params, tmp_path)
    assert rate > 0 and len(losses) == 2
