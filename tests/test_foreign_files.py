"""Files of other tools at full depth: read right, kept as they are, or refused for the reason that is true."""

import json
import re

import diffusers
import pytest
import torch
from torch import nn

import foreign_files
from foreign_files import energy, listed, small, tensors
from qrlora.compat import TOOLS, CheckedFile, key_verdicts, tool_notes
from qrlora.families.public_configs import PUBLIC
from qrlora.files import load, save
from qrlora.layouts import LAYOUTS
from qrlora.merging import merge
from qrlora.safetensors_files import read_safetensors, write_safetensors

PAIRS = ".lora_A.weight .lora_B.weight"
KOHYA = ".lora_down.weight .lora_up.weight .alpha"
TEXT = {f"lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_{x}.weight": torch.ones(2, 2) for x in ("down", "up")}
FLUX = {"ss_base_model_version": "flux1"}


def described(part, alpha):
    return {"lora_adapter_metadata": json.dumps({f"{part}.r": 2, f"{part}.lora_alpha": alpha})}


def doubled(name):
    return f"unet.{name}"


def processor(name):
    return re.sub(r"\.(to_[qkv]|to_out)(\.0)?$", r".processor.\1", name)


def flat(name):
    return f"lora_unet_{name.removeprefix('unet.').replace('.', '_')}"


def bare(name):
    return name.partition(".")[2]


def dotted(name):
    """A name of kohya's FLUX.1 as trainers for ComfyUI write it."""
    name = re.sub(r"lora_unet_(\w+_blocks)_(\d+)_", r"diffusion_model.\1.\2.", name)
    return re.sub(r"(img|txt)_(attn|mlp|mod)_", r"\1_\2.", name).replace("modulation_lin", "modulation.lin")


