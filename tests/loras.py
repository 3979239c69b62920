"""Random adapters on the real modules of pico pipelines, and what stock diffusers makes of their files."""

import re

import torch

from qrlora.adapter import Adapter, Header, Pair, name_ends_in

TARGETS = {
    "sd15": ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn2.to_k", "ff.net.0.proj", "ff.net.2"),
    "sdxl": ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn2.to_k", "ff.net.0.proj", "ff.net.2"),
    "sd3": ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "ff.net.2"),
    "krea2": ("to_q", "to_k", "to_v", "to_out.0", "to_gate", "ff.gate", "ff.up", "ff.down"),
    "flux2": ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    + (
        "ff.linear_in",
        "ff.linear_out",
        "ff_context.linear_in",
        "to_qkv_mlp_proj",
        "single_transformer_blocks.*.to_out",
    ),
    "z_image": ("to_q", "to_k", "to_v", "to_out.0", "w1", "w2", "w3", "adaLN_modulation.0"),
    "flux": ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    + ("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "proj_mlp", "proj_out"),
    "qwen_image_21": ("to_q", "to_k", "to_v", "to_out.0", "img_mlp.proj", "img_mlp.out", "img_mlp.gate_layer"),
    "wan": ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2"),
    "qwen_image": (
        "to_q",
        "to_k",
        "to_v",
        "to_out.0",
        "add_q_proj",
        "to_add_out",
        "img_mlp.net.2",
        "txt_mlp.net.0.proj",
    )
    + ("img_mod.1",),
}


IN_BLOCK = re.compile(r"(blocks|layers|refiner)\.\d")


def part_of(pipe):
    """ "unet" or "transformer"."""
    return "unet" if hasattr(pipe, "unet") else "transformer"


def shapes_of(pipe, endings):
    """{layer: (o, i)} of a pipeline's linear layers inside its blocks that end so."""
    layers = getattr(pipe, part_of(pipe)).named_modules()
    linear = {n: tuple(x.weight.shape) for n, x in layers if isinstance(x, torch.nn.Linear) and IN_BLOCK.search(n)}
    return {name: shape for name, shape in linear.items() if name_ends_in(name, endings)}


def random_adapter(pipe, family, endings=None, rank=2, seed=0, **header):
    """Pairs of random numbers, of small size; endings may be {layer: (o, i)}, rank a function of the layer's name."""
    generator, layers = torch.Generator().manual_seed(seed), {}
    shapes = endings if isinstance(endings, dict) else shapes_of(pipe, endings or TARGETS[family])
    for layer, (o, i) in shapes.items():
        r = rank(layer) if callable(rank) else rank
        A, B = torch.randn(r, i, generator=generator), torch.randn(o, r, generator=generator)
        layers[layer] = Pair(A / i**0.5, B / 10)
    known = dict(family=family, component=part_of(pipe), method="lora", rank=max(p.rank for p in layers.values()))
    return Adapter(layers, Header(**{**known, **header}))


def stock_updates(pipe, path):
    """{layer: the update (o, i) that its layer has, after stock diffusers loaded a file}; nothing stays loaded."""
    from peft.tuners.lora import LoraLayer

    pipe.load_lora_weights(path, adapter_name="stock")
    modules = getattr(pipe, part_of(pipe)).named_modules()
    found = {n: m.get_delta_weight("stock").detach() for n, m in modules if isinstance(m, LoraLayer) and "stock" in m.r}
    pipe.unload_lora_weights()
    return found


def assert_same(first, second):
    """Equal layers, bit for bit."""
    assert first.layers.keys() == second.layers.keys()
    for layer, pair in first.layers.items():
        assert torch.equal(pair.A, second.layers[layer].A) and torch.equal(pair.B, second.layers[layer].B), layer


def assert_updates(found, adapter, strength=1.0):
    """Updates by layer are the adapter's, in float64; layers beyond it have none."""
    assert adapter.layers.keys() <= found.keys()
    for layer, update in found.items():
        pair = adapter.layers.get(layer)
        expected = strength * pair.B.double() @ pair.A.double() if pair else torch.zeros_like(update).double()
        torch.testing.assert_close(update.double(), expected, atol=1e-6, rtol=1e-5)
