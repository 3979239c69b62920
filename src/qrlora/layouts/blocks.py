"""Which block of a UNet or transformer a layer is in, by the layer's name."""


def block_of(layer: str) -> str:
    """The block that a layer is in: "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q" -> "down 1.0";
    elsewhere the first two parts."""
    parts = layer.split(".")
    if parts[0] in ("down_blocks", "up_blocks") and len(parts) > 3:
        return f"{parts[0].split('_')[0]} {parts[1]}.{parts[3]}"
    return "mid" if parts[0] == "mid_block" else ".".join(parts[:2])
