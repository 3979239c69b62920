"""Train the built-in bases' VAEs, which begin as TAEF2, a small autoencoder of FLUX.2's latents.

``python -m qrlora.world.vae_training tiny-sd3 --taef2 FOLDER`` trains one on the benchmark's images; FOLDER holds
``taef2_encoder.pth`` and ``taef2_decoder.pth`` of madebyollin/taesd (MIT).  diffusers' `AutoencoderTiny` lacks the
pooled branch of TAEF2's lowest level: a VAE is initialised with the convolutions that both have, and trained to the
images.  One with TAEF2's 32 channels is also distilled from it: trained to TAEF2's latents, each channel normalised to
mean 0 and variance 1 over the benchmark.  That of tiny-sdxl, with 8, is not.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from torch import Generator, Tensor, nn

from ..built_in_bases import folder_of
from .base_architectures import AUTOENCODERS
from .command_line import DEVICES, EXCERPT, at_least, available_device, positive, run_command
from .drawings import KNOWN_HANDS, check_full_sheets, contents_drawn_by, known_contents, load_drawings
from .model_folders import check_replaceable, open_vae, replaced_folder
from .random_styles import random_style
from .state_dicts import read_torch_file, shape_difference
from .styles import STYLES

IMAGES_PER_STYLE = 8
"""Images of a batch that share a style."""


class PooledBlock(nn.Module):
    """A residual block of TAEF2: three convolutions, after a pooled branch in the lowest level."""

    def __init__(self, pooled: bool) -> None:
        super().__init__()
        conv = [nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU()]
        self.conv = nn.Sequential(*conv, nn.Conv2d(64, 64, 3, padding=1))
        branch = nn.Conv2d(64, 256, 1, bias=False), nn.GroupNorm(4, 256), nn.ReLU(), nn.Conv2d(256, 64, 1, bias=False)
        self.pool = nn.Sequential(*branch) if pooled else None

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.pool is None else x + self.pool(x)
        return F.relu(self.conv(x) + x)


def taef2_encoder(folder: Path) -> nn.Module:
    """TAEF2's encoder: images (b, 3, h, w) in 0..1 -> latents (b, 32, h/8, w/8)."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, padding=1), PooledBlock(False)]
    for level in range(3):
        layers.append(nn.Conv2d(64, 64, 3, 2, 1, bias=False))
        layers += [PooledBlock(level == 2) for _ in range(3)]
    encoder = nn.Sequential(*layers, nn.Conv2d(64, 32, 3, padding=1))
    path = folder / "taef2_encoder.pth"
    weights = read_torch_file(path, "cpu", "state dict of TAEF2's encoder")
    if difference := shape_difference(encoder.state_dict(), weights):
        raise ValueError(f"{path} is not TAEF2's encoder: {difference}")
    encoder.load_state_dict(weights)
    return encoder.eval().requires_grad_(False)


def trained_vae(base: str, folder: Path) -> AutoencoderTiny:
    """A trained VAE, to train its decoder further. Raises: OSError, ValueError: there is none, or not of this shape."""
    vae = open_vae(folder)
    if difference := shape_difference(untrained_vae(base).state_dict(), vae.state_dict()):
        raise ValueError(f"{folder} is no VAE of {base}'s shape: {difference}")
    return vae


def untrained_vae(base: str) -> AutoencoderTiny:
    """The VAE of a built-in base before training, from torch's global generator."""
    plan = AUTOENCODERS[base]
    levels = len(plan.blocks)
    return AutoencoderTiny(
        encoder_block_out_channels=(64,) * levels,
        decoder_block_out_channels=(64,) * levels,
        latent_channels=plan.channels,
        num_encoder_blocks=plan.blocks,
        num_decoder_blocks=plan.blocks[::-1],
    )


def _layers_by_level(names: list[str]) -> list[list[str]]:
    """The layers of TAEF2's encoder or decoder, by its tensors' names: single convolutions and runs of blocks."""
    runs: list[list[str]] = []
    for prefix in dict.fromkeys(n.split(".conv.")[0] if ".conv." in n else n.rsplit(".", 1)[0] for n in names):
        block = any(n.startswith(f"{prefix}.conv.") for n in names)
        if block and runs and runs[-1][0].startswith("block:"):
            runs[-1].append(f"block:{prefix}")
        else:
            runs.append([f"block:{prefix}" if block else prefix])
    return runs


