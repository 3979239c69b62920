"""Bases in one file: each weight from its rows in the original layout, quantised or not."""

import gc
import shutil
import weakref

import pytest
import torch
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
from safetensors.torch import load_file

import checkpoint
import pico
from qrlora import safetensors_files
from qrlora.basis import cached_basis, fingerprint
from qrlora.families import FAMILIES, open_base, single_file
from qrlora.families.base_without_weights import blank_base
from qrlora.families.public_configs import PUBLIC
from qrlora.files import load
from qrlora.training import train
from test_families import assert_same_base, refused, write_single_file
from test_training import settings


@pytest.fixture(autouse=True)
def narrow_flux(monkeypatch):
    """diffusers knows FLUX at FLUX.1's width alone."""
    conversion = {"checkpoint_mapping_fn": checkpoint.flux_conversion(16)}
    monkeypatch.setitem(SINGLE_FILE_LOADABLE_CLASSES, "FluxTransformer2DModel", conversion)


@pytest.fixture
def one_file(tmp_path):
    """(family) -> the path of its pico base as one file, with configs, tokenizers and what it lacks beside it."""

    def made(family):
        shutil.copytree(pico.folder(family), tmp_path / "model", ignore=shutil.ignore_patterns("qrlora.json"))
        shutil.rmtree(tmp_path / "model" / FAMILIES[family].component)
        (tmp_path / "model" / FAMILIES[family].component).mkdir()
        config = f"{FAMILIES[family].component}/config.json"
        shutil.copy(pico.folder(family) / config, tmp_path / "model" / config)
        return write_single_file(family, tmp_path)

    return made


def changed(path, change):
    """The file, with its tensors as `change` leaves them."""
    tensors = load_file(path)
    change(tensors)
    checkpoint.write(tensors, path)


