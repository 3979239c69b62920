"""Bases in 8 bits: what is trained on them, where their directions come from, and what is in memory meanwhile."""

import functools
import gc
import shutil
import weakref

import pytest
import torch
from safetensors.torch import load_file

import pico
from qrlora import safetensors_files
from qrlora.basis import cached_basis, fingerprint
from qrlora.config import SampleConfig, TrainConfig
from qrlora.estimate.memory_counting import LiveBytes
from qrlora.families import FAMILIES, SizeConditioning, open_base, quantization
from qrlora.files import load
from qrlora.image_loading import load_image
from qrlora.initialisation_methods import METHODS
from qrlora.injection import applied, detach, initialise
from qrlora.sampling import generate
from qrlora.training import denoising_loss, train
from qrlora.training_example import encode_training_examples
from test_training import picture, settings

pytest.importorskip("torchao")
KINDS = ("int8", "float8")


@functools.cache
def opened(family, quantize, dtype="float32"):
    return open_base(pico.folder(family), "cpu", dtype, quantize)


def targets(family):
    return FAMILIES[family].defaults.targets


def stored(weight):
    """What a weight takes in memory: torchao's 8-bit numbers, or the weight itself."""
    return getattr(weight, "qdata", weight)


@pytest.mark.parametrize("quantize", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_linear_layer_of_the_trainable_part_takes_a_byte_a_weight_and_nothing_else_does(family, quantize):
    """But for the layers that diffusers keeps in float32 whatever is asked for."""
    base = opened(family, quantize)
    for part in (base.family.component, *base.encoders_and_vae):
        for name, layer in getattr(base.pipe, part).named_modules():
            if isinstance(layer, torch.nn.Linear):
                byte = part == base.family.component and not pico.kept_in_float32(base.model, name)
                assert stored(layer.weight).element_size() == (1 if byte else 4)


@pytest.mark.parametrize("family", FAMILIES)
def test_original_weights_are_those_of_the_base_that_is_not_quantised(family):
    """Compared with the checkpoint's own file, read whole by safetensors."""
    base, full = opened(family, "int8"), open_base(pico.folder(family), "cpu")
    file = load_file(pico.folder(family) / base.family.component / "diffusion_pytorch_model.safetensors")
    for name, weight in base.weights(targets(family)):
        assert torch.equal(weight, file[f"{name}.weight"])
        kept = base.model.get_submodule(name).weight.dequantize()
        assert not torch.equal(kept, weight) and torch.dist(kept, weight) < 0.1 * weight.norm()
    assert fingerprint(base.weights(targets(family))) == fingerprint(full.weights(targets(family)))
    bases = [cached_basis(x.weights(targets(family)), 4) for x in (base, full)]
    assert bases[0].digest == bases[1].digest


def test_shards_are_one_checkpoint(tmp_path):
    copy = tmp_path / "base"
    shutil.copytree(pico.folder(), copy)
    whole = opened("sdxl", "")
    shutil.rmtree(copy / "unet")
    whole.model.save_pretrained(copy / "unet", max_shard_size="50KB")
    assert len(list((copy / "unet").glob("*.safetensors"))) > 2
    for (name, weight), (other, expected) in zip(
        open_base(copy, "cpu", quantize="int8").weights("self"), whole.weights("self"), strict=True
    ):
        assert name == other and torch.equal(weight, expected)


def test_no_two_original_weights_are_in_memory_at_once(tmp_path, monkeypatch):
    """Counted over a whole run: when a weight is read, the one before it may still be in use, none before that."""
    base = open_base(pico.folder(), "cpu", quantize="int8")
    alive: list[weakref.ref] = []
    most = 0

    def read_rows(path, pieces):
        nonlocal most
        gc.collect(0)
        most = max(most, sum(ref() is not None for ref in alive))
        tensor = safetensors_files.read_rows(path, pieces)
        alive.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr(quantization, "read_rows", read_rows)
    train(settings(tmp_path, steps=1), base=base)
    layers = len(base.target_layers("self"))
    assert len(alive) >= layers + 16  # for the basis's name, and the basis if it is new; some for the fingerprint
    assert most <= 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("quantize", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_step_0_is_the_quantised_base_and_only_the_learning_factor_hears_the_loss(family, quantize, dtype):
    base, generator = opened(family, quantize, dtype), torch.Generator().manual_seed(3)
    noisy = pico.latents(base, 2, generator)
    condition = base.encode_prompt(["a <c>"] * 2, SizeConditioning.uncropped(pico.SIZE, pico.SIZE))
    weights = base.weights(targets(family))
    directions = cached_basis(weights, 4).Q
    starts = {name: METHODS["qr"].start(weight, directions[name], 4, None) for name, weight in weights}
    with torch.no_grad():
        plain = base.family.predict(base.model, noisy, torch.tensor([5, 900]), condition)
    learning = initialise(base.model, starts, "fresh")
    try:
        fresh = base.family.predict(base.model, noisy, torch.tensor([5, 900]), condition)
        fresh.float().square().sum().backward()
    finally:
        detach(base.model, "fresh")
    assert torch.equal(fresh, plain) and fresh.dtype == getattr(torch, dtype)
    assert sum(x.grad is not None and bool(x.grad.any()) for x in learning) >= len(learning) - {
        "sd3": 1,
        "sd15": 2,
    }.get(family, 0)
    assert all(x.grad is None for x in base.model.parameters())


@pytest.mark.parametrize(("family", "quantize"), pico.in_turn(FAMILIES, KINDS))
def test_what_is_learnt_on_a_quantised_base_is_learnt_for_the_full_one(tmp_path, family, quantize):
    """The loss on one fixed draw falls on both, and the file loads on the full base as one of its own."""
    base, full = opened(family, quantize), open_base(pico.folder(family), "cpu")
    before = {key: stored(value).clone() for key, value in base.model.state_dict().items()}
    train(
        settings(tmp_path, steps=20, batch_size=4, learning_rate=0.03, quantize=quantize, gradient_checkpointing=True),
        base=base,
    )
    after = base.model.state_dict()
    assert all(
        torch.equal(getattr(after[key], "qdata", after[key]), getattr(x, "qdata", x)) for key, x in before.items()
    )
    adapter = load(tmp_path / "out.safetensors")
    assert adapter.header.fingerprint == fingerprint(full.weights(targets(family)))
    example, generator = (
        encode_training_examples(full, [load_image(picture(tmp_path), full.defaults.resolution)], ["a <c>"]),
        torch.Generator(),
    )
    noise = torch.randn(16, *example.latents.shape[1:], generator=generator.manual_seed(5))
    moment = torch.arange(16) * 60
    fixed = (example.latents.expand(16, -1, -1, -1), noise, moment, example.condition.rows([0] * 16))
    for each in (base, full):
        with torch.no_grad():
            plain = denoising_loss(each.family.predict, each.model, each.noising, *fixed)
            with applied(each.model, [(adapter, 1.0)]):
                learnt = denoising_loss(each.family.predict, each.model, each.noising, *fixed)
        assert learnt < 0.99 * plain


def test_a_run_opens_its_base_quantised_and_says_so_in_the_file(tmp_path):
    train(settings(tmp_path, quantize="float8", dtype="bfloat16", steps=2))
    header = load(tmp_path / "out.safetensors").header
    assert header.config["quantize"] == "float8" and "offload" not in header.config


@pytest.mark.parametrize("quantize", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_pictures_of_a_quantised_base_resemble_those_of_the_full_one(family, quantize):
    pictures = [generate(x, "a dog", seed=3)[0] for x in (opened(family, ""), opened(family, quantize))]
    ours, theirs = (torch.tensor(list(x.getdata())).float() for x in pictures)
    assert 0 < (ours - theirs).abs().mean() < 20  # of 255


@pytest.mark.parametrize("family", FAMILIES)
def test_offload_changes_where_parts_wait_and_nothing_else(tmp_path, family):
    """With the CPU in the GPU's place."""
    plain, turns = open_base(pico.folder(family), "cpu"), open_base(pico.folder(family), "cpu", offload=True)
    assert turns.offload and not plain.offload
    pictures = [generate(x, "a dog", seed=3, count=2) for x in (plain, turns)]
    assert [x.tobytes() for x in pictures[0]] == [x.tobytes() for x in pictures[1]]
    seen = []
    for base, extra in ((plain, {}), (turns, {"preview_every": 3, "offload": True})):
        config = settings(tmp_path, output=tmp_path / f"{len(extra)}.safetensors", **extra)
        train(config, base=base, on_preview=lambda step, image: seen.append(step))
    assert seen == [3, 6]
    assert (tmp_path / "0.safetensors").read_bytes() == (tmp_path / "2.safetensors").read_bytes()


@pytest.mark.parametrize("kind", [TrainConfig, SampleConfig])
def test_an_unknown_way_to_quantise_is_refused(kind):
    with pytest.raises(ValueError, match="quantize must be one of \"\", nf4, int8, float8, got 'int4'"):
        kind(quantize="int4")


def test_what_cannot_be_quantised_is_refused_with_the_way_out(monkeypatch):
    def refused(message, quantize="int8"):
        with pytest.raises(ValueError, match=message):
            open_base(pico.folder(), "cpu", quantize=quantize)

    refused("needs a GPU with CUDA, the device is cpu: use quantize=int8 or float8", quantize="nf4")
    refused("quantize must be one of nf4, int8, float8 or empty, got 'int4'", quantize="int4")
    monkeypatch.setitem(quantization.LIBRARIES, "int8", "no_such_library")
    refused(r'quantize=int8 needs no_such_library: pip install "qrlora\[quantize\]"')


def test_a_checkpoint_that_lacks_a_layer_is_named(tmp_path):
    folder = tmp_path / "unet"
    with pytest.raises(FileNotFoundError, match="has no weights as safetensors: the original ones are needed"):
        quantization.original_weights(folder)
    folder.mkdir()
    file = folder / "diffusion_pytorch_model-00001-of-00001.safetensors"
    safetensors_files.write_safetensors(file, {"b.weight": torch.zeros(1)}, {})
    with pytest.raises(ValueError, match="00001.safetensors has no tensor 'a.weight'"):
        quantization.original_weights(folder)("a")


def kept(work, known):
    """What `work` returns, and the bytes kept for its backward pass, each storage once, without those of `known`."""
    saved = []

    def storages(tensors):
        parts = [[getattr(x, n) for n in x.__tensor_flatten__()[0]] if hasattr(x, "qdata") else [x] for x in tensors]
        return {s.data_ptr(): s.nbytes() for part in parts for s in [x.untyped_storage() for x in part]}

    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        result = work()
    own = storages(known)
    return result, sum(size for place, size in storages(saved).items() if place not in own)


@pytest.mark.parametrize("quantize", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_backward_pass_keeps_no_copy_of_a_quantised_weight(family, quantize):
    """What an update keeps beside the weights themselves is no more than on the base that is not quantised."""
    counted = {}
    for kind in ("", quantize):
        base = opened(family, kind, "bfloat16")
        starts = {n: METHODS["lora"].start(w, None, 4, torch.Generator()) for n, w in base.weights("to_q")}
        condition = base.encode_prompt(["a <c>"], SizeConditioning.uncropped(pico.SIZE, pico.SIZE))
        initialise(base.model, starts, "fresh")
        try:
            noisy = torch.ones_like(pico.latents(base, 1))
            told = (base.model, noisy, torch.tensor([500]), condition)
            known = [*base.model.parameters(), *base.model.buffers(), *condition.tensors.values()]
            _, counted[kind] = kept(lambda told=told, base=base: base.family.predict(*told), known)
        finally:
            detach(base.model, "fresh")
    assert 0 < counted[quantize] <= counted[""]


@pytest.mark.parametrize("quantize", KINDS)
def test_a_quantised_layer_answers_and_hands_back_as_if_its_weight_were_unpacked(quantize):
    """Of a model that is filled weight by weight, too; compared with the unpacked weight, and none is kept."""
    model = pico.unet()
    values = {name: value.bfloat16() for name, value in model.state_dict().items()}
    with torch.device("meta"):
        blank = type(model).from_config(model.config).bfloat16()
    quantization.fill_quantised(blank, values.__getitem__, quantize, torch.device("cpu"))
    layers = {n: x for n, x in blank.named_modules() if isinstance(x, torch.nn.Linear)}
    for name, layer in layers.items():
        x = torch.randn(3, layer.in_features, dtype=torch.bfloat16, requires_grad=True)
        g = torch.randn(3, layer.out_features, dtype=torch.bfloat16)
        y, bytes_kept = kept(lambda layer=layer, x=x: layer(x), [layer.weight, x])
        y.backward(g)
        W, bias = layer.weight.dequantize(), 0 if layer.bias is None else layer.bias
        assert bytes_kept == 0 and torch.dist(W, values[f"{name}.weight"]) < 0.1 * W.norm()
        torch.testing.assert_close(y, x @ W.T + bias, rtol=2e-2, atol=2e-2)
        torch.testing.assert_close(x.grad, g @ W, rtol=2e-2, atol=2e-2)


def test_a_layer_of_bitsandbytes_keeps_no_copy_of_its_weight_either():
    """Its graph is not autograd's alone, so that everything alive after the forward pass is counted."""
    library = pytest.importorskip("bitsandbytes")
    layer, W = library.nn.Linear4bit(256, 512, bias=False, quant_type="nf4"), torch.randn(512, 256)
    layer.weight = library.nn.Params4bit(W, requires_grad=False, quant_type="nf4").to("cpu")
    x = torch.randn(3, 256, requires_grad=True)
    with LiveBytes([layer.weight, x]) as live:
        y = layer(x)
    assert live.now < W.nbytes / 10 and y.requires_grad
