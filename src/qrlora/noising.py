"""Forward diffusion processes: how latents are noised for training, the prediction target and the loss weight.

A Noising is a record of four functions. It knows no backbone and no pipeline: it is built from the scheduler config of
a base model. Letters: b batch, T training timesteps of the base's diffusion process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Noising:
    """One forward process. x, noise (b, ...); time (b,), timesteps as the model takes them; weights (b,)."""

    name: str
    """The prediction type: epsilon, v_prediction or flow."""
    sample_time: Callable[[int, torch.Generator | None], Tensor]
    """(b, generator) -> time (b,), on the CPU: timestep numbers of a diffusion, sigma T of a flow."""
    add_noise: Callable[[Tensor, Tensor, Tensor], Tensor]
    """(x, noise, time) -> the noisy x, the model's input."""
    target: Callable[[Tensor, Tensor, Tensor], Tensor]
    """(x, noise, time) -> the prediction target."""
    weighting: Callable[[Tensor], Tensor]
    """time -> weight (b,) of each image's squared error."""


def noising_of(
    scheduler_config: Mapping[str, Any], min_snr_gamma: float = 0.0, timestep_sampling: str = "uniform"
) -> Noising:
    """The forward process that a diffusers scheduler config describes: rectified flow, or discrete diffusion.

    Which sampler the config belongs to (Euler, Heun, DDIM, ...) makes no difference to training.

    Args:    scheduler_config: the content of `scheduler_config.json`.
             min_snr_gamma: gamma of the min-SNR loss weight (arXiv 2303.09556); 0 weighs all timesteps alike.
             timestep_sampling: row of TIMESTEP_SAMPLING.
    Raises:  ValueError: an unknown process, prediction type or timestep_sampling; min-SNR for a flow.
    """
    if timestep_sampling not in TIMESTEP_SAMPLING:
        raise ValueError(f"no timestep_sampling {timestep_sampling!r}; known: {', '.join(TIMESTEP_SAMPLING)}")
    _check_scheduler(scheduler_config)
    process = process_of(scheduler_config)
    if not _is_flow(process):
        return _diffusion(process, min_snr_gamma, timestep_sampling)
    if min_snr_gamma:
        hint = "leave it at 0 and choose timestep_sampling, such as timestep_sampling=logit-normal"
        raise ValueError(f"min_snr_gamma={min_snr_gamma:g} is for diffusion, this base is a rectified flow: {hint}")
    return _rectified_flow(process, timestep_sampling)


