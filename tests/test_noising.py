"""The noising process against diffusers' own scheduler and against its definitions."""

import json

import pytest
import torch

from qrlora.noising import alphas_cumprod, flow_sigmas, noising_of

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


def flow(**config):
    """A flow's config as it lies on disk."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    return json.loads(FlowMatchEulerDiscreteScheduler(**config).to_json_string())


@pytest.mark.parametrize("how", [{"shift": 3.0}, {"shift": 1.0}, {"shift": 3.0, "use_dynamic_shifting": True}])
def test_a_flow_is_that_of_diffusers_scheduler(how):
    """SD3's, FLUX.1-schnell's, FLUX.1-dev's: its levels are the scheduler's own, and so is the noisy latent at each."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    theirs, ours = FlowMatchEulerDiscreteScheduler(**how), noising_of(flow(**how))
    torch.testing.assert_close(flow_sigmas(flow(**how)).flip(0), theirs.sigmas)
    x, noise, _ = draws()
    time = theirs.timesteps[[0, 10, 500, 990, 999]]
    torch.testing.assert_close(ours.add_noise(x, noise, time), theirs.scale_noise(x, time, noise))
    assert torch.equal(ours.target(x, noise, time), noise - x)
    assert torch.equal(ours.weighting(time), torch.ones(5))
    in_memory = noising_of(theirs.config)
    assert in_memory.name == ours.name == "flow"


@pytest.mark.parametrize(("timestep_sampling", "scheme"), [("uniform", "none"), ("logit-normal", "logit_normal")])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_flows_times_are_as_frequent_as_in_the_public_training(timestep_sampling, scheme, shift):
    """diffusers draws u by its scheme and takes row floor(1000 u) of the scheduler's falling timesteps."""
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.training_utils import compute_density_for_timestep_sampling, compute_loss_weighting_for_sd3

    scheduler, generator = FlowMatchEulerDiscreteScheduler(shift=shift), torch.Generator().manual_seed(3)
    u = compute_density_for_timestep_sampling(scheme, 40_000, logit_mean=0.0, logit_std=1.0, generator=generator)
    theirs = scheduler.timesteps[(u * 1000).long()]
    noising = noising_of(flow(shift=shift), timestep_sampling=timestep_sampling)
    ours = noising.sample_time(40_000, generator)
    assert set(ours.tolist()) <= set(scheduler.timesteps.tolist())
    levels = torch.arange(0.05, 1, 0.05)
    torch.testing.assert_close(ours.quantile(levels), theirs.quantile(levels), rtol=0, atol=12)
    weight = compute_loss_weighting_for_sd3(scheme, theirs / 1000)
    assert torch.equal(noising.weighting(theirs), weight)


def test_min_snr_is_refused_for_a_flow():
    with pytest.raises(ValueError, match="min_snr_gamma=5 is for diffusion, this base is a rectified flow: leave it"):
        noising_of(flow(), min_snr_gamma=5.0)


def test_an_unknown_density_of_times_is_refused_by_name():
    with pytest.raises(ValueError, match="no timestep_sampling 'cosmap'; known: uniform, noisy, logit-normal"):
        noising_of(flow(), timestep_sampling="cosmap")