KLEIN = "flux2-klein-base-4b"
READ = {  # (list, how it is made from it, metadata, model whose layers they must be, scale alpha / rank or None for 1)
    "sd-scripts SDXL": ("kohya-sdxl", {}, {}, "sdxl", 0.5),
    "sd-scripts SDXL, sdxl_base_v1-0": ("kohya-sdxl", {}, {"ss_base_model_version": "sdxl_base_v1-0"}, "sdxl", 0.5),
    "sd-scripts SDXL with convolutions": ("kohya-sdxl-locon", {}, {}, "sdxl", 0.5),
    "sd-scripts FLUX.1": ("kohya-flux", {}, FLUX, "flux-dev", 0.5),
    "sd-scripts FLUX.1 without metadata": ("kohya-flux", {}, {}, "flux-dev", 0.5),
    "sd-scripts FLUX.1 with modulation and in_dims": ("kohya-flux-in-dims", {}, FLUX, "flux-dev", 0.5),
    "sd-scripts SD3-medium with modulation": ("kohya-sd3-medium", {}, {}, "sd3-medium", 0.5),
    "sd-scripts SD3.5-medium": ("kohya-sd3.5-medium", {}, {}, "sd3.5-medium", 0.5),
    "sd-scripts SD3.5-large": ("kohya-sd3.5-large", {}, {}, "sd3.5-large", 0.5),
    "diffusers SDXL script": ("diffusers-sdxl", {}, {}, "sdxl", None),
    "diffusers SDXL as PEFT spells it": ("diffusers-sdxl", {"endings": PAIRS}, {}, "sdxl", None),
    "diffusers SDXL, attention processors of old": (
        ("diffusers-sdxl", {"endings": "_lora.down.weight _lora.up.weight", "rename": processor}, {}, "sdxl", None)
    ),
    "diffusers SDXL, unet. twice": ("diffusers-sdxl", {"rename": doubled}, {}, "sdxl", None),
    "diffusers SDXL, bare": ("diffusers-sdxl", {"rename": bare, "endings": PAIRS}, {}, "sdxl", None),
    "diffusers SD 1.5": ("diffusers-sd15", {}, {}, "sd15", None),
    "sd-scripts SD 1.5": ("kohya-sd15", {}, {"ss_base_model_version": "sd_v1"}, "sd15", 0.5),
    "sd-scripts SD 1.5 without metadata": ("kohya-sd15", {}, {}, "sd15", 0.5),
    "sd-scripts SD 1.5 with convolutions": ("kohya-sd15-locon", {}, {}, "sd15", 0.5),
    "sd-scripts SD 2.1": ("kohya-sd21", {}, {"ss_base_model_version": "sd_v2_v"}, "sd21", 0.5),
    "diffusers SD3-medium": ("diffusers-sd3-medium", {"unit": 1}, {}, "sd3-medium", None),
    "diffusers SD3.5-large": ("diffusers-sd3-large", {"unit": 1}, {}, "sd3.5-large", None),
    "diffusers FLUX.1": ("diffusers-flux", {}, {}, "flux-dev", None),
    "diffusers FLUX.1, alpha in metadata": ("diffusers-flux", {}, described("transformer", 1), "flux-dev", 0.5),
    "diffusers names with kohya's endings and alpha": ("diffusers-flux", {"endings": KOHYA}, {}, "flux-dev", 0.5),
    "a FLUX.1 of blocks with two streams alone": ("diffusers-flux", {"only": "transformer.transformer_", "unit": 1}, {})
    + ("flux-dev", None),
    "ai-toolkit SDXL": ("ai-toolkit-sdxl", {}, {"ss_base_model_version": "sdxl_1.0"}, "sdxl", 0.5),
    "ai-toolkit FLUX.1": ("ai-toolkit-flux", {}, {"ss_base_model_version": "flux.1"}, "flux-dev", None),
    "OneTrainer SDXL": ("onetrainer-sdxl-legacy", {}, {"ss_base_model_version": "sdxl_"}, "sdxl", 0.5),
    "OneTrainer FLUX.1": ("onetrainer-flux-legacy", {}, {}, "flux-dev", 0.5),
    "OneTrainer SD3": ("onetrainer-sd3-medium-legacy", {}, {}, "sd3-medium", 0.5),
    "SimpleTuner's LyCORIS SDXL": ("lycoris-sdxl-lora", {}, {}, "sdxl", 0.5),
    "SimpleTuner's LyCORIS FLUX.1": ("lycoris-flux-lora", {}, {}, "flux-dev", 0.5),
    "diffusers Qwen-Image": ("diffusers-qwen-image", {"unit": 1}, {}, "qwen-image", None),
    "musubi Qwen-Image": ("musubi-qwen-image", {}, {"ss_base_model_version": "qwen_image"}, "qwen-image", 0.5),
    "musubi Qwen-Image without metadata": ("musubi-qwen-image", {}, {}, "qwen-image", 0.5),
    "ai-toolkit Qwen-Image": (
        ("diffusers-qwen-image", {"rename": lambda x: f"diffusion_model.{bare(x)}", "unit": 1}, {}, "qwen-image", None)
    ),
    "musubi Z-Image": ("musubi-z-image", {}, {"ss_base_model_version": "z_image"}, "z-image", 0.5),
    "musubi Z-Image without metadata": ("musubi-z-image", {}, {}, "z-image", 0.5),
    "diffusers Z-Image": ("diffusers-z-image", {}, {}, "z-image", None),
    "ai-toolkit Z-Image": (
        "diffusers-z-image",
        {"rename": lambda x: f"diffusion_model.{bare(x)}"},
        {},
        "z-image",
        None,
    ),
    "musubi FLUX.2 klein": ("musubi-flux2-klein-4b", {}, {"ss_base_model_version": "flux_2_klein_4b"}, KLEIN, 0.5),
    "musubi FLUX.2 klein without metadata": ("musubi-flux2-klein-4b", {}, {}, KLEIN, 0.5),
    "diffusers FLUX.2 klein": ("diffusers-flux2-klein", {}, {}, KLEIN, None),
    "ai-toolkit FLUX.2 klein": ("musubi-flux2-klein-4b", {"rename": dotted, "endings": PAIRS}, {}, KLEIN, None),
    "musubi Krea 2": ("musubi-krea2", {}, {"ss_base_model_version": "krea2"}, "krea2-raw", 0.5),
    "musubi Krea 2 without metadata": ("musubi-krea2", {}, {}, "krea2-raw", 0.5),
    "diffusers Krea 2": ("diffusers-krea2", {}, {}, "krea2-raw", None),
    "diffusers Wan": ("diffusers-wan", {}, {}, "wan2.1-1.3b", None),
    "musubi Wan": ("musubi-wan", {}, {"ss_base_model_version": "wan"}, "wan2.1-1.3b", 0.5),
    "musubi Wan without metadata": ("musubi-wan", {}, {}, "wan2.1-1.3b", 0.5),
    "original FLUX.1 names with dots": ("kohya-flux", {"rename": dotted, "endings": PAIRS}, {}, "flux-dev", None),
}
KEPT = {
    "musubi Qwen-Image-Edit": ("musubi-qwen-image", {}, {"ss_base_model_version": "qwen_image_edit"}),
    "Lumina 2": ("diffusers-z-image", {}, {"modelspec.architecture": "lumina2/lora"}),
    "sd-scripts Chroma": ("kohya-flux", {}, {"ss_base_model_version": "chroma"}),
    "sd-scripts Chroma, by ModelSpec": ("kohya-flux", {}, {**FLUX, "modelspec.architecture": "chroma/lora"}),
    "bare names of a model of one's own": ("diffusers-wan", {"rename": lambda x: bare(x).replace("blocks", "b")}, {}),
}
ONE = "lora_unet_middle_block_1_proj_in"
REFUSED = {
    "sd-scripts with text encoders": ({**TEXT}, "2 of 2168 keys: adapts a text encoder"),
    "sd-scripts DoRA": ({f"{ONE}.dora_scale": torch.ones(1, 2)}, "a DoRA's"),
    "LyCORIS LoCon in three": ({f"{ONE}.lora_mid.weight": torch.ones(2, 2, 3, 3)}, "taken apart in three"),
    "LyCORIS full": ({f"{ONE}.diff": torch.ones(2, 2)}, "a full difference's"),
    "LyCORIS norms": ({"lora_unet_out_0.w_norm": torch.ones(2)}, "a norm layer's"),
    "OneTrainer with embeddings": ({"bundle_emb.my_token.text_encoder.weight": torch.ones(2, 2)}, "an embedding's"),
    "XLabs FLUX.1": (
        {"double_blocks.0.processor.qkv_lora1.down.weight": torch.ones(2, 2)},
        "1 of 2167 keys: unknown",
    ),
}


