"""Every spelling of a layer in a LoRA file, back to one name."""

import pytest

from qrlora.layouts import LAYOUTS
from qrlora.lora_keys import factor_of, natural

SDXL, SD3, FLUX = (LAYOUTS[name] for name in ("sdxl", "sd3", "flux"))
LAYER = "down_blocks.1.attentions.0.transformer_blocks.10.attn1.to_q"
LAYERS = [
    LAYER,
    "up_blocks.0.attentions.2.transformer_blocks.0.attn2.to_out.0",
    "mid_block.attentions.0.transformer_blocks.3.ff.net.0.proj",
    "mid_block.attentions.0.transformer_blocks.3.ff.net.2",
    "up_blocks.1.attentions.1.proj_in",
    "down_blocks.0.resnets.1.time_emb_proj",
    "add_embedding.linear_1",
]


def meant(layout, key):
    """(layers, kind) of a key."""
    factor = factor_of(key)
    named = layout.read(factor.name)
    return (named.layers if named else None), factor.kind


@pytest.mark.parametrize("family", LAYOUTS)
def test_every_layer_of_every_backbone_is_read_back_from_every_name_that_we_write(family):
    layout = LAYOUTS[family]
    layers = {x.lstrip("~").replace("#", "7") for layers in layout.names.values() for x in layers.split()}
    for style in layout.written:
        for layer in layers:
            name, together = layout.spell(style, layer)
            named = layout.read(name)
            assert (
                named.layers == together
                and layer in together
                and (named.spelling == layout.written[style] or layout.has_one_name(layer))
                or (layer in layout.always_original and named.layers == (layer,))
            )


def test_the_spellings_are_those_of_the_tools():
    flat = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_10_attn1_to_q"
    assert SDXL.spell("kohya", LAYER) == (flat, (LAYER,))
    assert SDXL.spell("sgm", LAYER) == ("lora_unet_input_blocks_4_1_transformer_blocks_10_attn1_to_q", (LAYER,))
    assert SD3.spell("diffusers", "transformer_blocks.0.attn.to_add_out") == (
        "transformer.transformer_blocks.0.attn.to_add_out",
        ("transformer_blocks.0.attn.to_add_out",),
    )


@pytest.mark.parametrize(("layout", "layer"), [(FLUX, LAYER), (SDXL, "my_block.to_q"), (SD3, "transformer_blocks.0")])
def test_a_layer_that_kohya_has_no_name_for_is_not_spelt(layout, layer):
    assert layout.spell("kohya", layer) is None


@pytest.mark.parametrize(
    ("layout", "key", "layer", "kind"),
    [
        (SDXL, f"unet.{LAYER}.lora.down.weight", LAYER, "A"),
        (SDXL, f"unet.{LAYER}.lora.up.weight", LAYER, "B"),
        (SDXL, f"{LAYER}.lora_B.weight", LAYER, "B"),
        (SDXL, f"unet.unet.{LAYER}.lora_A.weight", LAYER, "A"),
        (SDXL, f"base_model.model.{LAYER}.lora_A.weight", LAYER, "A"),
        (SDXL, f"base_model.model.{LAYER}.lora_A.default.weight", LAYER, "A"),
        (SDXL, f"lora_transformer_{LAYER.replace('.', '_')}.alpha", LAYER, "alpha"),
        (SDXL, f"unet.{LAYER.replace('.to_q', '.processor.to_q')}_lora.down.weight", LAYER, "A"),
        (SDXL, "unet.mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_out_lora.up.weight")
        + ("mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0", "B"),
        (SD3, "transformer_blocks.3.attn.to_q.lora_A.weight", "transformer_blocks.3.attn.to_q", "A"),
        (FLUX, "lora_transformer_single_transformer_blocks_3_attn_to_q.alpha")
        + ("single_transformer_blocks.3.attn.to_q", "alpha"),
        (SD3, "lora_unet_joint_blocks_23_context_block_adaLN_modulation_1.lora_down.weight")
        + ("transformer_blocks.23.norm1_context.linear", "A"),
    ],
)
def test_other_tools_spellings_are_read(layout, key, layer, kind):
    assert meant(layout, key) == ((layer,), kind)