def process_of(scheduler_config: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a scheduler config, defaults filled in, that define the forward process. Nothing else of it is
    read here: two configs with equal entries train alike, whatever their settings of sampling."""
    given, steps = scheduler_config.get, {"num_train_timesteps": scheduler_config.get("num_train_timesteps", 1000)}
    if _is_flow(scheduler_config):
        fixed = given("flow_shift", 1.0) if given("use_flow_sigmas") else given("shift", 1.0)
        return {**steps, "shift": 1.0 if given("use_dynamic_shifting") else fixed}
    kept = {"prediction_type": given("prediction_type", "epsilon")}
    kept["rescale_betas_zero_snr"] = bool(given("rescale_betas_zero_snr"))
    if given("trained_betas") is not None:
        return {**kept, **steps, "trained_betas": list(scheduler_config["trained_betas"])}
    betas = {"beta_start": given("beta_start", 0.0001), "beta_end": given("beta_end", 0.02)}
    return {**kept, **steps, **betas, "beta_schedule": given("beta_schedule")}


def _check_scheduler(config: Mapping[str, Any]) -> None:
    """Raises ValueError: a scheduler whose timesteps are not those of the processes below, naming the entry."""
    name = config.get("_class_name")
    flow = config.get("prediction_type") == FLOW_PREDICTION
    on = [key for key in OTHER_NOISE_LEVELS if config.get(key) and not (flow and key == "use_flow_sigmas")]
    on += ["prediction_type"] if flow and not config.get("use_flow_sigmas") else []
    on += ["timestep_type"] if config.get("timestep_type") == "continuous" else []
    if name is not None and name not in DISCRETE_SCHEDULERS | FLOW_SCHEDULERS:
        raise ValueError(f"cannot train a base with the scheduler {name!r:.80}: its timesteps are not known here")
    if on:
        what = f"{on[0]}={config[on[0]]!r:.40}"
        raise ValueError(f"cannot train a base whose scheduler has {what}: its timesteps are not known here")


def _is_flow(config: Mapping[str, Any]) -> bool:
    """Whether a scheduler's noising is a flow: by its class, or by what a multistep one predicts; a config that was
    never saved lacks the class, but only those of flows have a `shift`."""
    name = config.get("_class_name")
    if config.get("prediction_type") == FLOW_PREDICTION:
        return bool(config.get("use_flow_sigmas"))
    return name in FLOW_SCHEDULERS if name else "shift" in config


def _rectified_flow(process: Mapping[str, Any], timestep_sampling: str) -> Noising:
    """Rectified flow: straight lines from image to noise (arXiv 2209.03003; SD3: arXiv 2403.03206, eq. 1 and 13).

    x_s = (1 - s) x + s n with sigma s in 0..1; the target is the velocity n - x, the model's timestep s T. Sampled
    timesteps are rows of the scheduler's own table, as in diffusers' SD3 and FLUX training scripts, see `flow_sigmas`.
    All weigh the same, which with logit-normal sampling is SD3's loss (diffusers' SD3 script with
    `--precondition_outputs=0`; its default weighs by s^2).
    """
    sigmas, sample = flow_sigmas(process), TIMESTEP_SAMPLING[timestep_sampling]
    steps = len(sigmas)

    def add_noise(x: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        s = (time / steps).view(-1, *[1] * (x.ndim - 1)).to(x, non_blocking=True)
        return (1 - s) * x + s * noise

    return Noising(
        name="flow",
        sample_time=lambda b, generator=None: sigmas[_table_rows(sample(b, generator), steps)] * steps,
        add_noise=add_noise,
        target=lambda x, noise, time: noise - x,
        weighting=lambda time: torch.ones(time.shape, device=time.device),
    )


def flow_sigmas(config: Mapping[str, Any]) -> Tensor:
    """The T sigmas s (T,) float32 that a flow may be trained at, from little noise to pure noise.

    s = shift t / (1 + (shift - 1) t) of t = 1/T, 2/T, ..., 1 (arXiv 2403.03206, eq. 23): a fixed shift, as SD3's, is
    part of training. A shift that depends on the image's size (`use_dynamic_shifting`, as FLUX.1-dev's) is applied in
    sampling alone: diffusers' training scripts draw from the unshifted sigmas, and so do we.
    """
    process = process_of(config)
    steps, shift = process["num_train_timesteps"], process["shift"]
    t = torch.arange(1, steps + 1, dtype=torch.float32) / steps
    return shift * t / (1 + (shift - 1) * t)


def _table_rows(fraction: Tensor, steps: int) -> Tensor:
    """Fractions 0..1 of the process as row numbers of a table of T = `steps` timesteps."""
    return (steps * fraction).long().clamp_max(steps - 1)


def _diffusion(process: Mapping[str, Any], min_snr_gamma: float, timestep_sampling: str) -> Noising:
    """DDPM (arXiv 2006.11239): x_t = a_t x + s_t n with a_t = sqrt(prod(1 - beta)), s_t = sqrt(1 - a_t^2).

    The target is n (epsilon) or a_t n - s_t x (v-prediction, arXiv 2202.00512).
    """
    kind = process["prediction_type"]
    if kind not in TARGETS:
        raise ValueError(f"cannot train a base that predicts {kind!r}; known: {', '.join(TARGETS)}")
    sample, squared = TIMESTEP_SAMPLING[timestep_sampling], alphas_cumprod(process)
    signal, sigma = squared.sqrt(), (1 - squared).sqrt()

    def scales(x: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """The noising's a_t and s_t at timesteps, shaped as x."""
        shape = (-1, *[1] * (x.ndim - 1))
        rows = time.to(squared.device)
        a, s = signal[rows].view(shape), sigma[rows].view(shape)
        return a.to(x, non_blocking=True), s.to(x, non_blocking=True)

    def add_noise(x: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        a, s = scales(x, time)
        return a * x + s * noise

    def weighting(time: Tensor) -> Tensor:
        """The loss weight at timesteps: min-SNR."""
        if not min_snr_gamma:
            return torch.ones(time.shape, device=time.device)
        snr = squared / (1 - squared).clamp_min(torch.finfo(squared.dtype).tiny)
        bounded = snr.clamp_max(min_snr_gamma)
        # v's own error already carries SNR + 1; at SNR 0 epsilon is the model's input itself and keeps weight 1
        weight = bounded / (snr + 1) if kind == "v_prediction" else torch.where(snr > 0, bounded / snr, 1.0)
        return weight[time.to(weight.device)].to(time.device)

    return Noising(
        name=kind,
        sample_time=lambda b, generator=None: _table_rows(sample(b, generator), len(squared)),
        add_noise=add_noise,
        target=lambda x, noise, time: TARGETS[kind](x, noise, *scales(x, time)),
        weighting=weighting,
    )


def _uniform(b: int, generator: torch.Generator | None) -> Tensor:
    """As DDPM (arXiv 2006.11239)."""
    return torch.rand(b, generator=generator)


def _noisy(b: int, generator: torch.Generator | None) -> Tensor:
    """1 - u^2: density 1 / (2 sqrt(1 - t)), which rises towards pure noise, where colour and layout are decided."""
    return 1 - torch.rand(b, generator=generator) ** 2


def _logit_normal(b: int, generator: torch.Generator | None) -> Tensor:
    """sigmoid(u), u ~ N(0, 1): most often the middle of the process (SD3: arXiv 2403.03206, eq. 19, m = 0, s = 1)."""
    return torch.sigmoid(torch.randn(b, generator=generator))


DISCRETE_SCHEDULERS = frozenset(
    f"{name}Scheduler"
    for name in "DDPM DDPMParallel DDIM DDIMParallel PNDM LMSDiscrete EulerDiscrete EulerAncestralDiscrete "
    "HeunDiscrete KDPM2Discrete KDPM2AncestralDiscrete DPMSolverMultistep DPMSolverSinglestep DPMSolverSDE "
    "DEISMultistep UniPCMultistep SASolver LCM TCD".split()
)
"""Schedulers of discrete diffusion: the model's timestep is a step number."""
FLOW_SCHEDULERS = frozenset(f"FlowMatch{name}Scheduler" for name in ("EulerDiscrete", "HeunDiscrete", "LCM"))
"""Schedulers of rectified flow: the model's timestep is sigma T."""
FLOW_PREDICTION = "flow_prediction"
"""What UniPC and other multistep schedulers call the prediction of a flow."""
OTHER_NOISE_LEVELS = ("sigma_data", "use_flow_sigmas", "invert_sigmas", "snr_shift_scale")
"""Entries of a scheduler config that, when set, give any scheduler other timesteps or noise levels."""

TIMESTEP_SAMPLING: dict[str, Callable[[int, torch.Generator | None], Tensor]] = {
    "uniform": _uniform,
    "noisy": _noisy,
    "logit-normal": _logit_normal,
}
"""(b, generator) -> fractions (b,) of the process, from the clean image (0) to noise (1)."""

TARGETS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "epsilon": lambda x, noise, a, s: noise,  # arXiv 2006.11239
    "v_prediction": lambda x, noise, a, s: a * noise - s * x,  # arXiv 2202.00512
}
"""Prediction type -> (x, noise, a_t, s_t) -> the target."""


