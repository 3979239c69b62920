"""The built-in bases' VAE: an orthonormal projection of 4 x 4 pixel patches, written into a stock diffusers class.

``z = P^T (p - mean)`` with p the 48 numbers of a patch and P (48, 16) its leading principal directions over the
world's pictures; decoding is ``p = P z + mean``.  Nothing is trained.

``AutoencoderKLHunyuanImage`` can hold this map because its up- and downsampling is a convolution *plus* a fixed
rearrangement of pixels: a convolution of (wanted - fixed) makes the sum exactly what is wanted, and its residual
blocks are silenced by zeros.  What remains is GroupNorm and SiLU before the last convolution of either half.  Each
group of four channels holds (x, y, M, -M):

* GroupNorm: variance M^2/2 (1 + (x^2 + y^2)/M^2), so a division by a constant; the mean it takes off x and y it also
  takes off the two constants, whose sum gives it back;
* SiLU: at arguments as small as k = 2^-34 times the signal, silu(k x) / k = x / 2.

With M = 256 both are linear to about 1e-5 of the pixel range in float32.
"""

from typing import Any

import torch
from diffusers import AutoencoderKLHunyuanImage
from torch import Tensor, nn

PATCH, LATENT_CHANNELS = 4, 16
CHANNELS = (128, 32, 128)  # GroupNorm has 32 groups: four channels each where its result is read
M, K = 256.0, 2.0**-34


