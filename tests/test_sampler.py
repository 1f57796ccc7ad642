import math
from itertools import pairwise, product

import pytest
import torch

from ip2p.sampler import draw_noise, make_schedule, sample, to_clean


@pytest.fixture
def alphas():
    return torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)


def test_sigmas_fall_from_the_last_timestep_to_zero(alphas):
    schedule = make_schedule(alphas, steps=10, prediction="epsilon")
    assert schedule.timesteps[0] == 999
    assert schedule.timesteps[-1] == 0
    assert schedule.sigmas[0] == pytest.approx(math.sqrt((1 - alphas[-1]) / alphas[-1]), rel=1e-4)
    assert schedule.sigmas[-1] == 0
    assert (schedule.sigmas.diff() < 0).all()


def test_a_perfect_prediction_gives_the_clean_picture_whatever_the_noise(alphas):
    clean = torch.randn(2, 3, 4, 4)
    for prediction, solver in product(("epsilon", "v_prediction"), ("euler_ancestral", "dpmpp_2m")):
        schedule = make_schedule(alphas, steps=7, prediction=prediction, solver=solver)
        sigmas = iter(schedule.sigmas)

        def predict(x, timestep, i, sigmas=sigmas, prediction=prediction):
            sigma = next(sigmas)
            noisy = x * (sigma**2 + 1).sqrt()
            noise = (noisy - clean) / sigma
            alpha = 1 / (1 + sigma**2)
            return noise if prediction == "epsilon" else alpha.sqrt() * noise - (1 - alpha).sqrt() * clean

        made = sample(predict, schedule, draw_noise([1, 2], (3, 4, 4), 7))
        assert torch.allclose(made, clean, atol=2e-4)


def test_the_fast_solver_is_of_second_order(alphas):
    """On a Gaussian the exact solution is known: ten steps come nearer to it than twenty of first order (DDIM)."""
    spread = 0.5  # latents of spread 0.5: the ideal prediction of the clean ones is x / (1 + (sigma / spread)²)
    noise = draw_noise([3], (1, 16, 16), 41)

    def error(steps, *, order):
        schedule = make_schedule(alphas, steps=steps, prediction="epsilon", solver="dpmpp_2m")
        if order == 1:  # forget the step before: the solver then is DDIM
            sigmas, x = schedule.sigmas, noise[0] * schedule.sigmas[0]
            for a, b in pairwise(sigmas):
                clean = x / (1 + (a / spread) ** 2)
                x = clean + (x - clean) * b / a
            made = x
        else:

            def predict(x, timestep, i):
                sigma = schedule.sigmas[i]
                noisy = x * (sigma**2 + 1).sqrt()
                return (noisy - noisy / (1 + (sigma / spread) ** 2)) / sigma

            made = sample(predict, schedule, noise)
        first = schedule.sigmas[0]
        exact = noise[0] * first * spread / (first**2 + spread**2).sqrt()
        return (made - exact).abs().mean()

    assert error(10, order=2) < error(20, order=1)


def test_noise_depends_on_the_seed_alone_not_on_the_batch():
    together = draw_noise([5, 6], (3, 4, 4), 4)
    assert torch.equal(together[:, 1:], draw_noise([6], (3, 4, 4), 4))


def test_an_unknown_prediction_type_is_refused():
    with pytest.raises(ValueError, match="sample"):
        to_clean(torch.zeros(1), torch.zeros(1), torch.ones(1), "sample")


def test_a_schedule_of_zero_terminal_snr_has_finite_noise():
    schedule = make_schedule(torch.linspace(0.99, 0, 1000), steps=4, prediction="v_prediction")
    assert schedule.sigmas.isfinite().all()
    assert (schedule.sigmas.diff() < 0).all()
