"""Our samplers against k-diffusion's, the reference implementation's, step by step with the same noise."""

import importlib.util
import sys
import types
from pathlib import Path

import pytest
import torch

from ip2p.sampler import make_schedule, sample

ALPHAS = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0).float()
SHAPE = (2, 4, 8, 8)


@pytest.fixture(scope="module")
def reference():
    """`k_diffusion.sampling` alone: the package's front door imports what only its training needs."""
    spec = importlib.util.find_spec("k_diffusion")
    if spec is None or spec.submodule_search_locations is None:
        pytest.fail("k-diffusion is not installed; run `make setup`")
    package = types.ModuleType("k_diffusion")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["k_diffusion"] = package
    path = Path(package.__path__[0]) / "sampling.py"
    (package_utils := types.ModuleType("k_diffusion.utils")).append_dims = lambda x, n: x[(...,) + (None,) * (n - x.ndim)]
    sys.modules["k_diffusion.utils"] = package_utils
    module_spec = importlib.util.spec_from_file_location("k_diffusion.sampling", path)
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    yield module
    for name in [n for n in sys.modules if n.startswith("k_diffusion")]:
        del sys.modules[name]


def eps_model(x, t):
    """Anything smooth that depends on both."""
    return torch.tanh(x) * (0.5 + t / 1000) + 0.1 * torch.roll(x, 1, -1)


@pytest.mark.parametrize("steps", [5, 20, 100])
def test_euler_ancestral_follows_the_reference(reference, steps):
    schedule = make_schedule(ALPHAS, steps=steps, prediction="epsilon")
    noise = torch.randn((steps, *SHAPE), generator=torch.Generator().manual_seed(0))
    ours = sample(lambda x, t, i: eps_model(x, t), schedule, noise)
    position = {float(s): i for i, s in enumerate(schedule.sigmas)}
    drawn = iter(noise[1:])

    def denoise(x, sigma):
        t = schedule.timesteps[position[float(sigma[0])]]
        return x - sigma[0] * eps_model(x / (sigma[0] ** 2 + 1).sqrt(), t)

    start = noise[0] * schedule.sigmas[0]
    theirs = reference.sample_euler_ancestral(denoise, start, schedule.sigmas, noise_sampler=lambda *_: next(drawn), disable=True)
    assert (ours - theirs).abs().max() <= 1e-5 * max(1, theirs.abs().max())


def test_the_sigmas_are_the_references(reference):
    """`get_sigmas(n)` of its discrete wrapper: linear in t from 999 to 0, interpolated in log sigma."""
    levels = ((1 - ALPHAS) / ALPHAS).sqrt()
    schedule = make_schedule(ALPHAS, steps=100, prediction="epsilon")
    assert schedule.sigmas[0] == pytest.approx(levels[-1].item(), rel=1e-6) and schedule.sigmas[-2] == pytest.approx(
        levels[0].item(), rel=1e-5
    )
    t = torch.linspace(999, 0, 100)
    low, high, w = t.floor().long(), t.ceil().long(), t.frac()
    expected = ((1 - w) * levels.log()[low] + w * levels.log()[high]).exp()
    torch.testing.assert_close(schedule.sigmas[:-1], expected, rtol=1e-4, atol=1e-4)


def test_dpm_solver_follows_the_reference_while_steps_are_even(reference):
    """Ours caps extrapolation at that of equal steps; with steps even in log sigma the two are one."""
    steps = 12
    schedule = make_schedule(ALPHAS, steps=steps, prediction="epsilon", solver="dpmpp_2m")
    even = torch.logspace(1.1, -1.4, steps)
    schedule = type(schedule)(torch.cat([even, torch.zeros(1)]), schedule.timesteps, "epsilon", "dpmpp_2m")
    noise = torch.randn((steps, *SHAPE), generator=torch.Generator().manual_seed(1))
    ours = sample(lambda x, t, i: eps_model(x, t), schedule, noise)
    position = {float(s): i for i, s in enumerate(schedule.sigmas)}

    def denoise(x, sigma):
        t = schedule.timesteps[position[float(sigma[0])]]
        return x - sigma[0] * eps_model(x / (sigma[0] ** 2 + 1).sqrt(), t)

    theirs = reference.sample_dpmpp_2m(denoise, noise[0] * even[0], schedule.sigmas, disable=True)
    assert (ours - theirs).abs().max() <= 1e-4 * max(1, theirs.abs().max())