def copy_shared_convolutions(half: nn.Module, taef2: dict[str, Any], reverse: bool) -> int:
    """Copy TAEF2's convolutions of equal shape into a VAE's encoder or decoder, level by level.

    Args:    half: encoder or decoder.  taef2: TAEF2's state dict of it.  reverse: match levels from the end, for
             decoders.
    Returns: how many tensors were copied.
    """
    own = half.state_dict()
    theirs = {k: v for k, v in taef2.items() if ".pool." not in k and isinstance(v, Tensor)}
    copied = 0
    pairs = zip(*(_layers_by_level(list(s))[:: -1 if reverse else 1] for s in (own, theirs)), strict=False)
    for mine, other in pairs:
        for a, b in zip(mine, other, strict=False):
            a, b = a.removeprefix("block:"), b.removeprefix("block:")
            for name in own:
                source = theirs.get(b + name.removeprefix(a)) if name.startswith(f"{a}.") else None
                if source is not None and source.shape == own[name].shape:
                    own[name].copy_(source)
                    copied += 1
    return copied


def random_image_batches(batch: int, generator: Generator, device: str) -> Iterator[Tensor]:
    """Endless batches to train a VAE on, (b, 3, 128, 128) in 0..1: known contents by known hands, plain, in a known or
    a random style."""
    known = set(known_contents())
    tiles = torch.cat([load_drawings([n for n in contents_drawn_by(hand) if n in known], hand) for hand in KNOWN_HANDS])
    tiles = tiles.mul(255).round().byte().to(device)
    drawn = [random_style(generator, device) for _ in range(200)]
    while True:
        parts = []
        for _ in range(batch // IMAGES_PER_STYLE):
            x = tiles[torch.randint(len(tiles), (IMAGES_PER_STYLE,), generator=generator).to(device)].float() / 255
            kind, which = torch.rand(2, generator=generator).tolist()
            options = list(STYLES.values()) if kind < 0.5 else drawn
            parts.append(x if kind < 0.2 else options[int(which * len(options))](x).clamp(0, 1))
        yield torch.cat(parts)


def train_vae(
    base: str, folder: Path, taef2: Path, seconds: float, batch: int, device: str, seed: int = 0, decoder: str = ""
) -> None:
    """Train a base's VAE for so many seconds and write it to ``folder``.

    Args: decoder: folder of a trained VAE of which only the decoder is trained further: its latents do not change, so
          that bases trained on them stay valid.
    """
    torch.manual_seed(seed)
    generator = Generator().manual_seed(seed)
    vae: Any
    teacher: Any
    if decoder:
        vae, teacher = trained_vae(base, Path(decoder)), None
        vae.encoder.requires_grad_(False)
    else:
        vae, teacher = untrained_vae(base), taef2_encoder(taef2).to(device)
        copy_shared_convolutions(vae.encoder, teacher.state_dict(), reverse=False)
        path = taef2 / "taef2_decoder.pth"
        theirs = read_torch_file(path, "cpu", "state dict of TAEF2's decoder")
        if not copy_shared_convolutions(vae.decoder, theirs, reverse=True):
            raise ValueError(f"{path} is not TAEF2's decoder: it has no convolution of it; give --taef2 another folder")
    vae.to(device, memory_format=torch.channels_last).train()  # pyright: ignore[reportCallIssue]
    source = random_image_batches(batch, generator, device)
    taught = teacher is not None and AUTOENCODERS[base].channels == 32
    mean = deviation = torch.zeros(())
    if taught:
        with torch.no_grad():
            known = teacher(torch.cat([next(source) for _ in range(16)]))  # pyright: ignore[reportOptionalCall]
        mean, deviation = (f(known, dim=(0, 2, 3), keepdim=True) for f in (torch.mean, torch.std))
    average = {k: v.detach().clone() for k, v in vae.state_dict().items()}
    optimizer = torch.optim.AdamW(
        [p for p in vae.parameters() if p.requires_grad], lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0, fused=True
    )
    begun, step, share = time.monotonic(), 0, 0.0
    while share < 1:
        share = (time.monotonic() - begun) / seconds
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1, (step + 1) / 100) * max(0.0, min(1.0, (1 - share) / 0.6))
        x = next(source).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device, torch.bfloat16, enabled=device != "cpu"):
            z = vae.encoder(x * 2 - 1)
            spread = 0.05 if taught or decoder else 0.1
            y = (vae.decoder(z + spread * torch.randn_like(z)) + 1) / 2
            if decoder:
                anchor = torch.zeros((), device=device)
            elif taught:
                with torch.no_grad():
                    right = (teacher(x) - mean) / deviation  # pyright: ignore[reportOptionalCall]
                anchor = (1.0 if share < 0.3 else 0.05) * F.mse_loss(z.float(), right.float())
            else:
                anchor = 0.002 * z.float().square().mean() + 0.02 * (z.float().square().mean() - 1).square()
        error = y.float() - x
        edges = sum(error.diff(dim=d).abs().mean() for d in (-1, -2))
        loss = error.abs().mean() + 4 * error.square().mean() + 0.5 * edges + 0.1 * anchor
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        weight = 1 - min(0.998, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(average.values()), list(vae.state_dict().values()), weight)
        step += 1
        if step % 100 == 0:
            noise = -10 * error.square().mean().log10().item()
            print(
                f"{base} VAE: {step * batch} images, {share:.0%}, {noise:.1f} dB, anchor {anchor.item():.3f}",
                flush=True,
            )
    vae.load_state_dict(average)
    save_normalised_vae(vae.eval(), bool(decoder), torch.cat([next(source) for _ in range(16)]), folder)


