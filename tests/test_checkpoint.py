import resource
import signal

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from ip2p.checkpoint import checkpoints, load_newest, save_checkpoint
from ip2p.errors import UserError


def trained(steps):
    torch.manual_seed(0)
    model = nn.Linear(4, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.ones(2, 4)).square().mean().backward()
        optimizer.step()
    return model, optimizer


def test_training_goes_on_bit_for_bit_after_a_restore(tmp_path):
    model, optimizer = trained(3)
    averaged = {k: v / 2 for k, v in model.state_dict().items()}
    save_checkpoint(tmp_path, 3, model, optimizer, averaged)
    fresh, fresh_optimizer = trained(0)
    ema = {k: torch.zeros_like(v) for k, v in fresh.state_dict().items()}
    assert load_newest(tmp_path, fresh, fresh_optimizer, ema) == 3
    for m, o in ((model, optimizer), (fresh, fresh_optimizer)):
        o.zero_grad()
        m(torch.ones(2, 4)).square().mean().backward()
        o.step()
    assert torch.equal(model.weight, fresh.weight)
    assert all(torch.equal(ema[k], v) for k, v in averaged.items())


def test_the_newest_valid_checkpoint_is_loaded_when_the_last_is_torn(tmp_path):
    model, optimizer = trained(1)
    save_checkpoint(tmp_path, 1, model, optimizer)
    torn = save_checkpoint(tmp_path, 2, model, optimizer)
    torn.write_bytes(torn.read_bytes()[:100])
    assert load_newest(tmp_path, model, optimizer) == 1


def test_only_the_last_two_are_kept(tmp_path):
    model, optimizer = trained(1)
    for step in range(1, 5):
        save_checkpoint(tmp_path, step, model, optimizer)
    assert [p.stem for p in checkpoints(tmp_path)] == ["step-00000003", "step-00000004"]


def test_a_disk_that_takes_no_more_is_told_and_earlier_checkpoints_stay(tmp_path):
    model, optimizer = trained(1)
    save_checkpoint(tmp_path, 1, model, optimizer)
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))  # the kernel refuses the write, as a full disk does
    try:
        with pytest.raises(UserError, match=r"cannot be written .* make room on the disk"):
            save_checkpoint(tmp_path, 2, model, optimizer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert [p.stem for p in tmp_path.iterdir()] == ["step-00000001"]
    assert load_newest(tmp_path, model, optimizer) == 1


class Nested(torch.optim.SGD):
    """Keeps its state as 8-bit optimizers do: nested, and steps as plain numbers."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state.setdefault(
                    p, {"step": 0, "quantised": {"absmax": torch.zeros(()), "code": torch.zeros(2, dtype=torch.uint8)}}
                )
                state["step"] += 1
                state["quantised"]["absmax"] += p.grad.abs().max()
                p -= 0.1 / state["step"] * p.grad / state["quantised"]["absmax"]


def test_nested_optimizer_states_are_kept(tmp_path):
    model = nn.Linear(4, 4)
    optimizer = Nested(model.parameters(), lr=0.1)
    model(torch.ones(2, 4)).square().mean().backward()
    optimizer.step()
    path = save_checkpoint(tmp_path, 1, model, optimizer)
    fresh = nn.Linear(4, 4)
    restored = Nested(fresh.parameters(), lr=0.1)
    load_newest(tmp_path, fresh, restored)
    state, kept = restored.state[fresh.weight], optimizer.state[model.weight]
    assert (type(state["step"]), state["step"]) == (int, 1)
    assert torch.equal(state["quantised"]["absmax"], kept["quantised"]["absmax"])
    assert load_file(path)["optimizer.0.quantised.code"].dtype == torch.uint8