def patches(pixels: Tensor) -> Tensor:
    """(b, 3, h, w) -> (b, h/4, w/4, 48); a patch's numbers ordered as (row, column, colour)."""
    b, c, h, w = pixels.shape
    cut = pixels.reshape(b, c, h // PATCH, PATCH, w // PATCH, PATCH).permute(0, 2, 4, 3, 5, 1)
    return cut.reshape(b, h // PATCH, w // PATCH, PATCH * PATCH * c)


def principal_patches(pixels: Tensor) -> tuple[Tensor, Tensor, float]:
    """Mean (48,), directions P (48, 16) and the latents' standard deviation, of pixels (b, 3, h, w) in -1..1."""
    p = patches(pixels).flatten(0, 2).double()
    mean = p.mean(0)
    values, vectors = torch.linalg.eigh((p - mean).T @ (p - mean) / len(p))
    directions = vectors[:, -LATENT_CHANNELS:].flip(1)
    strongest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    scale = values[-LATENT_CHANNELS:].mean().sqrt()
    return mean.float(), (directions * strongest.sign()).float(), float(scale)


def patch_autoencoder(mean: Tensor, directions: Tensor, deviation: float) -> AutoencoderKLHunyuanImage:
    """The stock VAE that encodes and decodes by these directions; latents times ``scaling_factor`` have variance 1."""
    vae = AutoencoderKLHunyuanImage(
        in_channels=3,
        out_channels=3,
        latent_channels=LATENT_CHANNELS,
        block_out_channels=CHANNELS,
        layers_per_block=0,
        spatial_compression_ratio=PATCH,
        sample_size=64,
        scaling_factor=1 / deviation,
    )
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.zero_()
        _set_encoder(vae.encoder, mean, directions)
        _set_decoder(vae.decoder, mean, directions)
    return vae.eval().requires_grad_(False)


def _slots(count: int) -> Tensor:
    """Channels of ``count`` signals, two in each group of four: 0, 1, 4, 5, 8, 9 ..."""
    k = torch.arange(count)
    return k // 2 * 4 + k % 2


def _constants(bias: Tensor, count: int) -> None:
    """M and -M beside each pair of ``count`` signals."""
    bias[2 : 2 * count : 4], bias[3 : 2 * count : 4] = M, -M


def _set_last_convolution(norm: nn.GroupNorm, conv: nn.Conv2d, wanted: Tensor, slots: Tensor) -> None:
    """Make conv(silu(norm(x))) equal ``wanted`` (outputs, signals) times the signals in ``slots``."""
    norm.weight.fill_(K * M / 2**0.5)
    for weights, slot in zip(wanted.T, slots.tolist(), strict=True):
        group = slot // 4 * 4
        conv.weight[:, slot, 1, 1] += 2 / K * weights
        conv.weight[:, group + 2 : group + 4, 1, 1] -= 1 / K * weights[:, None]  # the mean that x lost


def _set_downsample(conv: nn.Conv2d, wanted: Tensor) -> None:
    """Each pixel of a 2 x 2 cell gives wanted (out / 4, in) @ x; its four results are stacked as (r, out / 4)."""
    shortcut = torch.eye(len(wanted)).repeat_interleave(wanted.shape[1] // len(wanted), 1)
    conv.weight[:, :, 1, 1] = wanted - shortcut / shortcut.sum(1, keepdim=True)


def _set_upsample(conv: nn.Conv2d, wanted: Tensor) -> None:
    """The pixel (row, column) of each new 2 x 2 cell becomes wanted (2, 2, out, in)[row, column] @ x."""
    wanted = wanted.flatten(0, 2)
    conv.weight[:, :, 1, 1] = wanted - torch.eye(wanted.shape[1]).repeat_interleave(len(wanted) // wanted.shape[1], 0)


def _set_encoder(encoder: Any, mean: Tensor, directions: Tensor) -> None:
    """Pixels -> 12 numbers of a 2 x 2 cell -> 48 of a 4 x 4 patch -> 16 latents."""
    first, second = encoder.down_blocks
    encoder.conv_in.weight[:3, :, 1, 1] = torch.eye(3)
    wanted = torch.zeros(CHANNELS[1] // 4, CHANNELS[0])
    wanted[:3, :3] = torch.eye(3)
    _set_downsample(first.conv, wanted)

    wanted = torch.zeros(CHANNELS[2] // 4, CHANNELS[1])
    cell = (torch.arange(4)[:, None] * CHANNELS[1] // 4 + torch.arange(3)).flatten()  # where the 12 numbers lie
    wanted[_slots(12), cell] = 1
    _set_downsample(second.conv, wanted)
    _constants(second.conv.bias, 12)

    slots = (torch.arange(4)[:, None] * CHANNELS[2] // 4 + _slots(12)).flatten()  # (cell of the patch, 12 numbers)
    by_cell = (
        directions.T.reshape(LATENT_CHANNELS, 2, 2, 2, 2, 3).permute(0, 1, 3, 2, 4, 5).reshape(LATENT_CHANNELS, 48)
    )
    wanted = torch.zeros(2 * LATENT_CHANNELS, 48)
    wanted[:LATENT_CHANNELS] = by_cell
    shortcut = torch.eye(2 * LATENT_CHANNELS).repeat_interleave(4, 1) / 4  # the head adds each four channels' mean
    _set_last_convolution(encoder.norm_out, encoder.conv_out, wanted - shortcut[:, slots], slots)
    encoder.conv_out.bias[:LATENT_CHANNELS] = -(directions.T @ mean)
    encoder.conv_out.bias[LATENT_CHANNELS:] = -30.0  # log variance: a latent without noise


def _set_decoder(decoder: Any, mean: Tensor, directions: Tensor) -> None:
    """16 latents -> the patch's 48 numbers -> 12 numbers of each 2 x 2 cell -> colours."""
    wanted = torch.zeros(CHANNELS[2], LATENT_CHANNELS)
    wanted[:48] = directions
    decoder.conv_in.weight[:, :, 1, 1] = wanted - torch.eye(LATENT_CHANNELS).repeat_interleave(8, 0)
    decoder.conv_in.bias[:48] = mean

    first, second = (block for block in decoder.up_blocks if hasattr(block, "repeats"))
    patch = torch.arange(48).reshape(2, 2, 2, 2, 3).permute(0, 2, 1, 3, 4).reshape(2, 2, 12)  # numbers of each cell
    wanted = torch.zeros(2, 2, CHANNELS[1], CHANNELS[2])
    wanted[:, :, :12] = torch.eye(CHANNELS[2])[patch]
    _set_upsample(first.conv, wanted)
    wanted = torch.zeros(2, 2, CHANNELS[0], CHANNELS[1])
    wanted[:, :, _slots(3)] = torch.eye(CHANNELS[1])[torch.arange(12).reshape(2, 2, 3)]
    _set_upsample(second.conv, wanted)
    bias = torch.zeros(CHANNELS[0])
    _constants(bias, 4)
    second.conv.bias.copy_(bias.repeat(4))
    _set_last_convolution(decoder.norm_out, decoder.conv_out, torch.eye(3), _slots(3))


def encode(pixels: Tensor, mean: Tensor, directions: Tensor, deviation: float) -> Tensor:
    """The same map as plain algebra, for whole data sets: (b, 3, h, w) in -1..1 -> scaled latents (b, 16, h/4, w/4)."""
    return ((patches(pixels) - mean) @ directions / deviation).permute(0, 3, 1, 2)


def decode(latents: Tensor, mean: Tensor, directions: Tensor, deviation: float) -> Tensor:
    p = (latents * deviation).permute(0, 2, 3, 1) @ directions.T + mean
    b, h, w, _ = p.shape
    cut = p.reshape(b, h, w, PATCH, PATCH, 3).permute(0, 5, 1, 3, 2, 4)
    return cut.reshape(b, 3, h * PATCH, w * PATCH)
