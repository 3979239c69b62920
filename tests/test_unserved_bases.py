"""Bases that are not served, of each kind: refused in one line that says which are."""

import json
import shutil

import pytest
import torch

import checkpoint
import pico
from commands import run
from qrlora.families import FAMILIES
from qrlora.families.base_without_weights import blank_base
from qrlora.layouts import LAYOUTS
from test_families import refused

PIPELINES = {  # served family -> classes of diffusers whose bases need an image, a mask, a control network or more
    "flux": "FluxFillPipeline FluxControlPipeline FluxControlImg2ImgPipeline FluxControlInpaintPipeline "
    "FluxControlNetPipeline FluxPriorReduxPipeline",
    "flux2": "Flux2KleinKVPipeline",
    "qwen_image": "QwenImageEditPipeline QwenImageEditPlusPipeline QwenImageEditInpaintPipeline "
    "QwenImageLayeredPipeline QwenImageControlNetPipeline QwenImageControlNetInpaintPipeline",
    "sd15": "StableDiffusionInpaintPipeline StableDiffusionControlNetPipeline StableDiffusionUpscalePipeline "
    "StableDiffusionInstructPix2PixPipeline StableDiffusionDepth2ImgPipeline",
    "sd3": "StableDiffusion3ControlNetPipeline StableDiffusion3ControlNetInpaintingPipeline",
    "sdxl": "StableDiffusionXLControlNetPipeline StableDiffusionXLInstructPix2PixPipeline "
    "StableDiffusionXLAdapterPipeline",
    "wan": "WanImageToVideoPipeline WanVACEPipeline WanAnimatePipeline",
    "z_image": "ZImageOmniPipeline ZImageControlNetPipeline ZImageControlNetInpaintPipeline",
}
NO_KIN = (
    "PixArtAlphaPipeline PixArtSigmaPipeline ChromaPipeline SanaPipeline KolorsPipeline HiDreamImagePipeline "
    "Lumina2Pipeline AuraFlowPipeline HunyuanDiTPipeline Ideogram4Pipeline StableCascadeCombinedPipeline LTXPipeline"
).split()


def hubs(family):
    return [variant.hub for variant in LAYOUTS[family].variants.values()]


@pytest.mark.parametrize(("family", "kind"), [(f, kind) for f, kinds in PIPELINES.items() for kind in kinds.split()])
def test_a_pipeline_of_more_than_words_is_refused_with_the_models_of_its_kind(tmp_path, family, kind, capsys):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": kind}))
    refused(tmp_path, ValueError, f"is a {kind}, which is not supported; supported: .*{hubs(family)[0]}")
    with pytest.raises(ValueError, match=f"{kind}, which is not supported; .*as {family} are served"):
        blank_base(str(tmp_path))
    code, out, err = run(capsys, "estimate", tmp_path, "--run", "count")
    assert code == 2 and not out and err.count("\n") == 1 and hubs(family)[0] in err


@pytest.mark.parametrize("kind", NO_KIN)
def test_a_pipeline_of_another_kind_is_refused_with_all_that_are_served(tmp_path, kind):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": kind}))
    names = ".*".join(x.pipeline for x in FAMILIES.values())
    refused(tmp_path, ValueError, f"is a {kind}, which is not supported; supported: {names}")


@pytest.mark.parametrize("kind", ["AnimaModularPipeline", "Flux3ModularPipeline", "QwenImage21TurboModularPipeline"])
def test_modular_blocks_without_a_whole_pipeline_are_refused_by_name(tmp_path, kind):
    """As Anima's are: diffusers has no class that would say which components there are."""
    (tmp_path / "modular_model_index.json").write_text(json.dumps({"_class_name": kind}))
    refused(tmp_path, ValueError, f"is a {kind} of diffusers' modular blocks, .* no model_index.json.*FluxPipeline")