@torch.no_grad()
def save_normalised_vae(vae: Any, scaled: bool, images: Tensor, folder: Path) -> None:
    """Write the VAE with a scaling factor that gives its latents variance 1. Args: scaled: it has one already."""
    z = torch.cat([vae.encode(p * 2 - 1).latents.float() for p in images.split(64)])
    y = torch.cat([vae.decode(batch).sample for batch in z.split(64)]) / 2 + 0.5
    error = (y.clamp(0, 1) - images).square().flatten(1).mean(1)
    print(
        f"round trip {-10 * error.log10().mean():.2f} dB, deviation {z.std():.3f}, mean {z.mean():.3f}, "
        f"channels' deviation {z.std((0, 2, 3)).min():.2f} to {z.std((0, 2, 3)).max():.2f}"
    )
    if not scaled:
        vae.register_to_config(scaling_factor=round(1 / float(z.std()), 5), shift_factor=0.0)
    nn.Module.to(vae, "cpu", torch.float16)  # pyright: ignore[reportCallIssue]
    with replaced_folder(folder) as new:
        vae.save_pretrained(new)


def command_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("base", choices=AUTOENCODERS)
    parser.add_argument("--taef2", type=Path, default=Path("."), help="folder of TAEF2's two state dicts")
    parser.add_argument("--output", type=Path, help="folder of the VAE; default: within the base's")
    parser.add_argument("--overwrite", action="store_true", help="replace a VAE that is in the output's folder")
    parser.add_argument("--decoder", default="", help="folder of a trained VAE: only its decoder is trained")
    parser.add_argument("--seconds", type=positive, default=7200, help="of training")
    parser.add_argument("--batch", type=at_least(IMAGES_PER_STYLE, multiple=IMAGES_PER_STYLE), default=64)
    parser.add_argument("--device", default="cpu", choices=DEVICES)
    parser.add_argument("--excerpt", action="store_true", help=EXCERPT)
    return parser


def check_and_train(options: argparse.Namespace) -> None:
    """What the command does: train a VAE once its output can be written and the drawings are all here."""
    output = options.output or folder_of(options.base) / "vae"
    check_replaceable(output, options.overwrite)
    if not options.excerpt:
        check_full_sheets(KNOWN_HANDS)
    device = available_device(options.device)
    train_vae(options.base, output, options.taef2, options.seconds, options.batch, device, decoder=options.decoder)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command that trains a built-in base's VAE."""
    run_command(check_and_train, command_parser(), arguments)


if __name__ == "__main__":
    main()