def alphas_cumprod(config: Mapping[str, Any]) -> Tensor:
    """The noising of a scheduler config: alphas_cumprod, a_t^2 (T,) float32.

    `rescale_betas_zero_snr` moves sqrt(a_t^2) linearly so that its last value is 0 and its first stays (arXiv
    2305.08891, algorithm 1).
    Raises: ValueError: no beta schedule in the config, or an unknown one.
    """
    process = process_of(config)
    schedule, steps = process.get("beta_schedule"), process["num_train_timesteps"]
    start, end = process.get("beta_start", 0.0), process.get("beta_end", 0.0)
    if "trained_betas" in process:
        betas = torch.tensor(process["trained_betas"], dtype=torch.float32)
    elif schedule == "linear":
        betas = torch.linspace(start, end, steps, dtype=torch.float32)
    elif schedule == "scaled_linear":  # linear in sqrt(beta): latent diffusion, SDXL
        betas = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float32) ** 2
    elif schedule == "squaredcos_cap_v2":  # arXiv 2102.09672, eq. 17
        share = [math.cos((t / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(steps + 1)]
        betas = torch.tensor([min(1 - share[t + 1] / share[t], 0.999) for t in range(steps)], dtype=torch.float32)
    else:
        known = "linear, scaled_linear, squaredcos_cap_v2"
        raise ValueError(f"cannot train with the noise schedule {schedule!r} of this base; known: {known}")
    squared = torch.cumprod(1 - betas, dim=0)
    if not process["rescale_betas_zero_snr"]:
        return squared
    root = squared.sqrt()
    return ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2