def test_a_hubs_repository_in_the_cache_is_refused_as_its_folder_is(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    place = tmp_path / "models--Qwen--Qwen-Image-Edit"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("a" * 40)
    (place / "snapshots" / ("a" * 40)).mkdir(parents=True)
    index = place / "snapshots" / ("a" * 40) / "model_index.json"
    index.write_text('{"_class_name": "QwenImageEditPipeline"}')
    refused("Qwen/Qwen-Image-Edit", ValueError, "QwenImageEditPipeline, which is not supported; .*Qwen/Qwen-Image, ")


INDEXES = {  # family, entries of model_index.json -> what is said
    "SDXL's refiner": (
        "sdxl",
        {"_class_name": "StableDiffusionXLImg2ImgPipeline", "text_encoder": [None, None], "tokenizer": [None, None]},
        "has no text_encoder, which every sdxl base needs",
    ),
    "Wan 2.2-A14B": (
        "wan",
        {"boundary_ratio": 0.875, "transformer_2": ["diffusers", "WanTransformer3DModel"]},
        "has boundary_ratio=0.875 in its model_index.json",
    ),
}
CONFIGS = {  # family, file, entries -> what is said
    "Qwen-Image-Edit-2511": ("qwen_image", "transformer", {"zero_cond_t": True}, "zero_cond_t=True"),
    "Qwen-Image-Layered": ("qwen_image", "transformer", {"use_layer3d_rope": True}, "use_layer3d_rope=True"),
    "its other time": ("qwen_image", "transformer", {"use_additional_t_cond": True}, "use_additional_t_cond=True"),
    "Wan 2.1-I2V": ("wan", "transformer", {"image_dim": 8, "added_kv_proj_dim": 24}, "image_dim=8"),
    "Z-Image-Omni": ("z_image", "transformer", {"siglip_feat_dim": 8}, "siglip_feat_dim=8"),
    "LCM": ("sdxl", "unet", {"time_cond_proj_dim": 8}, "time_cond_proj_dim=8"),
    "SD 2.1 unCLIP": ("sd15", "unet", {"class_embed_type": "timestep"}, "class_embed_type='timestep'"),
    "FLUX.1 Fill": ("flux", "transformer", {"in_channels": 96, "out_channels": 16}, "reads 24 channels"),
    "FLUX.1 Depth": ("flux", "transformer", {"in_channels": 32, "out_channels": 16}, "reads 8 channels"),
    "SDXL inpainting": ("sdxl", "unet", {"in_channels": 9}, "reads 9 channels"),
    "SD 1.5 inpainting": ("sd15", "unet", {"in_channels": 9}, "reads 9 channels"),
    "SD 2 depth": ("sd15", "unet", {"in_channels": 5}, "reads 5 channels"),
    "Wan 2.2-Fun": ("wan", "transformer", {"in_channels": 9, "out_channels": 4}, "reads 9 channels"),
}


@pytest.mark.parametrize(("family", "index", "said"), INDEXES.values(), ids=INDEXES)
def test_an_index_of_another_model_is_refused_with_those_that_are_served(tmp_path, family, index, said):
    shutil.copytree(pico.folder(family), tmp_path / "b")
    path = tmp_path / "b" / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **index}))
    refused(tmp_path / "b", ValueError, f"{said}: as {family} are served {hubs(family)[0]}")


@pytest.mark.parametrize(("family", "part", "config", "said"), CONFIGS.values(), ids=CONFIGS)
def test_a_model_that_reads_more_than_words_is_refused_with_those_that_are_served(tmp_path, family, part, config, said):
    """Its weights are there, of the shapes that its configuration says."""
    pipe = pico.BASES[family]()
    model = getattr(pipe, part)
    plain = {name: x for name, x in model.config.items() if not name.startswith("_")}
    pipe.register_modules(**{part: type(model).from_config({**plain, **config})})
    pipe.save_pretrained(tmp_path / "b")
    refused(tmp_path / "b", ValueError, f"{said}.*; as {family} are served {hubs(family)[0]}")
    with pytest.raises(ValueError, match=f"{said}.*; as {family} are served"):
        blank_base(str(tmp_path / "b"))


def zeros(*shape):
    return torch.zeros(shape)


FILES = {  # family, tensors of another shape or that no served model has -> what is said
    "SDXL inpainting": (
        "sdxl",
        {"model.diffusion_model.input_blocks.0.0.weight": zeros(8, 9, 3, 3)},
        "conv_in.weight must be",
    ),
    "SD 1.5 inpainting": (
        "sd15",
        {"model.diffusion_model.input_blocks.0.0.weight": zeros(8, 9, 3, 3)},
        "conv_in.weight must be",
    ),
    "Wan 2.1-I2V": ("wan", {"model.diffusion_model.img_emb.proj.1.weight": zeros(8, 8)}, "have no place in it"),
    "Wan 2.1-VACE": ("wan", {"model.diffusion_model.vace_blocks.0.ffn.0.weight": zeros(8, 8)}, "have no place in it"),
    "Z-Image-Omni": ("z_image", {"siglip_embedder.1.weight": zeros(8, 8)}, "have no place in it"),
    "Qwen-Image-Layered": (
        "qwen_image",
        {"time_text_embed.addition_t_embedding.weight": zeros(2, 16)},
        "no place in it",
    ),
}


@pytest.mark.parametrize(("family", "tensors", "said"), FILES.values(), ids=FILES)
def test_one_file_of_another_model_is_refused_with_those_that_are_served(tmp_path, family, tensors, said):
    """Beside the folder of a served one, whose configuration it would be read with."""
    pipe = pico.BASES[family]() if family != "sd15" else pico.sd15(layers=2)
    checkpoint.write({**getattr(checkpoint, family)(pipe), **tensors}, tmp_path / "model.safetensors")
    pipe.save_pretrained(tmp_path / "model")
    refused(tmp_path / "model.safetensors", ValueError, f"{said}.*; as {family} are served {hubs(family)[0]}")


UNKNOWN = {
    "Anima": ("llm_adapter.blocks.0.cross_attn.q_proj.weight", "blocks.0.self_attn.q_proj.weight"),
    "SDXL's refiner": ("conditioner.embedders.0.model.ln_final.weight", "model.diffusion_model.out.2.weight"),
    "Lumina 2": ("cap_embedder.1.weight", "layers.0.attention.qkv.weight"),
    "Chroma": ("distilled_guidance_layer.in_proj.weight", "double_blocks.0.img_attn.norm.key_norm.scale"),
    "a control network": ("controlnet_blocks.0.weight", "transformer_blocks.0.attn.to_q.weight"),
}


@pytest.mark.parametrize("names", UNKNOWN.values(), ids=UNKNOWN)
def test_one_file_of_no_known_kind_is_refused_with_the_kinds_that_are(tmp_path, names):
    checkpoint.write({name: torch.zeros(2) for name in names}, tmp_path / "x.safetensors")
    refused(tmp_path / "x.safetensors", ValueError, rf"of a known family \({', '.join(FAMILIES)}\)")