@pytest.mark.parametrize(
    ("original", "diffusers"),
    [
        ("input_blocks_4_1_transformer_blocks_0_attn1_to_out_0", "down_blocks.1.attentions.0.{}"),
        ("input_blocks_5_1_transformer_blocks_0_attn1_to_out_0", "down_blocks.1.attentions.1.{}"),
        ("input_blocks_8_1_transformer_blocks_0_attn1_to_out_0", "down_blocks.2.attentions.1.{}"),
        ("middle_block_1_transformer_blocks_0_attn1_to_out_0", "mid_block.attentions.0.{}"),
        ("output_blocks_0_1_transformer_blocks_0_attn1_to_out_0", "up_blocks.0.attentions.0.{}"),
        ("output_blocks_5_1_transformer_blocks_0_attn1_to_out_0", "up_blocks.1.attentions.2.{}"),
        ("input_blocks_4_1_proj_in", "down_blocks.1.attentions.0.proj_in"),
        ("input_blocks_4_0_emb_layers_1", "down_blocks.1.resnets.0.time_emb_proj"),
        ("input_blocks_3_0_op", "down_blocks.0.downsamplers.0.conv"),
        ("output_blocks_2_2_conv", "up_blocks.0.upsamplers.0.conv"),
        ("output_blocks_8_0_skip_connection", "up_blocks.2.resnets.2.conv_shortcut"),
        ("label_emb_0_2", "add_embedding.linear_2"),
    ],
)
def test_the_original_names_of_sdxl_are_translated(original, diffusers):
    layer = diffusers.format("transformer_blocks.0.attn1.to_out.0")
    assert meant(SDXL, f"lora_unet_{original}.lora_down.weight") == ((layer,), "A")


@pytest.mark.parametrize(
    "name",
    [
        "lora_unet_input_blocks_10_1_proj_in",  # no UNet has a transformer there
        "lora_unet_output_blocks_12_0_emb_layers_1",  # Stable Diffusion 1.5 has twelve output blocks, SDXL nine
        "lora_unet_input_blocks_1_1_transformer_blocks_1_attn1_to_q",  # one block in each of 1.5's transformers
        "lora_unet_layers_0_attention_qk",
        "lora_unet_down_blocks_1_attentions_0",
        "lora_unet_double_blocks_#_img_attn_qkv",
        "",
    ],
)
def test_a_name_that_is_nearly_one_of_a_backbone_is_none(name):
    assert not any(layout.read(name) for layout in LAYOUTS.values())


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("lora_te1_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight", "text encoder"),
        ("text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight", "text encoder"),
        ("lora_unet_down_blocks_1_attentions_0_proj_in.hada_w1_a", "LoHa's; qrlora reads plain LoRA files"),
        ("lycoris_down_blocks_1_attentions_0_proj_in.lokr_w1", "LoKr's; qrlora reads plain LoRA files"),
        ("lora_unet_mid_block_attentions_0_proj_in.dora_scale", "DoRA's; qrlora reads plain LoRA files"),
        ("model.diffusion_model.input_blocks.0.0.weight", "plain LoRA files"),
        ("unet:12:down", "numbers the layers instead of naming them"),
    ],
)
def test_what_is_no_plain_lora_of_a_backbone_is_refused_by_name(key, message):
    with pytest.raises(ValueError, match=message) as caught:
        factor_of(key)
    assert str(caught.value).startswith(key)


def test_block_ten_comes_after_block_two():
    assert sorted(["b.10.x", "b.2.x", "a.11"], key=natural) == ["a.11", "b.2.x", "b.10.x"]