@pytest.fixture(scope="module")
def layers_of():
    """(model) -> {layer: (o, i), i times the kernel}, of the real class at full size."""
    found = {}

    def of(model):
        if model not in found:
            config = dict(PUBLIC[model].model_config)
            with torch.device("meta"):
                named = getattr(diffusers, config.pop("_class_name"))(**config).named_modules()
            found[model] = {k: tuple(x.weight.shape) for k, x in named if isinstance(x, nn.Linear | nn.Conv2d)}
        return found[model]

    return of


def family_of(model):
    return next(x.family for x in LAYOUTS.values() if model in x.variants)


def written(tmp_path, made, metadata):
    write_safetensors(tmp_path / "x.safetensors", made, metadata)
    return tmp_path / "x.safetensors"


@pytest.mark.parametrize("case", READ)
def test_a_file_is_read_into_the_real_models_layers_at_its_strength(layers_of, tmp_path, case):
    name, how, metadata, model, scale = READ[case]
    made, unit = tensors(name, **how), how.get("unit", foreign_files.UNIT)
    adapter = load(written(tmp_path, made, metadata))
    real = layers_of(model)
    for layer, (o, i) in adapter.shapes.items():
        outputs, inputs, *kernel = real[layer]
        assert (o, i) == (small(outputs, unit), small(inputs, unit) * int(torch.tensor(kernel).prod())), layer
        assert adapter.header.kernels.get(layer, []) == kernel
    assert adapter.header.family == family_of(model) and adapter.header.method == "lora"
    found = sum(pair.squared_norm for pair in adapter.layers.values())
    assert found == pytest.approx(energy(made, None if scale is None else 2 * scale), rel=1e-4)
    if "original" not in case and name.startswith(("diffusers", "ai-toolkit", "onetrainer", "lycoris")):
        assert len(adapter.layers) == sum(x.startswith(how.get("only", "")) for x in listed(name)[1])


