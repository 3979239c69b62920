"""A pipeline as one file in the names of the original release, the way checkpoints are shared.

SDXL, from the layout of `sd_xl_base_1.0.safetensors`: the UNet's blocks are numbered through, the first text encoder
keeps transformers' names, the second has OpenCLIP's with fused q, k, v. SD3, from that of
`sd3_medium_incl_clips_t5xxl.safetensors`: fused q, k, v, and the final layers' shift before scale. FLUX, the
transformer alone as in `flux1-dev.safetensors`: single blocks have q, k, v and the MLP's input in one tensor.
"""

from __future__ import annotations

import re
import types
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
SD3 = {
    "pos_embed.pos_embed": "pos_embed",
    "pos_embed.proj": "x_embedder.proj",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}
SD3_BLOCK = (  # in a joint block: its picture's half and its words' half
    (r"^attn2\.to_out\.0", "x_block.attn2.proj"),
    (r"^attn2\.norm_([qk])", r"x_block.attn2.ln_\1"),
    (r"^attn\.to_out\.0", "x_block.attn.proj"),
    (r"^attn\.to_add_out", "context_block.attn.proj"),
    (r"^attn\.norm_([qk])", r"x_block.attn.ln_\1"),
    (r"^attn\.norm_added_([qk])", r"context_block.attn.ln_\1"),
    (r"^norm1\.linear", "x_block.adaLN_modulation.1"),
    (r"^norm1_context\.linear", "context_block.adaLN_modulation.1"),
    (r"^ff\.net\.0\.proj", "x_block.mlp.fc1"),
    (r"^ff\.net\.2", "x_block.mlp.fc2"),
    (r"^ff_context\.net\.0\.proj", "context_block.mlp.fc1"),
    (r"^ff_context\.net\.2", "context_block.mlp.fc2"),
)
QKV, QKV_OF_WORDS = ("attn.to_q", "attn.to_k", "attn.to_v"), ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
SD3_FUSED = {
    "x_block.attn.qkv": QKV,
    "context_block.attn.qkv": QKV_OF_WORDS,
    "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
}
FLUX = {
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "context_embedder": "txt_in",
    "x_embedder": "img_in",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}