def assert_same_originals(ours, theirs, targets):
    for (name, weight), (other, expected) in zip(ours.weights(targets), theirs.weights(targets), strict=True):
        assert name == other and torch.equal(weight, expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_one_file_is_the_same_base_as_the_folder(one_file, family, dtype):
    assert_same_base(*(open_base(x, "cpu", dtype) for x in (one_file(family), pico.folder(family))))


@pytest.mark.parametrize(
    ("family", "quantize", "dtype"),
    pico.in_turn(FAMILIES, ["int8", "float8"], ["float32", "bfloat16", "bfloat16", "float32"]),
)
def test_one_file_quantised_is_the_folder_quantised_to_the_last_bit(one_file, family, quantize, dtype):
    pytest.importorskip("torchao")
    ours, theirs = (open_base(x, "cpu", dtype, quantize).model for x in (one_file(family), pico.folder(family)))
    assert type(ours) is type(theirs) and ours.dtype == theirs.dtype
    state, expected, eight_bit = ours.state_dict(), theirs.state_dict(), 0
    assert state.keys() == expected.keys()
    for name, weight in expected.items():
        assert type(state[name]) is type(weight) and state[name].dtype == weight.dtype
        numbers = [(state[name], weight)]
        if hasattr(weight, "qdata"):
            numbers, eight_bit = (
                [(getattr(state[name], x), getattr(weight, x)) for x in ("qdata", "scale")],
                eight_bit + 1,
            )
        assert all(torch.equal(a.float(), b.float()) for a, b in numbers), name
    linear = [name for name, x in theirs.named_modules() if isinstance(x, torch.nn.Linear)]
    assert eight_bit == sum(not pico.kept_in_float32(theirs, name) for name in linear)


@pytest.mark.parametrize("family", FAMILIES)
def test_directions_are_those_of_the_base_that_is_not_quantised(one_file, family):
    pytest.importorskip("torchao")
    targets = FAMILIES[family].defaults.targets
    bases = [open_base(one_file(family), "cpu", quantize="int8"), open_base(pico.folder(family), "cpu")]
    assert_same_originals(*bases, targets)
    prints = [fingerprint(x.weights(targets)) for x in bases]
    assert prints[0] == prints[1]
    assert len({cached_basis(x.weights(targets), 4).digest for x in bases}) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_no_two_weights_of_a_file_are_in_memory_at_once(one_file, tmp_path, monkeypatch, family):
    """Counted while it is opened and learnt on: when a weight is read, the one before may be in use, none before that;
    and each weight is read for itself, not with the others of its tensor."""
    pytest.importorskip("torchao")
    alive: list[weakref.ref] = []
    most, longest = 0, 0

    def read_rows(path, pieces):
        nonlocal most, longest
        gc.collect(0)
        most = max(most, sum(ref() is not None for ref in alive))
        tensor = safetensors_files.read_rows(path, pieces)
        longest = max(longest, tensor.numel())
        alive.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr(single_file, "read_rows", read_rows)
    base = open_base(one_file(family), "cpu", "bfloat16", "int8")
    opened = len(alive)
    assert opened == len(base.model.state_dict())
    train(settings(tmp_path, steps=1, rank=4, resolution=pico.side_of(family), batch_size=2), base=base)
    assert len(alive) > opened + len(base.target_layers(base.family.defaults.targets))
    assert most <= 1 and longest == max(x.numel() for x in base.model.state_dict().values())
    full = open_base(pico.folder(family), "cpu")
    assert load(tmp_path / "out.safetensors").header.fingerprint == fingerprint(full.weights(base.defaults.targets))


@pytest.mark.parametrize("name", PUBLIC)
def test_every_weight_of_a_public_base_has_its_rows(name, monkeypatch):
    """At full size, from shapes alone: by the file's own names the rows of a weight are as many as it has."""
    monkeypatch.undo()  # FLUX.1 has the width that diffusers knows
    base, _, _ = blank_base(name)
    state, family = base.model.state_dict(), base.family.name
    tensors = checkpoint.trainable_part(family, state, base.model.config)
    held = {key: safetensors_files.TensorLocation("BF16", tuple(x.shape), 0) for key, x in tensors.items()}
    conversion = SINGLE_FILE_LOADABLE_CLASSES[type(base.model).__name__]["checkpoint_mapping_fn"]
    sources = single_file._rows_of_weights(held, base.model.config, conversion)
    single_file._check_rows(held, sources, {key: tuple(x.shape) for key, x in state.items()})
    if family == "flux":
        assert sources["single_transformer_blocks.3.attn.to_v.weight"] == [
            ("single_blocks.3.linear1.weight", 6144, 9216)
        ]
    if family == "sd3":  # shift and scale change places
        half = len(state["norm_out.linear.bias"]) // 2
        place = "final_layer.adaLN_modulation.1.bias"
        assert sources["norm_out.linear.bias"] == [(place, half, 2 * half), (place, 0, half)]


@pytest.mark.parametrize(
    "computed",
    [
        lambda x, y: x + 1,
        lambda x, y: 2 * x,
        lambda x, y: (x + y) // 2,
        lambda x, y: (x + y) / 2,
        lambda x, y: x - x,
        lambda x, y: torch.cat([x[:1], y[1:] + 0 * x[1:] + 1 - 1 + (x[1:] > 3)]),
    ],
    ids=["added to", "scaled", "averaged", "mean of floats", "constant", "in places"],
)
def test_a_conversion_that_computes_is_refused_since_its_rows_cannot_be_told(computed):
    held = {name: safetensors_files.TensorLocation("F32", (6, 2), 0) for name in ("a.weight", "b.weight")}

    def convert(config, checkpoint):
        return (
            {"x.weight": torch.cat([checkpoint["b.weight"], checkpoint["a.weight"]])}
            if config
            else {"x.weight": computed(checkpoint["a.weight"], checkpoint["b.weight"])}
        )

    assert single_file._rows_of_weights(held, {"moves": True}, convert) == {
        "x.weight": [("b.weight", 0, 6), ("a.weight", 0, 6)]
    }
    with pytest.raises(ValueError, match="computes x.weight instead of moving rows"):
        single_file._rows_of_weights(held, {}, convert)


def test_diffusers_still_keeps_its_conversions_where_we_look_them_up():
    """What an upgrade of diffusers may rename: if this fails, `single.conversion_of` is the one place to mend."""
    for kind in ("UNet2DConditionModel", "SD3Transformer2DModel", "FluxTransformer2DModel"):
        assert callable(single_file.conversion_of(kind)), kind
    assert single_file.conversion_of("NoSuchModel") is None


def test_numbers_of_eight_bits_are_read_and_their_directions_are_those_of_the_values(one_file):
    pytest.importorskip("torchao")
    path = one_file("sd3")
    changed(path, lambda tensors: tensors.update({k: x.to(torch.float8_e4m3fn) for k, x in tensors.items()}))
    bases = [open_base(path, "cpu"), open_base(path, "cpu", quantize="int8")]
    assert len({cached_basis(x.weights("attention"), 4).digest for x in bases}) == 1


def test_a_file_that_is_not_its_configuration_s_is_refused_in_one_line(one_file):
    path = one_file("sd3")
    whole, name = path.read_bytes(), "model.diffusion_model.joint_blocks.1.x_block.attn.qkv.weight"
    first = "is not a whole SD3Transformer2DModel of this configuration: "

    def refuses(message, change, quantize="int8"):
        path.write_bytes(whole)
        changed(path, change)
        refused(path, ValueError, first + message, quantize=quantize)

    for quantize in ("", "int8"):
        refuses("it has no tensor 'joint_blocks.1.x_block.attn.qkv.weight'", lambda x: x.pop(name), quantize)
    dual = "model.diffusion_model.joint_blocks.0.x_block.attn2."
    refuses(
        r"8 of \d+ weights are missing, such as transformer_blocks.0.attn2.norm_k.weight|weights are missing",
        lambda x: [x.pop(key) for key in list(x) if key.startswith(dual)],
    )
    refuses(r"transformer_blocks.1.attn.to_q.weight must be \(16, 16\), the file has \(16, 8\)",
            lambda x: x.update({name: x[name][:, :8]}))  # fmt: skip
    refuses(rf"1 tensors are no floating-point numbers, such as {name} \(U8\)",
            lambda x: x.update({name: x[name].byte()}))  # fmt: skip
    scale = name.replace("weight", "scale_weight")
    refuses(rf"1 tensors stand beside its weights that it does not know, such as {scale}",
            lambda x: x.update({scale: torch.ones(1)}))  # fmt: skip
    known = "model.diffusion_model.joint_blocks.0.context_block.adaLN_modulation.1.weight"  # keeps the family's name

    def without_blocks(tensors):
        for key in [key for key in tensors if "joint_blocks" in key and key != known]:
            del tensors[key]

    refuses("it has no tensor 'joint_blocks.0.x_block.attn.qkv.weight'", without_blocks)


def test_a_flux_file_without_a_kind_of_block_is_refused(one_file):
    path = one_file("flux")
    changed(path, lambda tensors: [tensors.pop(key) for key in list(tensors) if key.startswith("single_blocks")])
    refused(path, ValueError, "is not a whole FluxTransformer2DModel of this configuration: it has no block of a kind")


def test_the_folder_beside_a_file_must_be_of_its_kind(one_file, tmp_path):
    path = one_file("flux")
    config = tmp_path / "model" / "transformer" / "config.json"
    config.write_text('{"_class_name": "PixArtTransformer2DModel"}')
    refused(
        path, ValueError, "its configuration is of class 'PixArtTransformer2DModel', which is not read from one file"
    )
    shutil.rmtree(tmp_path / "model")
    shutil.copytree(pico.folder("sd3"), tmp_path / "model")
    refused(path, ValueError, "model.safetensors is a flux base, the folder beside it, .*/model, is of another family")


def test_a_lonely_file_finds_its_configuration_in_the_hub_s_cache(tmp_path, monkeypatch):
    """In the repository that the stock loader takes for such a file; a pico text encoder is too short for SDXL's."""
    pytest.importorskip("torchao")
    hub = tmp_path / "hub" / "models--stable-diffusion-v1-5--stable-diffusion-v1-5"
    without_weights = shutil.ignore_patterns("*.safetensors", "qrlora.json")
    shutil.copytree(pico.folder(), hub / "snapshots" / "a", ignore=without_weights)
    (hub / "refs").mkdir()
    (hub / "refs" / "main").write_text("a")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    base = open_base(write_single_file("sdxl", tmp_path), "cpu", quantize="int8")
    assert_same_originals(base, open_base(pico.folder(), "cpu"), "attention")