@pytest.mark.parametrize("case", ["sd-scripts SDXL", "sd-scripts SDXL with convolutions"])
def test_sdxls_layers_are_those_that_diffusers_own_conversion_finds(tmp_path, case):
    """All 722, and LoCon's, layer by layer: the library's map of the original names against ours."""
    from diffusers.loaders.lora_conversion_utils import _maybe_map_sgm_blocks_to_diffusers

    class Config:
        layers_per_block = 2

    name = READ[case][0]
    made = tensors(name)
    theirs = _maybe_map_sgm_blocks_to_diffusers({**made}, Config())
    adapter = load(written(tmp_path, made, {}))
    by_flat = {layer.replace(".", "_"): pair for layer, pair in adapter.layers.items()}
    compared = 0
    for key, A in theirs.items():
        layer = key.removeprefix("lora_unet_").removesuffix(".lora_down.weight")
        for word, ours in {"input_b": "down_b", "output_b": "up_b", "middle_b": "mid_b"}.items():
            layer = layer.replace(word, ours)
        if key.endswith("lora_down.weight") and ("attentions" in layer or "resnets" in layer):
            layer = layer.replace("emb_layers_1", "time_emb_proj").replace("in_layers_2", "conv1")
            layer = layer.replace("out_layers_3", "conv2").replace("skip_connection", "conv_shortcut")
            assert torch.equal(by_flat[layer].A, A.float().flatten(1)), key
            compared += 1
    assert compared >= 722 - 4


@pytest.mark.parametrize("case", KEPT)
def test_a_file_of_an_unknown_model_is_read_merged_and_written_back_unchanged(tmp_path, case):
    name, how, metadata = KEPT[case]
    made = tensors(name, **how)
    adapter = load(written(tmp_path, made, metadata))
    assert adapter.header.family == "" and len(adapter.layers) == len(listed(name)[1])
    save(merge([adapter, adapter], [0.25, 0.75], "stack"), tmp_path / "merged.safetensors")
    back = read_safetensors(tmp_path / "merged.safetensors")[0]
    assert back.keys() == made.keys() and all(back[key].ndim == x.ndim for key, x in made.items())
    alpha = 1.0 if any(key.endswith(".alpha") for key in made) else None
    expected = energy(made, alpha)
    assert energy(back, None) == pytest.approx(expected, rel=1e-4)
    assert sum(p.squared_norm for p in load(tmp_path / "merged.safetensors").layers.values()) == pytest.approx(
        expected, rel=1e-4
    )
    with pytest.raises(ValueError, match="of a model that qrlora has no names for"):
        save(adapter, tmp_path / "never.safetensors", keys="kohya")


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_more_than_a_lora_of_the_backbone_is_refused_by_name(tmp_path, case):
    added, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        load(written(tmp_path, {**tensors("kohya-sdxl", unit=320), **added}, {}))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lycoris-sd-loha", "a LoHa's"),
        ("lycoris-sd-lokr", "a LoKr's"),
        ("cloneofsimo-sd15", "numbers the layers instead of naming them"),
    ],
)
def test_other_kinds_of_files_are_refused_by_their_kind(tmp_path, name, message):
    head, rows = listed(name)
    made = {layer + ending: torch.ones(2, 2) for layer in rows for ending in head["endings"].split()}
    with pytest.raises(ValueError, match=f"of {len(made)} keys: .*{message}"):
        load(written(tmp_path, made, {}))