FLUX_DOUBLE = (
    (r"^attn\.to_out\.0", "img_attn.proj"),
    (r"^attn\.to_add_out", "txt_attn.proj"),
    (r"^attn\.norm_q\.weight", "img_attn.norm.query_norm.scale"),
    (r"^attn\.norm_k\.weight", "img_attn.norm.key_norm.scale"),
    (r"^attn\.norm_added_q\.weight", "txt_attn.norm.query_norm.scale"),
    (r"^attn\.norm_added_k\.weight", "txt_attn.norm.key_norm.scale"),
    (r"^norm1\.linear", "img_mod.lin"),
    (r"^norm1_context\.linear", "txt_mod.lin"),
    (r"^ff\.net\.0\.proj", "img_mlp.0"),
    (r"^ff\.net\.2", "img_mlp.2"),
    (r"^ff_context\.net\.0\.proj", "txt_mlp.0"),
    (r"^ff_context\.net\.2", "txt_mlp.2"),
)
FLUX_SINGLE = (
    (r"^attn\.norm_q\.weight", "norm.query_norm.scale"),
    (r"^attn\.norm_k\.weight", "norm.key_norm.scale"),
    (r"^norm\.linear", "modulation.lin"),
    (r"^proj_out", "linear2"),
)
BLOCKS = {  # diffusers' list of blocks -> its name in the release, the names in a block, what is one tensor there
    "sd3": {"transformer_blocks": ("joint_blocks", SD3_BLOCK, SD3_FUSED)},
    "flux": {
        "transformer_blocks": ("double_blocks", FLUX_DOUBLE, {"img_attn.qkv": QKV, "txt_attn.qkv": QKV_OF_WORDS}),
        "single_transformer_blocks": ("single_blocks", FLUX_SINGLE, {"linear1": (*QKV, "proj_mlp")}),
    },
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


def transformer(state: dict[str, torch.Tensor], family: str) -> dict[str, torch.Tensor]:
    """SD3's or FLUX's transformer in its original names."""
    state, result, plain = dict(state), {}, {"sd3": SD3, "flux": FLUX, "flux2": FLUX2}[family]
    swapped = ["norm_out.linear."]  # the release says shift, scale; diffusers scale, shift
    if family == "sd3":
        last = max(int(name.split(".")[1]) for name in state if name.startswith("transformer_blocks."))
        swapped.append(f"transformer_blocks.{last}.norm1_context.linear.")
    for name in list(state):
        if name.startswith(tuple(swapped)):
            state[name] = torch.cat(state[name].chunk(2)[::-1])
    for name in list(state):
        block = re.match(r"(\w+_blocks)\.(\d+)\.(.*)\.(\w+)$", name)
        if not block:
            stem = next((old for old in plain if name.startswith(old)), "")
            result[plain.get(stem, "") + name.removeprefix(stem)] = state[name]
            continue
        place, table, fused = (BLOCKS | {"flux2": FLUX2_BLOCKS})[family][block[1]]
        one = next((one for one, parts in fused.items() if block[3] in parts), None)
        inner = f"{block[3]}.{block[4]}"
        if one:
            parts = [state[f"{block[1]}.{block[2]}.{part}.{block[4]}"] for part in fused[one]]
            result[f"{place}.{block[2]}.{one}.{block[4]}"] = torch.cat(parts)
        else:
            inner = next(re.sub(old, new, inner) for old, new in table if re.search(old, inner))
            result[f"{place}.{block[2]}.{inner}"] = state[name]
    return result


def z_image(pipe) -> dict[str, torch.Tensor]:
    """The transformer alone, as in `z_image_turbo_bf16.safetensors`."""
    return original_z_image(pipe.transformer.state_dict())


def original_z_image(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Z-Image's transformer in its original names; `norm_final`, which nothing reads, is in the public files, too."""
    result = {"norm_final.weight": torch.ones(8)}
    for name, x in state.items():
        if ".attention.to_q." in name:
            x = torch.cat([state[name.replace("to_q", f"to_{k}")] for k in "qkv"])
        name = re.sub(r"all_(x_embedder|final_layer)\.2-1", r"\1", name).replace("attention.to_q", "attention.qkv")
        name = re.sub(r"attention\.norm_([qk])", r"attention.\1_norm", name).replace("to_out.0", "out")
        if ".attention.to_" not in name:
            result[name] = x
    return result


FLUX2_DOUBLE = (
    (r"^attn\.to_out\.0", "img_attn.proj"),
    (r"^attn\.to_add_out", "txt_attn.proj"),
    (r"^attn\.norm_q\.weight", "img_attn.norm.query_norm.scale"),
    (r"^attn\.norm_k\.weight", "img_attn.norm.key_norm.scale"),
    (r"^attn\.norm_added_q\.weight", "txt_attn.norm.query_norm.scale"),
    (r"^attn\.norm_added_k\.weight", "txt_attn.norm.key_norm.scale"),
    (r"^ff\.linear_in", "img_mlp.0"),
    (r"^ff\.linear_out", "img_mlp.2"),
    (r"^ff_context\.linear_in", "txt_mlp.0"),
    (r"^ff_context\.linear_out", "txt_mlp.2"),
)
FLUX2_SINGLE = (
    (r"^attn\.norm_q\.weight", "norm.query_norm.scale"),
    (r"^attn\.norm_k\.weight", "norm.key_norm.scale"),
    (r"^attn\.to_qkv_mlp_proj", "linear1"),
    (r"^attn\.to_out", "linear2"),
)
FLUX2 = {
    **{x.replace("time_text_embed", "time_guidance_embed"): y for x, y in FLUX.items() if ".text_embedder" not in x},
    "double_stream_modulation_img.linear": "double_stream_modulation_img.lin",
    "double_stream_modulation_txt.linear": "double_stream_modulation_txt.lin",
    "single_stream_modulation.linear": "single_stream_modulation.lin",
}


FLUX2_BLOCKS = {
    "transformer_blocks": ("double_blocks", FLUX2_DOUBLE, {"img_attn.qkv": QKV, "txt_attn.qkv": QKV_OF_WORDS}),
    "single_transformer_blocks": ("single_blocks", FLUX2_SINGLE, {}),
}


def flux2(pipe) -> dict[str, torch.Tensor]:
    """The transformer alone, as in `flux-2-klein-base-4b.safetensors`."""
    return transformer(pipe.transformer.state_dict(), "flux2")


def vae(model) -> dict[str, torch.Tensor]:
    """An AutoencoderKL in its original names; its attention is made of 1 x 1 convolutions there."""
    levels = len(model.config.block_out_channels)
    shaped = {n: x[:, :, None, None] if "attentions" in n and x.ndim == 2 else x for n, x in model.state_dict().items()}
    return {f"first_stage_model.{vae_name(name, levels)}": x for name, x in shaped.items()}


def unet(state: dict[str, torch.Tensor], config) -> dict[str, torch.Tensor]:
    """SDXL's or SD 1.5's UNet in its original names."""
    layers, levels = config.layers_per_block, len(config.block_out_channels)
    return {f"model.diffusion_model.{unet_name(name, layers, levels)}": x for name, x in state.items()}


def sdxl(pipe) -> dict[str, torch.Tensor]:
    """Everything of an SDXL pipeline but configs and tokenizers."""
    tensors = unet(pipe.unet.state_dict(), pipe.unet.config)
    for name, x in pipe.text_encoder.state_dict().items():
        tensors[f"conditioner.embedders.0.transformer.text_model.{name.removeprefix('text_model.')}"] = x
    for name, x in open_clip(pipe.text_encoder_2.state_dict()).items():
        tensors[f"conditioner.embedders.1.model.{name}"] = x
    return {**tensors, **vae(pipe.vae)}


def sd15(pipe) -> dict[str, torch.Tensor]:
    """Everything of an SD 1.5 pipeline but configs and tokenizers, as in `v1-5-pruned-emaonly.safetensors`."""
    tensors = unet(pipe.unet.state_dict(), pipe.unet.config)
    for name, x in pipe.text_encoder.state_dict().items():
        tensors[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = x
    return {**tensors, **vae(pipe.vae)}


def sd3(pipe) -> dict[str, torch.Tensor]:
    """Everything of an SD3 pipeline but configs and tokenizers; the first CLIP's projection is the identity."""
    tensors = {
        f"model.diffusion_model.{name}": x for name, x in transformer(pipe.transformer.state_dict(), "sd3").items()
    }
    encoders = {"clip_l": pipe.text_encoder, "clip_g": pipe.text_encoder_2, "t5xxl": pipe.text_encoder_3}
    for encoder, model in encoders.items():
        for name, x in model.state_dict().items():
            if (encoder, name) != ("clip_l", "text_projection.weight"):
                tensors[f"text_encoders.{encoder}.transformer.{name}"] = x
    return {**tensors, **vae(pipe.vae)}


def flux(pipe) -> dict[str, torch.Tensor]:
    """A FLUX pipeline's transformer, as it is mostly shared."""
    return transformer(pipe.transformer.state_dict(), "flux")


def qwen_image(pipe) -> dict[str, torch.Tensor]:
    """Qwen-Image's transformer, whose original names are diffusers', as ComfyUI's files have it."""
    return {f"model.diffusion_model.{name}": x for name, x in pipe.transformer.state_dict().items()}


KREA2_BLOCK = {
    "attn.to_q": "attn.wq",
    "attn.to_k": "attn.wk",
    "attn.to_v": "attn.wv",
    "attn.to_out.0": "attn.wo",
    "attn.to_gate": "attn.gate",
    "attn.norm_q.weight": "attn.qknorm.qnorm.scale",
    "attn.norm_k.weight": "attn.qknorm.knorm.scale",
    "norm1.weight": "prenorm.scale",
    "norm2.weight": "postnorm.scale",
    "scale_shift_table": "mod.lin",
    "ff.": "mlp.",
}
KREA2 = {
    "img_in": "first",
    "time_embed.linear_1": "tmlp.0",
    "time_embed.linear_2": "tmlp.2",
    "time_mod_proj": "tproj.1",
    "txt_in.norm.weight": "txtmlp.0.scale",
    "txt_in.linear_1": "txtmlp.1",
    "txt_in.linear_2": "txtmlp.3",
    "final_layer.linear": "last.linear",
    "final_layer.norm.weight": "last.norm.scale",
    "final_layer.scale_shift_table": "last.modulation.lin",
    "text_fusion": "txtfusion",
    "transformer_blocks": "blocks",
}


def krea2(pipe) -> dict[str, torch.Tensor]:
    """The transformer alone, as in `krea2_raw_bf16.safetensors`."""
    return original_krea2(pipe.transformer.state_dict())


def original_krea2(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Krea 2's transformer in its original names; the six vectors of a block's modulation are one."""
    result = {}
    for name, x in state.items():
        if name.startswith("transformer_blocks") and name.endswith("scale_shift_table"):
            x = x.flatten()
        for table in (KREA2_BLOCK if "blocks." in name else {}), KREA2:
            name = next((name.replace(old, new, 1) for old, new in table.items() if old in name), name)
        result[name] = x
    return result


WAN = {
    "condition_embedder.time_embedder.linear_1.": "time_embedding.0.",
    "condition_embedder.time_embedder.linear_2.": "time_embedding.2.",
    "condition_embedder.text_embedder.linear_1.": "text_embedding.0.",
    "condition_embedder.text_embedder.linear_2.": "text_embedding.2.",
    "condition_embedder.time_proj.": "time_projection.1.",
    "proj_out.": "head.head.",
    ".attn1.": ".self_attn.",
    ".attn2.": ".cross_attn.",
    ".to_q.": ".q.",
    ".to_k.": ".k.",
    ".to_v.": ".v.",
    ".to_out.0.": ".o.",
    ".ffn.net.0.proj.": ".ffn.0.",
    ".ffn.net.2.": ".ffn.2.",
    ".norm2.": ".norm3.",  # the one before cross-attention is the only one with weights
}


def original_wan(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Wan's transformer in its original names."""
    result = {}
    for name, x in state.items():
        for ours, theirs in WAN.items():
            name = name.replace(ours, theirs)
        result[re.sub(r"^scale_shift_table$", "head.modulation", name).replace("scale_shift_table", "modulation")] = x
    return result


def wan(pipe) -> dict[str, torch.Tensor]:
    """Wan's transformer alone, as ComfyUI's files have it."""
    return {f"model.diffusion_model.{name}": x for name, x in original_wan(pipe.transformer.state_dict()).items()}


def original_qwen_image_21(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Qwen-Image-2.1's transformer as ComfyUI's files have it: the gate of a block's feed-forward above its other half,
    in one."""
    gate, whole = ".img_mlp.gate_layer.weight", ".img_mlp.gate_up.weight"
    fused = {
        name.replace(gate, whole): torch.cat([x, state[name.replace("gate_layer", "proj")]])
        for name, x in state.items()
        if name.endswith(gate)
    }
    return {**{name: x for name, x in state.items() if ".gate_layer." not in name and ".proj." not in name}, **fused}


def qwen_image_21(pipe) -> dict[str, torch.Tensor]:
    """The transformer alone."""
    return original_qwen_image_21(pipe.transformer.state_dict())


def trainable_part(family: str, state: dict[str, torch.Tensor], config) -> dict[str, torch.Tensor]:
    """A UNet or transformer of a family in its original names."""
    ways = {
        "qwen_image": dict,
        "qwen_image_21": original_qwen_image_21,
        "z_image": original_z_image,
        "krea2": original_krea2,
        "wan": original_wan,
        "sdxl": lambda x: unet(x, config),
        "sd15": lambda x: unet(x, config),
    }
    return ways.get(family, lambda x: transformer(x, family))(state)


def flux_conversion(width: int):
    """diffusers' conversion of FLUX's transformer, in which the width of FLUX.1 is a constant, for another width."""
    from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers as real

    code = real.__code__
    assert 3072 in code.co_consts
    constants = tuple(width if x == 3072 else x for x in code.co_consts)
    return types.FunctionType(code.replace(co_consts=constants), real.__globals__, argdefs=real.__defaults__)


def write(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """One .safetensors; tensors that share memory are copied."""
    save_file({name: x.clone().contiguous() for name, x in tensors.items()}, path)
