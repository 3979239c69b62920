"""StyleAligned (arXiv 2312.02133): self-attention shared with a reference image during sampling. SDXL's UNet only.

Letters: b images in a batch, the first of them the reference; n tokens, h heads, d channels of a head. With
classifier-free guidance the model's batch has 2 b rows, [without prompt 1..b, with prompt 1..b]; without it b rows.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..families import Base, SizeConditioning
from ..image_loading import load_image
from ..injection import applied
from ..noising import alphas_cumprod
from ..sampling import generate
from ..training_example import encode_training_examples
from .fusion_method import FusionInputs, FusionResult, TrainingImage, check_family

FAMILIES = ("sdxl",)
SHIFT = math.log(2)
"""Added to the logits of the reference's tokens, as the authors do to transfer a given image's style."""
INVERSION_GUIDANCE = 2.0
MAX_BATCH = 8
"""Images in a batch, with the reference."""


def fuse_style_aligned(task: FusionInputs) -> FusionResult:
    """Invert the style image to noise, and sample images with the content LoRA that attend to its denoising.

    Guidance, steps and scheduler are the base's own; the authors' transfer uses DDIM, 50 steps and guidance 10.
    """
    check_family("style-aligned", FAMILIES, task.base)
    base = task.base
    trajectory = invert_image(base, task.style_image)

    def draw(prompts: Sequence[str], seeds: Sequence[int]) -> list[Any]:
        """Sample images beside StyleAligned's reference, MAX_BATCH at a time."""
        images: list[Any] = []
        for first in range(0, len(prompts), MAX_BATCH - 1):
            part = slice(first, first + MAX_BATCH - 1)
            all_prompts, all_seeds = [task.style_image.prompt, *prompts[part]], [task.seed, *seeds[part]]
            alone = [(task.content, task.weights[0])]
            with (
                base.on_device(),
                applied(base.model, alone, not base.offload),
                style_aligned(base, len(all_prompts), trajectory),
            ):
                images += generate(base, all_prompts, seed=all_seeds, batch_size=len(all_prompts))[1:]
        return images

    return FusionResult(draw, None)


@contextlib.contextmanager
def style_aligned(
    base: Base,
    images: int,
    trajectory: Mapping[float, Tensor] | None = None,
    shift: float = SHIFT,
    share_norm: bool = True,
    scale: float = 1.0,
) -> Iterator[None]:
    """Context manager: every self-attention of the UNet also attends to the batch's first image.

    Processors are restored and hooks removed afterwards. Sharing LayerNorm as well, as the authors' code may, changes
    nothing, because its statistics are each token's own; so it is left out.

    Args:    images: b, with the reference.
             trajectory: `invert_image`'s, which the first image then follows; None: it is sampled as well.
             shift, share_norm: SHIFT and True transfer the style of a given image; the authors sample sets of images
             from prompts alone with 0 and False.
             scale: of the reference's keys for the other images; the authors take 0.5, and shift 0, where the model
             knows the reference so well that it would be copied.
    Raises:  ValueError: not SDXL; q, k and v fused in one layer; within, a batch of another size.
    """
    check_family("style-aligned", FAMILIES, base)
    unet: Any = base.model
    before = dict(unet.attn_processors)
    fused = [name for name, module in unet.named_modules() if getattr(module, "fused_projections", False)]
    if fused:
        raise ValueError(f"{fused[0]}: q, k and v are fused in one layer: call unfuse_qkv_projections() first")
    handles = [unet.register_forward_pre_hook(_trajectory_hook(images, trajectory or {}), with_kwargs=True)]
    try:
        if share_norm:
            for norm in (module for module in unet.modules() if isinstance(module, nn.GroupNorm)):
                handles.append(norm.register_forward_pre_hook(_append_reference_hook(images)))
                handles.append(norm.register_forward_hook(_drop_reference))
        shared = {
            x: SharedAttentionProcessor(images, shift, scale) if "attn1." in x else processor
            for x, processor in before.items()
        }
        unet.set_attn_processor(shared)
        yield
    finally:
        unet.set_attn_processor(before)
        for handle in handles:
            handle.remove()


class SharedAttentionProcessor:
    """An attention processor: softmax([q k^T / sqrt(d) | scale q k_ref^T / sqrt(d) + shift]) [v; v_ref], after AdaIN of
    q and k. The reference looks at its own copy unscaled."""

    def __init__(self, images: int, shift: float, scale: float = 1.0) -> None:
        self.images, self.shift, self.scale = images, shift, scale

    def __call__(self, attn: Any, hidden_states: Tensor, *_arguments: Any, **_named: Any) -> Tensor:
        """Self-attention that shares the reference image's keys and values, (rows, n, width) -> (rows, n, width)."""
        rows, n, _ = hidden_states.shape
        query, key, value = (layer(hidden_states) for layer in (attn.to_q, attn.to_k, attn.to_v))
        query, key = (adain(x, reference_rows(x, self.images)) for x in (query, key))
        of_reference = reference_rows(key, self.images)
        others = torch.arange(rows, device=key.device) % self.images > 0
        of_reference = torch.where(others[:, None, None], self.scale * of_reference, of_reference)
        key = torch.cat([key, of_reference], 1)
        value = torch.cat([value, reference_rows(value, self.images)], 1)
        query, key, value = (x.unflatten(2, (attn.heads, -1)).transpose(1, 2) for x in (query, key, value))
        mask = query.new_zeros(2 * n)
        mask[n:] = self.shift
        prediction = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask.expand(rows, 1, n, 2 * n)
        )
        return attn.to_out[1](attn.to_out[0](prediction.transpose(1, 2).flatten(2)))