def test_a_peft_file_alone_keeps_its_strength_elsewhere(tmp_path):
    made = tensors("diffusers-sdxl", endings=PAIRS, rename=lambda x: x.replace("unet.", "base_model.model."))
    path = written(tmp_path, made, {})
    with pytest.raises(ValueError, match="keeps its strength in .*adapter_config.json, which is missing"):
        load(path)
    path.with_name("adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 1}', "utf-8")
    adapter = load(path)
    assert (adapter.header.family, len(adapter.layers)) == ("sdxl", 560)
    assert sum(p.squared_norm for p in adapter.layers.values()) == pytest.approx(energy(made, 1.0), rel=1e-4)


def test_names_that_several_models_have_stay_paths_of_no_family(tmp_path):
    """Qwen-Image's attention has the names of SD3's; 60 blocks, 3072 wide, are neither's nor FLUX.1's."""
    made = tensors("diffusers-qwen-image")
    adapter = load(written(tmp_path, made, {}))
    assert (adapter.header.family, adapter.header.component, len(adapter.layers)) == ("", "transformer", 240)
    save(adapter, tmp_path / "back.safetensors")
    assert read_safetensors(tmp_path / "back.safetensors")[0].keys() == made.keys()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_lora_whose_a_has_orthonormal_rows_is_qr_and_adds(tmp_path, dtype):
    """What QR-LoRA inside another trainer leaves: no free LoRA has such rows."""
    made = tensors("kohya-sdxl", alpha=2.0)
    for key, A in made.items():
        if key.endswith("lora_down.weight"):
            made[key] = torch.linalg.qr(torch.randn(A.shape[1], 2, generator=torch.Generator().manual_seed(1)))[0].T.to(
                dtype
            )
    adapter = load(written(tmp_path, {key: x.contiguous() for key, x in made.items()}, {}))
    assert adapter.header.method == "qr"
    assert merge([adapter, adapter], [0.5, 0.5], "sum").rank == 2


def test_an_sdxl_file_without_metadata_is_written_in_the_names_that_comfyui_takes(tmp_path):
    """Where unet. names would lose all attention layers; sgm names are those that sdxl_merge_lora.py knows."""
    known = listed("comfyui-reads-sdxl")[1]
    adapter = load(written(tmp_path, tensors("kohya-sdxl-locon"), {}))
    for keys in (None, "sgm"):
        save(adapter, tmp_path / "out.safetensors", keys=keys)
        back = read_safetensors(tmp_path / "out.safetensors")[0]
        assert {key.rpartition(".lora_")[0] for key in back} <= known.keys() and len(back) == 2 * 788
    assert {key.rpartition(".lora_")[0] for key in back} == listed("kohya-sdxl-locon")[1].keys()


COMFYUI = {
    "sd15": "sd15",
    "sdxl": "sdxl",
    "sd3-medium": "sd3-medium",
    "sd3.5-medium": "sd3.5-medium",
    "flux-dev": "flux",
    "qwen-image": "qwen-image",
    "z-image": "z-image",
    KLEIN: "flux2-klein",
    "krea2-raw": "krea2",
    "wan2.1-1.3b": "wan",
}
"""Public model -> the list of names that ComfyUI's own key map takes for it."""
FORGE = {model: COMFYUI[model] for model in ("sd15", "sdxl", "sd3-medium", "sd3.5-medium", "flux-dev")}
"""The same of Forge, which has no others."""
A1111 = {"sd15": "sd15", "sd21": "sd15", "sdxl": "sdxl", "sd3-medium": "sd3-medium"}
"""The same of A1111."""
MAPS = [(tool, *row) for tool, of in (("comfyui", COMFYUI), ("forge", FORGE), ("a1111", A1111)) for row in of.items()]


@pytest.mark.parametrize(
    ("tool", "case", "names"),
    [(tool, case, names) for tool, model, names in MAPS for case, row in READ.items() if row[3] == model],
)
def test_what_check_says_of_a_tool_is_what_its_own_key_map_takes(tool, case, names):
    name, how, metadata, _, _ = READ[case]
    known = listed(f"{tool}-reads-{names}")[1]
    file = CheckedFile(tensors(name, **how), metadata)
    taken = {key: meaning.factor.name in known for key, meaning in file.keys.items()}
    if tool == "forge" and sum(not x for x in taken.values()) > 12:  # load_lora_for_models: another model's
        taken = dict.fromkeys(taken, False)
    if tool == "a1111" and names == "sd3-medium" and any(key.count(".") < 2 for key in taken):  # key.rsplit(".", 2)
        taken = dict.fromkeys(taken, False)
    for verdict in key_verdicts(file, tool):
        assert bool(verdict.factor) == taken[verdict.key], verdict


@pytest.mark.parametrize(("names", "layers"), [("sd15", (282, 282)), ("sdxl", (791, 794)), ("sd3-medium", (96, 245))])
def test_check_says_that_a1111_loads_every_name_that_its_key_map_takes(names, layers):
    layout = LAYOUTS[names.partition("-")[0]]
    metadata = {"ss_base_model_version": layout.variants[names].base_version}
    found = []
    for kind in ("diffusers}", "original}"):
        made = {}
        for name in listed(f"a1111-reads-{names}")[1]:
            named = layout.read(name)
            if named.spelling.endswith(kind):
                made[f"{name}.lora_A.weight"] = torch.ones(2, 2)
                made[f"{name}.lora_B.weight"] = torch.ones(2 * len(named.layers), 2)
        found.append(len(made) // 2)
        assert {x.factor for x in key_verdicts(CheckedFile(made, metadata), "a1111")} == {1}
    assert tuple(found) == layers


A1111_SAYS = {  # what its loader did with a pair of such a name
    "diffusion_model.": ("diffusion_model.out.2.lora_{}.weight", "AB", "finds no pair for it and fails"),
    "endings of diffusers' script": ("lora_unet_conv_out.lora.{}.weight", ("down", "up"), "after such names and fails"),
    "an adapter's name": ("lora_unet_conv_out.lora_{}.default.weight", "AB", "after such names and fails"),
    "add_embedding": ("lora_unet_add_embedding_linear_1.lora_{}.weight", "AB", "by its original name alone"),
    "the first upsampler": ("lora_unet_up_blocks_0_upsamplers_0_conv.lora_{}.weight", "AB", "original name alone"),
    "a q alone": ("transformer.transformer_blocks.0.attn.to_q.lora_{}.weight", "AB", "together or not at all"),
    "SD3.5-medium": ("lora_unet_joint_blocks_0_x_block_attn2_proj.lora_{}.weight", "AB", "it has sd3-medium alone"),
    "SD3.5-large": ("lora_unet_joint_blocks_30_x_block_attn_proj.lora_{}.weight", "AB", "it has sd3-medium alone"),
    "SD3, script's endings": ("lora_unet_joint_blocks_0_x_block_attn_proj.lora.{}.weight", ("down", "up"), "no pair"),
}


@pytest.mark.parametrize("case", A1111_SAYS)
def test_check_gives_the_reason_for_which_a1111_passes_over_a_pair(case):
    name, kinds, reason = A1111_SAYS[case]
    pair = dict(zip(kinds, (torch.ones(2, 8), torch.ones(8, 2)), strict=True))
    made = {name.format(kind): tensor for kind, tensor in pair.items()}
    family = "medium" if "joint_blocks" in name or name.startswith("transformer.") else "sdxl_base_v1-0"
    beside = {"sdxl_base_v1-0": "lora_unet_label_emb_0_2", "medium": "lora_unet_x_embedder_proj"}[family]
    other = {f"{beside}.lora_{x}.weight": torch.ones(2, 2) for x in "AB"}
    file = CheckedFile({**made, **other}, {"ss_base_model_version": family})
    verdicts = {x.key: x for x in key_verdicts(file, "a1111")}
    assert all(verdicts[key].factor == 0 and reason in verdicts[key].reason for key in made), verdicts
    assert {verdicts[key].factor for key in other} == {0 if "fails" in reason else 1}


def test_a1111_passes_over_alpha_of_sd3s_dotted_names_and_fails_at_that_of_flat_ones():
    """It splits keys at their last two dots; that of a flat name has one."""
    metadata = {"ss_base_model_version": "medium"}
    name = "transformer.transformer_blocks.0.attn.to_out.0"
    pair = {f"{name}.lora_A.weight": torch.ones(2, 8), f"{name}.lora_B.weight": torch.ones(8, 2)}
    file = CheckedFile({**pair, f"{name}.alpha": torch.tensor(1.0)}, metadata)
    assert {x.factor for x in key_verdicts(file, "a1111")} == {2}
    text = {"lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha": torch.tensor(1.0)}
    verdicts = key_verdicts(CheckedFile({**pair, **text}, metadata), "a1111")
    assert all(x.factor == 0 and "fewer than two dots" in x.reason for x in verdicts)


@pytest.mark.parametrize(
    ("layer", "begins"),
    [
        ("lora_unet_down_blocks_0_resnets_0_time_emb_proj", {"lora_te_", "lora_te1_"}),
        ("lora_unet_label_emb_0_0", {"lora_te1_", "lora_te2_"}),
        ("lora_unet_joint_blocks_0_x_block_attn_proj", set()),
        ("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k of 768", {"lora_te_", "lora_te1_"}),
        ("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k of 1024", {"lora_te_"}),
        ("lora_unet_down_blocks_0_resnets_0_time_emb_proj sd_v2_v", {"lora_te_"}),
    ],
)
def test_a1111_finds_the_text_encoders_that_its_model_has(layer, begins):
    names = ("lora_te_", "lora_te1_", "lora_te2_", "lora_te3_")
    text = [f"{x}text_model_encoder_layers_0_mlp_fc1.lora_down.weight" for x in names]
    layer, _, more = layer.partition(" ")
    inputs = int(more.removeprefix("of ")) if more.startswith("of ") else 2
    made = {f"{layer}.lora_A.weight": torch.ones(2, inputs), f"{layer}.lora_B.weight": torch.ones(2, 2)}
    made |= dict.fromkeys(text, torch.ones(2, 2))
    meta = {"ss_base_model_version": more or "sd_v1"} if "time_emb" in layer else {}
    found = {x.key for x in key_verdicts(CheckedFile(made, meta), "a1111") if x.factor}
    assert {x.partition("text_model")[0] for x in found if "text_model" in x} == begins


@pytest.mark.parametrize(
    "name",
    [
        "kohya-sdxl",
        "kohya-sdxl-locon",
        "kohya-sd15",
        "kohya-sd15-locon",
        "kohya-sd21",
        "kohya-flux",
        "kohya-sd3-medium",
        "kohya-sd3.5-large",
        "musubi-qwen-image",
        "musubi-z-image",
        "musubi-flux2-klein-4b",
        "musubi-krea2",
        "musubi-wan",
    ],
)
def test_kohyas_own_files_are_loaded_whole_by_kohya(name):
    file = CheckedFile(tensors(name), {})
    assert {verdict.state for verdict in key_verdicts(file, "kohya")} == {"loaded"} and not tool_notes(file, "kohya")


@pytest.mark.parametrize("case", KEPT)
def test_nobody_judges_a_file_of_an_unknown_model(case):
    name, how, metadata = KEPT[case]
    file = CheckedFile(tensors(name, unit=512, **how), metadata)
    for tool in TOOLS:
        assert {(verdict.state, verdict.factor) for verdict in key_verdicts(file, tool)} == {("not judged", None)}


def test_names_that_kohyas_merging_script_does_not_know_are_noted():
    """sdxl_merge_lora.py looks modules up by their names in sd-scripts' own UNet, where the trainers translate."""
    file = CheckedFile(tensors("diffusers-sdxl", endings=KOHYA, rename=flat), {})
    (note,) = tool_notes(file, "kohya")
    assert "sdxl_merge_lora.py" in note and "--keys sgm" in note
    assert not listed("kohya-sdxl")[1].keys() & {flat(x) for x in listed("diffusers-sdxl")[1]}
