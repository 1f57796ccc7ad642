import random
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from ip2p.checkpoint import checkpoints, save_checkpoint
from ip2p.errors import ModelError
from ip2p.models import EMBEDDED
from ip2p.params.model import HELD_OUT
from ip2p.torchvision_cpu import declare_operators
from ip2p.world.edits import apply_edit
from ip2p.world.language import read_instruction, write_instruction
from ip2p.world.pretrain import export, pretrain, quicker, teacher
from ip2p.world.pretrain.fit import Leg, fit
from ip2p.world.scenes import sample_scene
from tests.compilers import halved


def test_training_goes_on_from_the_shipped_weights(tiny, tmp_path):
    pretrain.run(tiny, work=tmp_path, part="adopt")
    for part, folder, prefix in (("vae", "teacher/vae", ""), ("unet", "teacher/unet", "unet."), ("clip", "clip", "")):
        kept = load_file(checkpoints(tmp_path / part)[0])
        shipped = load_file(next((EMBEDDED / folder).glob("*.safetensors")))
        assert all(torch.equal(kept[f"ema.{prefix}{k}"], v.float()) for k, v in shipped.items() if v.is_floating_point())


def test_parts_that_have_checkpoints_keep_them(tiny, tmp_path):
    pretrain.run(tiny, work=tmp_path, part="adopt")
    before = checkpoints(tmp_path / "vae")[0].stat().st_mtime_ns
    pretrain.run(tiny, work=tmp_path, part="adopt")
    assert checkpoints(tmp_path / "vae")[0].stat().st_mtime_ns == before


def test_weights_travel_in_pieces_and_training_goes_on_from_them(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "PIECE", 2**20)
    here, there = tmp_path / "here", tmp_path / "there"
    pretrain.run(tiny, work=here, part="adopt")
    kept = load_file(checkpoints(here / "vae")[0])
    changed = {k.removeprefix("ema."): v + 0.5 for k, v in kept.items() if k.startswith("ema.")}
    save_checkpoint(here / "vae", 7, nn.Module(), ema=changed)
    pretrain.run(tiny, work=here, part="pack")
    pieces = list((here / "pieces").glob("vae-*"))
    assert len(pieces) > 3
    assert all(p.stat().st_size < 2 * 2**20 for p in pieces)
    shutil.copytree(here / "pieces", there / "pieces")
    pretrain.run(tiny, work=there, part="adopt")
    brought = load_file(checkpoints(there / "vae")[0])
    assert all(torch.equal(brought[f"ema.{k}"], v.half().float()) for k, v in changed.items())
    pieces[0].unlink()
    with pytest.raises(ModelError, match="missing; bring all"):
        export.read_pieces(here / "pieces", "vae")


def test_a_leg_ends_by_the_clock_with_its_rate_at_zero(tmp_path):
    model, leg = nn.Linear(4, 4), Leg(steps=10**9, lr=1.0, warmup=1, decay=0.5, minutes=0.01)
    fit(model, lambda step, g: (torch.randn(2, 4, generator=g),), [lambda x: (model(x[0]).square().mean(), {})], leg, tmp_path)
    assert len(checkpoints(tmp_path)) == 1
    assert [leg.rate(9, seconds) for seconds in (0.0, 0.3, 0.45, 0.6, 1.0)] == pytest.approx([1, 1, 0.5, 0, 0], abs=1e-6)


def test_a_leg_resumed_ends_where_an_uninterrupted_one_does(tmp_path):
    def trained(folder, *legs):
        for steps in legs:
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 2))

            def draw(step, generator):
                return (torch.randn(8, 16, generator=generator),)

            def loss(drawn, model=model):
                return model(*drawn).square().mean(), {}

            ema = fit(model, draw, [loss], Leg(steps=steps, lr=0.01, warmup=2, decay=0), folder)
        return ema

    whole, resumed = trained(tmp_path / "a", 6), trained(tmp_path / "b", 3, 6)
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)


@pytest.mark.parametrize(
    ("compiled_s", "left_s", "chosen", "told"),
    [
        (0.5, 3600, "compiled", "a step takes 0.5 s compiled (after 90 s), 1 s plain: goes on compiled"),
        (1.5, 3600, "plain", "a step takes 1.5 s compiled (after 92 s), 1 s plain: goes on plain"),
        (0.5, 500, "plain", ""),
    ],
)
def test_a_long_leg_is_compiled_where_its_steps_are_quicker_so(monkeypatch, compiled_s, left_s, chosen, told):
    clock, calls, lines = [0.0], [], []
    monkeypatch.setattr(quicker.time, "monotonic", lambda: clock[0])
    weight = nn.Parameter(torch.ones(1))

    def way(name, seconds, first):
        def loss(batch):
            clock[0] += seconds + first * (name not in calls)
            calls.append(name)
            return weight.sum(), {}

        return loss

    of = {"left": lambda steps, a_step: left_s, "tell": lines.append}
    loss = quicker.Quicker(way("plain", 1.0, 0), way("compiled", compiled_s, 90), [weight], **of)
    monkeypatch.setattr(quicker, "other_gradients", lambda loss, parameters: "others" * int(loss().item() != 1))
    for _ in range(2 * quicker.TRIED + 10):
        loss((torch.zeros(1),))
    assert calls[: quicker.TRIED] == ["plain"] * quicker.TRIED and set(calls[-10:]) == {chosen}
    assert lines == [told][: bool(told)] and calls.count("compiled") == bool(told) * (1 + quicker.TRIED + 10 * (chosen == "compiled"))


