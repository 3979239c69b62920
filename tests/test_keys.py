"""Every spelling of a layer in a LoRA file, back to one name."""

import pytest

from qrlora.keys import WRITTEN, natural, parse, spell

LAYER = "down_blocks.1.attentions.0.transformer_blocks.10.attn1.to_q"
LAYERS = [
    LAYER,
    "up_blocks.0.attentions.2.transformer_blocks.0.attn2.to_out.0",
    "mid_block.attentions.0.transformer_blocks.3.ff.net.0.proj",
    "mid_block.attentions.0.transformer_blocks.3.ff.net.2",
    "up_blocks.1.attentions.1.proj_in",
]


@pytest.mark.parametrize("style", WRITTEN)
@pytest.mark.parametrize("layer", LAYERS)
def test_what_is_spelt_is_read_back(style, layer):
    for kind in "AB":
        assert parse(spell(style, "unet", layer, kind))[:3] == ("unet", (layer,), kind)


def test_the_spellings_are_those_of_the_tools():
    flat = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_10_attn1_to_q"
    assert spell("kohya", "unet", LAYER, "A") == f"{flat}.lora_down.weight"
    assert spell("kohya", "unet", LAYER, "B") == f"{flat}.lora_up.weight"
    assert spell("diffusers", "transformer", "transformer_blocks.0.attn.to_add_out", "A") == (
        "transformer.transformer_blocks.0.attn.to_add_out.lora_A.weight"
    )


@pytest.mark.parametrize(("part", "layer"), [("transformer", LAYER), ("unet", "my_block.to_q"), ("unet", "conv_in")])
def test_a_layer_that_kohya_names_would_change_is_refused(part, layer):
    with pytest.raises(ValueError, match="use diffusers names"):
        spell("kohya", part, layer, "A")


@pytest.mark.parametrize(
    ("key", "part", "layer", "kind"),
    [
        (f"unet.{LAYER}.lora.down.weight", "unet", LAYER, "A"),
        (f"unet.{LAYER}.lora.up.weight", "unet", LAYER, "B"),
        (f"{LAYER}.lora_B.weight", "unet", LAYER, "B"),
        (f"base_model.model.{LAYER}.lora_A.weight", "unet", LAYER, "A"),
        (f"base_model.model.{LAYER}.lora_A.default.weight", "unet", LAYER, "A"),
        (f"unet.{LAYER.replace('.to_q', '.processor.to_q')}_lora.down.weight", "unet", LAYER, "A"),
        ("unet.mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_out_lora.up.weight",)
        + ("unet", "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0", "B"),
        ("transformer_blocks.3.attn.to_q.lora_A.weight", "transformer", "transformer_blocks.3.attn.to_q", "A"),
        (
            "single_transformer_blocks.3.attn.to_q.alpha",
            "transformer",
            "single_transformer_blocks.3.attn.to_q",
            "alpha",
        ),
    ],
)
def test_other_tools_spellings_are_read(key, part, layer, kind):
    assert parse(key)[:3] == (part, (layer,), kind)


@pytest.mark.parametrize(
    ("original", "diffusers"),
    [
        ("input_blocks_4_1", "down_blocks.1.attentions.0"),
        ("input_blocks_5_1", "down_blocks.1.attentions.1"),
        ("input_blocks_8_1", "down_blocks.2.attentions.1"),
        ("middle_block_1", "mid_block.attentions.0"),
        ("output_blocks_0_1", "up_blocks.0.attentions.0"),
        ("output_blocks_5_1", "up_blocks.1.attentions.2"),
    ],
)
def test_the_original_block_names_of_sdxl_are_translated(original, diffusers):
    key = f"lora_unet_{original}_transformer_blocks_0_attn1_to_out_0.lora_down.weight"
    assert parse(key)[:3] == ("unet", (f"{diffusers}.transformer_blocks.0.attn1.to_out.0",), "A")


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("lora_te1_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight", "text encoder"),
        ("text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight", "text encoder"),
        ("lora_unet_down_blocks_1_attentions_0_proj_in.hada_w1_a", "plain LoRA files"),
        ("lora_unet_mid_block_attentions_0_proj_in.dora_scale", "plain LoRA files"),
        ("model.diffusion_model.input_blocks.0.0.weight", "plain LoRA files"),
        (
            "lora_unet_input_blocks_4_0_emb_layers_1.lora_down.weight",
            "outside the UNet's blocks and SDXL's transformers",
        ),
        ("lora_unet_output_blocks_2_1_proj_in.lora_down.weight", "outside the UNet's blocks and SDXL's transformers"),
    ],
)
def test_what_is_no_plain_lora_of_a_backbone_is_refused_by_name(key, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse(key)
    assert str(caught.value).startswith(key)


def test_block_ten_comes_after_block_two():
    assert sorted(["b.10.x", "b.2.x", "a.11"], key=natural) == ["a.11", "b.2.x", "b.10.x"]