def reference_rows(x: Tensor, images: int) -> Tensor:
    """Each row's reference: the first row of its half.  x (b or 2 b, ...) -> the same shape."""
    return x.unflatten(0, (-1, images))[:, :1].expand(-1, images, *x.shape[1:]).flatten(0, 1)


def adain(x: Tensor, of: Tensor) -> Tensor:
    """StyleAligned's AdaIN: (x - mean) / sqrt(var + 1e-5) sqrt(var_of + 1e-5) + mean_of, by channel over tokens (b, n,
    c), unbiased."""
    (mean, spread), (other_mean, other) = (
        (y.mean(1, keepdim=True), (y.var(1, keepdim=True) + 1e-5).sqrt()) for y in (x, of)
    )
    return (x - mean) / spread * other + other_mean


def invert_image(
    base: Base, training_image: TrainingImage, guidance: float = INVERSION_GUIDANCE, repeats: int = 1
) -> dict[float, Tensor]:
    """DDIM inversion (arXiv 2010.02502) of StyleAligned's reference image at the base's own steps, without adapters.

    A step of the sampler from time t' down to t is x = a / a' (x' - s' n) + s n, with the noise n asked at (x', t'), or
    x = (a a' + s s') x' - (a s' - s a') v where the base answers v; it is solved for x'. `repeats` 1 asks at x in place
    of x', as usual; more ask again at the x' just found. With v, a' may be 0: a base of zero terminal SNR is inverted
    to pure noise.

    Returns: {t: (1, c, h, w)}, each as the model reads it at t: of variance-preserving noise, as diffusers' Euler
             scales its latents too.
    """
    base_scheduler = base.pipe.scheduler
    scheduler, device = copy.deepcopy(base_scheduler), base.device
    scheduler.set_timesteps(base.defaults.sample_steps)
    example = encode_training_examples(
        base, [load_image(training_image.image, base.defaults.resolution)], [training_image.prompt]
    )
    side = base.defaults.resolution
    nothing = base.encode_prompt([""], SizeConditioning.uncropped(side, side)).to(device)
    if base.pipe.config.force_zeros_for_empty_prompt:  # what SDXL's pipeline takes for no prompt
        zeros = {name: x if name == "time_ids" else torch.zeros_like(x) for name, x in nothing.tensors.items()}
        nothing = type(nothing)(zeros)
    prompt_condition = example.condition.to(device)
    squared = alphas_cumprod(base_scheduler.config).double()
    kind = base_scheduler.config.get("prediction_type", "epsilon")

    def guided(x: Tensor, time: Tensor) -> Tensor:
        """The prediction of the reference image under guidance, in its inversion."""
        model_inputs = (base.model, x, time[None].to(device))
        with torch.no_grad(), base.on_device():
            predictions = [
                base.family.predict(*model_inputs, condition).float() for condition in (nothing, prompt_condition)
            ]
        return predictions[0] + guidance * (predictions[1] - predictions[0])

    x, a, s = example.latents.to(device), 1.0, 0.0
    trajectory = {}
    for time in scheduler.timesteps.flip(0):
        share = float(squared[int(time.round())])
        noisier_a, noisier_s = share**0.5, (1 - share) ** 0.5
        found = x
        for _ in range(repeats):
            prediction = guided(found, time)
            if kind == "v_prediction":
                found = (x + (a * noisier_s - s * noisier_a) * prediction) / (a * noisier_a + s * noisier_s)
            else:
                found = noisier_a / a * (x - s * prediction) + noisier_s * prediction
        x, a, s = found, noisier_a, noisier_s
        trajectory[float(time)] = x
    return trajectory


def _trajectory_hook(images: int, trajectory: Mapping[float, Tensor]) -> Any:
    """A forward hook that checks the batch size and sets StyleAligned's reference image to the inverted trajectory's
    latents."""

    def hook(_unet: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Put StyleAligned's reference latents at this timestep into the batch."""
        latents, time = arguments[:2]
        if len(latents) not in (images, 2 * images):
            raise ValueError(
                f"StyleAligned was set up for {images} images, and the model's batch has {len(latents)} rows"
            )
        if trajectory:
            if float(time) not in trajectory:
                known = f"{len(trajectory)} steps from {max(trajectory):g} to {min(trajectory):g}"
                raise ValueError(f"the inverted image has {known}, and the model is called at {float(time):g}")
            latents = latents.clone()
            latents[::images] = trajectory[float(time)].to(latents)
        return (latents, *arguments[1:]), named

    return hook


def _append_reference_hook(images: int) -> Any:
    """StyleAligned's shared normalisation: a forward hook that concatenates the reference to each image (rows, c, h,
    ...) before a GroupNorm."""

    def hook(_norm: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        (x,) = arguments
        return (torch.cat([x, reference_rows(x, images)], 2),)

    return hook


def _drop_reference(_norm: nn.Module, _arguments: Any, x: Tensor) -> Tensor:
    """The image's own half of a GroupNorm's output."""
    return x[:, :, : x.shape[2] // 2]
