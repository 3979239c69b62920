"""An SDXL pipeline as one file in the names of the original release, the way checkpoints are shared.

Written from the layout of `sd_xl_base_1.0.safetensors`: the UNet's blocks are numbered through, the first text encoder
keeps transformers' names, the second has OpenCLIP's with fused q, k, v.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors.torch import save_file

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
VAE = (
    (r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2"),
    (r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample"),
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0", "mid.attn_1"),
    (r"conv_shortcut", "nin_shortcut"),
    (r"conv_norm_out", "norm_out"),
    (r"group_norm", "norm"),
    (r"attn_1\.to_([qkv])", r"attn_1.\1"),
    (r"to_out\.0", "proj_out"),
)


def unet_name(name: str, layers: int, levels: int) -> str:
    """The original name of a diffusers UNet parameter."""
    stem, _, ending = name.rpartition(".")
    if stem in UNET:
        return f"{UNET[stem]}.{ending}"
    block, rest = re.match(r"(down_blocks\.\d+|mid_block|up_blocks\.\d+)\.(.*)", name).groups()
    kind, index, inner = re.match(r"(\w+)\.(\d+)\.(.*)", rest).groups()
    k = int(index)
    if kind == "resnets":
        first, _, tail = inner.partition(".")
        inner = f"{RESNET[first]}.{tail}"
    if block == "mid_block":
        return f"middle_block.{2 * k if kind == 'resnets' else 1}.{inner}"
    level = int(block.rpartition(".")[2])
    if block.startswith("down"):
        number = 1 + level * (layers + 1) + (layers if kind == "downsamplers" else k)
        place = {"resnets": f"0.{inner}", "attentions": f"1.{inner}", "downsamplers": f"0.op.{inner[5:]}"}[kind]
        return f"input_blocks.{number}.{place}"
    number = level * (layers + 1) + (layers if kind == "upsamplers" else k)
    after_attention = 2 if level < levels - 1 else 1
    place = {"resnets": f"0.{inner}", "attentions": f"1.{inner}", "upsamplers": f"{after_attention}.{inner}"}[kind]
    return f"output_blocks.{number}.{place}"


def vae_name(name: str, levels: int) -> str:
    """The original name of a diffusers VAE parameter; the decoder's levels count from the other end."""

    def level(match: re.Match) -> str:
        kind = {"resnets": f"block.{match[3]}", "upsamplers": "upsample"}[match[2]]
        return f"up.{levels - 1 - int(match[1])}.{kind}"

    name = re.sub(r"up_blocks\.(\d+)\.(resnets|upsamplers)\.(\d+)", level, name)
    for pattern, replacement in VAE:
        name = re.sub(pattern, replacement, name)
    return name


def open_clip(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A CLIPTextModelWithProjection in OpenCLIP's names."""
    state = {name.removeprefix("text_model."): x for name, x in state.items()}
    result = {
        "positional_embedding": state.pop("embeddings.position_embedding.weight"),
        "token_embedding.weight": state.pop("embeddings.token_embedding.weight"),
        "ln_final.weight": state.pop("final_layer_norm.weight"),
        "ln_final.bias": state.pop("final_layer_norm.bias"),
        "text_projection": state.pop("text_projection.weight").T,
    }
    for name in list(state):
        layer = re.match(r"encoder\.layers\.(\d+)\.self_attn\.q_proj\.(weight|bias)", name)
        if layer:
            fused = [state.pop(name.replace("q_proj", f"{x}_proj")) for x in "qkv"]
            result[f"transformer.resblocks.{layer[1]}.attn.in_proj_{layer[2]}"] = torch.cat(fused)
    for name, x in state.items():
        for old, new in (
            ("encoder.layers", "transformer.resblocks"),
            ("layer_norm1", "ln_1"),
            ("layer_norm2", "ln_2"),
            ("fc1", "c_fc"),
            ("fc2", "c_proj"),
            ("self_attn", "attn"),
        ):
            name = name.replace(old, new)
        result[name] = x
    return result


def write(pipe, path: Path) -> None:
    """One .safetensors with everything of a pipeline but configs and tokenizers."""
    layers, levels = pipe.unet.config.layers_per_block, len(pipe.unet.config.block_out_channels)
    tensors = {
        f"model.diffusion_model.{unet_name(name, layers, levels)}": x for name, x in pipe.unet.state_dict().items()
    }
    for name, x in pipe.vae.state_dict().items():
        # the original VAE's attention is made of 1 x 1 convolutions
        shaped = x[:, :, None, None] if "attentions" in name and x.ndim == 2 else x
        tensors[f"first_stage_model.{vae_name(name, len(pipe.vae.config.block_out_channels))}"] = shaped
    for name, x in pipe.text_encoder.state_dict().items():
        tensors[f"conditioner.embedders.0.transformer.text_model.{name.removeprefix('text_model.')}"] = x
    for name, x in open_clip(pipe.text_encoder_2.state_dict()).items():
        tensors[f"conditioner.embedders.1.model.{name}"] = x
    save_file({name: x.clone().contiguous() for name, x in tensors.items()}, path)
