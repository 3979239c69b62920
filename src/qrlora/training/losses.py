"""The denoising loss: the weighted squared error of a backbone's prediction, for training and for comparing prompts.

Letters: b noisy copies of images, c latent channels, h w latent size.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ..noising import Noising


def denoising_loss(
    predict: Callable[..., Tensor],
    model: nn.Module,
    noising: Noising,
    clean: Tensor,
    noise: Tensor,
    time: Tensor,
    condition: Any,
    loss_weights: Tensor | None = None,
) -> Tensor:
    """Mean over the batch of weight(time) |prediction - target|^2 / (c h w), in float32 whatever the base's dtype.

    With `loss_weights` each place of the latents counts so many times: of a mask they are m / mean(m), and the loss is
    sum(m |prediction - target|^2) / (c sum(m)).

    Args:    clean, noise (b, c, h, w); time (b,), best on the CPU, where the noising's tables are; condition of b rows.
             loss_weights: (b or 1, 1, h, w) of mean 1; None: ones.
    Returns: a scalar.
    """
    return denoising_losses(predict, model, noising, clean, noise, time, condition, loss_weights).mean()


def denoising_losses(
    predict: Callable[..., Tensor],
    model: nn.Module,
    noising: Noising,
    clean: Tensor,
    noise: Tensor,
    time: Tensor,
    condition: Any,
    loss_weights: Tensor | None = None,
) -> Tensor:
    """`denoising_loss` of each row of a batch, (b,) float32, which it is the mean of; the arguments are its own."""
    prediction = predict(
        model, noising.add_noise(clean, noise, time), time.to(clean.device, non_blocking=True), condition
    )
    squares = (prediction.float() - noising.target(clean, noise, time)).square()
    error = (squares if loss_weights is None else squares * loss_weights).flatten(1).mean(1)
    return noising.weighting(time).to(error.device, non_blocking=True) * error
