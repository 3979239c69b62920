"""Names of the layers of a UNet of Stable Diffusion: those of its authors' code (sgm), and diffusers'."""

from collections.abc import Collection

RESNET = {
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
ATTENTION = (
    *("proj_in", "proj_out", "transformer_blocks.#.ff.net.0.proj", "transformer_blocks.#.ff.net.2"),
    *(f"transformer_blocks.#.attn{k}.to_{x}" for k in (1, 2) for x in ("q", "k", "v", "out.0")),
)
OUTSIDE = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.2": "conv_out",
}


def unet_names(levels: int, with_attention: Collection[int]) -> dict[str, str]:
    """{the authors' name: diffusers' name} of every linear layer and convolution of a UNet with two blocks a level.

    A level is three input blocks, the last of which halves the sides, and three output blocks.

    Args: with_attention: the levels that have transformers, from the top down.
    """
    names = dict(OUTSIDE)
    for level in range(levels):
        for k in range(2):
            names |= _block(f"input_blocks.{1 + 3 * level + k}", f"down_blocks.{level}", k, level in with_attention)
        if level < levels - 1:
            names[f"input_blocks.{3 + 3 * level}.0.op"] = f"down_blocks.{level}.downsamplers.0.conv"
    names |= _resnet("middle_block.0", "mid_block.resnets.0") | _resnet("middle_block.2", "mid_block.resnets.1")
    names |= _attention("middle_block.1", "mid_block.attentions.0")
    for step in range(levels):
        attends = levels - 1 - step in with_attention
        for k in range(3):
            names |= _block(f"output_blocks.{3 * step + k}", f"up_blocks.{step}", k, attends)
        if step < levels - 1:
            names[f"output_blocks.{3 * step + 2}.{1 + attends}.conv"] = f"up_blocks.{step}.upsamplers.0.conv"
    return names


def _block(original: str, ours: str, k: int, attends: bool) -> dict[str, str]:
    attention = _attention(f"{original}.1", f"{ours}.attentions.{k}") if attends else {}
    return _resnet(f"{original}.0", f"{ours}.resnets.{k}") | attention


def _resnet(original: str, ours: str) -> dict[str, str]:
    return {f"{original}.{theirs}": f"{ours}.{name}" for theirs, name in RESNET.items()}


def _attention(original: str, ours: str) -> dict[str, str]:
    return {f"{original}.{name}": f"{ours}.{name}" for name in ATTENTION}