def test_a_leg_that_is_not_the_same_compiled_says_so_and_goes_on_plain(tmp_path, monkeypatch):
    monkeypatch.setattr(quicker, "TRIED", 12)
    monkeypatch.setattr(quicker, "WORTH", 0.0)

    def broken(graph, inputs):
        raise OSError("no compiler found")

    compilations = []

    def later(graph, inputs):
        compilations.append(graph)
        return graph if len(compilations) == 1 else halved(graph, inputs)

    def draw(step, generator):
        return (torch.randn(2 if step < 20 else 3, 4, generator=generator),)

    def trained(folder, *backends):
        torch.manual_seed(0)
        model = nn.Linear(4, 4)
        ways = [model, *(torch.compile(model, backend=b) for b in backends)]
        losses = [lambda x, way=way: (way(x[0]).square().mean(), {}) for way in ways]
        return fit(model, draw, losses, Leg(steps=30, lr=0.01), folder)

    plain = trained(tmp_path / "plain")
    said = {}
    for name, backend in {"broken": broken, "halved": halved, "later": later, "right": "aot_eager"}.items():
        tried = trained(tmp_path / name, backend)
        assert all(torch.allclose(plain[k], tried[k]) for k in plain)
        said[name] = (tmp_path / name / "log.txt").read_text().splitlines()[0]
    assert said["broken"] == "broken cannot be compiled here (no compiler found): goes on plain"
    assert said["halved"] == "halved compiled, its gradients are others (by 50%): goes on plain"
    assert said["later"] == "later compiled, its gradients are others (by 50%): goes on plain"
    assert said["right"].startswith("right a step takes ") and " s compiled (after " in said["right"]


def test_instructions_that_a_picture_answers_ask_for_something():
    for seed in range(200):
        rng = random.Random(seed)
        scene = sample_scene(rng)
        edit, before = teacher._answered(scene, rng)
        assert read_instruction(write_instruction(edit, before, rng)).type == edit.type
        if edit.type == "replace":
            assert edit.value != edit.target and apply_edit(before, edit) == scene


def test_means_in_the_log_are_of_the_steps_since_the_last_line(tmp_path):
    leg = Leg(steps=30, lr=0.0, log_every=20, save_seconds=0.0)
    model = nn.Linear(1, 1)

    def run(steps):
        ones = lambda x: (model(x[0]).sum() * 0 + 2.0, {})  # noqa: E731
        fit(model, lambda step, g: (torch.ones(1, 1),), [ones], replace(leg, steps=steps), tmp_path)

    run(13)
    run(30)
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.split()[2] for line in lines] == ["13/13", "20/30", "30/30"]
    assert all("loss 2.0000" in line for line in lines)


def test_a_teacher_learns_several_sizes_in_turns_and_may_leave_its_texts_alone(tmp_path):
    declare_operators()
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(EMBEDDED / "teacher" / "tokenizer")
    paths = [tmp_path / f"{side}.npy" for side in (4, 8)]
    for path, side in zip(paths, (4, 8), strict=True):
        np.save(path, np.random.default_rng(side).standard_normal((HELD_OUT + 2, 12, side, side)).astype(np.float16))
    first = teacher.new_teacher(latent_channels=12, latent_size=4, vocabulary=len(tokenizer), end=len(tokenizer) - 1)
    save_checkpoint(tmp_path / "unet", 1, first, ema=first.state_dict())
    teacher.train_teacher(0, 1, paths, 1, tokenizer, tmp_path / "unet", Leg(steps=3, lr=0.01, warmup=1), batch=2, texts=False)
    trained = load_file(checkpoints(tmp_path / "unet")[-1])
    before = first.state_dict()
    moved = {k for k, v in before.items() if not torch.equal(trained[f"ema.{k}"], v)}
    assert moved and all(k.startswith("unet.") for k in moved)
    before = trained  # its own checkpoints have frozen texts as average alone; a leg resumed from one must not lose them
    teacher.train_teacher(0, 1, paths, 1, tokenizer, tmp_path / "unet", Leg(steps=5, lr=0.01, warmup=1), batch=2, texts=False)
    resumed = load_file(checkpoints(tmp_path / "unet")[-1])
    texts = [k for k in before if k.startswith("ema.text_encoder.")]
    assert texts and all(torch.equal(resumed[k], before[k]) for k in texts)
