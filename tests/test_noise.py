"""The noising process against diffusers' own scheduler and against its definitions."""

import pytest
import torch

from qrlora.noise import alphas_cumprod, noising_of

SDXL = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "prediction_type": "epsilon"}


def draws(shape=(5, 4, 3, 3)):
    generator = torch.Generator().manual_seed(0)
    x, noise = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    return x, noise, torch.tensor([0, 1, 500, 998, 999])


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_noising_is_that_of_diffusers_training_scheduler(schedule, zero_snr, prediction_type):
    """The public SDXL script trains with DDPMScheduler.add_noise and get_velocity."""
    from diffusers import DDPMScheduler

    config = {
        **SDXL,
        "beta_schedule": schedule,
        "rescale_betas_zero_snr": zero_snr,
        "prediction_type": prediction_type,
    }
    theirs, ours = DDPMScheduler(**config), noising_of(config)
    x, noise, time = draws()
    torch.testing.assert_close(ours.add_noise(x, noise, time), theirs.add_noise(x, noise, time), rtol=1e-5, atol=1e-5)
    target = noise if prediction_type == "epsilon" else theirs.get_velocity(x, noise, time)
    torch.testing.assert_close(ours.target(x, noise, time), target, rtol=1e-5, atol=1e-5)


def test_any_sampler_of_a_base_trains_the_same():
    """SDXL ships an Euler sampler's config; its keys describe the same process."""
    from diffusers import EulerDiscreteScheduler

    squared = EulerDiscreteScheduler(**SDXL).alphas_cumprod
    assert torch.equal(alphas_cumprod(dict(EulerDiscreteScheduler(**SDXL).config)), squared)


def test_zero_snr_ends_in_pure_noise():
    x, noise, _ = draws((1, 2, 2, 2))
    last = noising_of({**SDXL, "rescale_betas_zero_snr": True}).add_noise(x, noise, torch.tensor([999]))
    assert torch.equal(last, noise)


def test_times_cover_the_whole_process_evenly_and_follow_the_seed():
    noising = noising_of(SDXL)
    time = noising.sample_time(20_000, torch.Generator().manual_seed(3))
    assert time.min() == 0 and time.max() == 999
    assert abs(time.float().mean() - 499.5) < 10
    assert torch.equal(time, noising.sample_time(20_000, torch.Generator().manual_seed(3)))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_min_snr_bounds_the_weight_of_the_signals_error(kind):
    """arXiv 2303.09556: the error of the clean x weighs min(SNR, gamma), whatever the model predicts."""
    config = {**SDXL, "prediction_type": kind}
    time = torch.arange(1000)
    squared = alphas_cumprod(config).double()
    snr = squared / (1 - squared)
    # |x error|^2 = |epsilon error|^2 / SNR = |v error|^2 / (SNR + 1)
    error_of_x = 1 / snr if kind == "epsilon" else 1 / (snr + 1)
    expected = snr.clamp_max(5) * error_of_x
    weight = noising_of(config, min_snr_gamma=5.0).weighting(time).double()
    torch.testing.assert_close(weight, expected, rtol=1e-4, atol=1e-6)


def test_all_times_weigh_alike_by_default():
    assert torch.equal(noising_of(SDXL).weighting(torch.tensor([0, 999])), torch.ones(2))


@pytest.mark.parametrize("change", [{"beta_schedule": "sigmoid"}, {"prediction_type": "sample"}])
def test_an_unknown_process_is_refused_by_name(change):
    with pytest.raises(ValueError, match="sigmoid|sample"):
        noising_of({**SDXL, **change})
