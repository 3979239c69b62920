"""kohya's trainers: `qrlora.` before the network module, on a network of their shape (tests/trainer/networks)."""

import importlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import qrlora.trainers.freeze_lora
from qrlora.trainers.kohya import weight_of_kohya_module

TRAINER = Path(__file__).parent / "trainer"


@pytest.fixture(autouse=True)
def inside_the_trainer(monkeypatch):
    monkeypatch.syspath_prepend(TRAINER)


class Model(nn.Module):
    """A convolution, a fused qkv and two linear layers of different shapes."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 16, 3, padding=1)
        self.qkv = nn.Linear(16, 48)
        self.q = nn.Linear(48, 12)
        self.out = nn.Linear(12, 20)

    def forward(self, x):
        return self.out(self.q(self.qkv(self.conv(x).flatten(2).transpose(1, 2)).tanh()).tanh())


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 6)


def leading(W, rank):
    """The projection on a weight's leading input directions, by float64 SVD."""
    V = torch.linalg.svd(W.double(), full_matrices=False).Vh[:rank]
    return V.T @ V


def begin(module="qrlora.networks.lora", model=None, encoder=None, with_encoder=True, alpha=2, **settings):
    """What a trainer does with a network module until it has an optimizer, in its order."""
    model, encoder = model or Model(), encoder or Encoder()
    model.requires_grad_(False)
    imported = importlib.import_module(module)
    settings = {"conv_dim": "2", "split": "20,20,8", "ranks": "q:3", **settings}
    network = imported.create_network(1.0, 2, alpha, None, encoder, model, neuron_dropout=None, **settings)
    network.apply_to(encoder, model, with_encoder, True)
    groups, _ = network.prepare_optimizer_params(None, 1e-2, 1e-2)
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    network.prepare_grad_etc(encoder, model)
    network.on_epoch_start(encoder, model)
    return model, network, optimizer


def learn(model, network, optimizer, steps=3):
    """The losses of some steps, with a seed of their own."""
    losses, generator = [], torch.Generator().manual_seed(5)
    for _ in range(steps):
        loss = (model(torch.randn(2, 2, 4, 4, generator=generator)) - 1).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.get_trainable_params(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def test_A_is_the_leading_subspace_of_every_kind_of_layer_and_stays_while_B_learns(tmp_path):
    model, network, optimizer = begin()
    weights = {name: x.clone() for name, x in model.state_dict().items()}
    before = {key: x.clone() for key, x in network.state_dict().items()}
    learn(model, network, optimizer)
    network.save_weights(tmp_path / "it.safetensors", torch.float32, {"ss_network_module": "qrlora.networks.lora"})
    saved = load_file(tmp_path / "it.safetensors")
    parts = {
        **{f"lora_unet_qkv.lora_down.{k}": (W, 2) for k, W in enumerate(weights["qkv.weight"].split([20, 20, 8]))},
        "lora_unet_conv.lora_down": (weights["conv.weight"].flatten(1), 2),
        "lora_unet_q.lora_down": (weights["q.weight"], 3),
        "lora_unet_out.lora_down": (weights["out.weight"], 2),
    }
    for name, (W, rank) in parts.items():
        A = saved[f"{name}.weight"].flatten(1)
        assert A.shape == (rank, W.shape[1])
        torch.testing.assert_close(A.T.double() @ A.double(), leading(W, rank), rtol=0, atol=1e-5)
    moved = {key for key in before if not torch.equal(before[key], saved[key])}
    assert moved == {key for key in before if "lora_up" in key and "lora_te" not in key}  # the encoder saw nothing
    assert all(torch.equal(weights[name], x) for name, x in model.state_dict().items())


def test_no_optimizer_clipping_or_requires_grad_reaches_A():
    model, network, optimizer = begin(loraplus_lr_ratio="4")
    held = [x for group in optimizer.param_groups for x in group["params"]]
    ups = [x for name, x in network.named_parameters() if "lora_up" in name]
    assert {id(x) for x in held} == {id(x) for x in ups} == {id(x) for x in network.get_trainable_params()}
    assert [group["lr"] for group in optimizer.param_groups] == [4e-2]
    network.requires_grad_(True)
    learn(model, network, optimizer, 1)
    assert not any(x.requires_grad for x in network.buffers())


def test_the_first_loss_is_the_trainers_own_to_the_last_bit_and_it_goes_down():
    model, network, optimizer = begin()
    ours = learn(model, network, optimizer, 8)
    torch.manual_seed(1)
    plain = Model()
    plain.load_state_dict(model.state_dict())
    theirs = learn(*begin("networks.lora", plain), steps=8)
    assert ours[0] == theirs[0] and ours[-1] < ours[0] and ours[1:] != theirs[1:]


def test_on_square_layers_half_the_numbers_learn_and_the_layers_input_is_not_kept():
    def saved(module):
        kept = []
        model = nn.Sequential(nn.Linear(64, 64))
        model, network, optimizer = begin(module, model=model, alpha=8, ranks="0:8", conv_dim=None)
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
            model(torch.randn(2, 100, 64, requires_grad=True)).sum()
        return max(kept), sum(x.numel() for x in network.unet_loras[0].parameters())

    ours, theirs = saved("qrlora.networks.lora"), saved("networks.lora")
    assert 2 * ours[1] == theirs[1] == 2 * 64 * 8
    assert (ours[0], theirs[0]) == (64 * 64, 2 * 100 * 64)  # W alone is kept; theirs keeps x as well


def test_text_encoders_that_are_not_trained_get_no_directions():
    """Their ranks, weights and devices are nobody's business then."""
    encoder = Encoder().to("meta")
    _, network, _ = begin(encoder=encoder, with_encoder=False)
    assert network.text_encoder_loras == []
    with pytest.raises(ValueError, match="lora_te_fc: its weight is on the meta device"):
        begin(encoder=encoder)


def test_text_encoders_that_are_trained_learn_B_alone():
    encoder = Encoder()
    _, network, _ = begin(encoder=encoder)
    A = network.lora_te_fc.lora_down.weight
    torch.testing.assert_close(A.T.double() @ A.double(), leading(encoder.fc.weight, 2), rtol=0, atol=1e-5)
    assert [name for name, _ in network.lora_te_fc.named_parameters()] == ["lora_up.weight"]


def test_a_limit_on_the_updates_norm_shortens_B_alone_by_the_whole_ratio():
    """Theirs takes the square root of the ratio off each of A and B."""
    model, network, optimizer = begin(split=None)
    learn(model, network, optimizer, 6)
    before = {key: x.clone() for key, x in network.state_dict().items()}
    scaled, _, largest = network.apply_max_norm_regularization(0.01, "cpu")
    after = network.state_dict()
    assert scaled == 4 and largest == pytest.approx(0.01)
    for name in ("lora_unet_conv", "lora_unet_qkv", "lora_unet_q", "lora_unet_out"):
        A, B = f"{name}.lora_down.weight", f"{name}.lora_up.weight"
        assert torch.equal(after[A], before[A])
        scale = float(after[f"{name}.alpha"]) / len(after[A])
        assert float((after[B].flatten(1) @ after[A].flatten(1)).norm() * scale) == pytest.approx(0.01)
        shrunk = after[B].norm() / before[B].norm()
        torch.testing.assert_close(after[B], before[B] * shrunk)


def test_weights_of_an_earlier_run_go_on_and_a_free_loras_are_refused(tmp_path):
    model, network, optimizer = begin()
    learn(model, network, optimizer)
    ours, free = tmp_path / "ours.safetensors", tmp_path / "free.safetensors"
    network.save_weights(ours, torch.bfloat16, None)

    base = Model()
    base.load_state_dict({name: x for name, x in model.state_dict().items()})
    _, again, _ = begin(model=base, encoder=Encoder(), with_encoder=False)
    again.load_weights(ours)
    B = "lora_unet_q.lora_up.weight"
    torch.testing.assert_close(again.state_dict()[B], network.state_dict()[B], rtol=1e-2, atol=1e-6)
    assert not [name for name, _ in again.named_parameters() if "lora_down" in name]

    _, plain, _ = begin("networks.lora", with_encoder=False)
    plain.save_weights(free, torch.float32, None)
    with pytest.raises(ValueError, match=r"lora_unet_\S+: its A spans \d+% of this base's directions: it was learnt"):
        again.load_weights(free)
    with pytest.raises(ValueError, match="cannot go on as a QR-LoRA"):  # what accelerate's load_state does
        again.load_state_dict(plain.state_dict())


def test_ranks_taken_from_a_file_are_frozen_and_a_file_that_is_merged_beforehand_is_the_trainers(tmp_path):
    model, network, optimizer = begin(split=None, with_encoder=False)
    learn(model, network, optimizer)
    file = tmp_path / "it.safetensors"
    network.save_weights(file, torch.float32, None)
    module = importlib.import_module("qrlora.networks.lora")

    base = Model()
    taken, _ = module.create_network_from_weights(1, file, None, None, base)
    taken.apply_to(None, base, False, True)
    assert [name for name, _ in taken.named_parameters()] == [f"{x.lora_name}.lora_up.weight" for x in taken.unet_loras]

    merged = Model()
    before = merged.q.weight.clone()
    theirs, weights = module.create_network_from_weights(1.0, file, None, None, merged, for_inference=True)
    theirs.merge_to(None, merged, weights, torch.float32, "cpu")
    A, B = (weights[f"lora_unet_q.lora_{side}.weight"] for side in ("down", "up"))
    torch.testing.assert_close(merged.q.weight - before, B @ A)  # alpha = rank there


def test_networks_of_one_module_are_of_one_class_by_which_a_trainer_knows_its_own():
    _, first, _ = begin()
    _, second, _ = begin()
    theirs = importlib.import_module("networks.lora").LoRANetwork
    assert type(first) is type(second) and isinstance(first, theirs) and type(first) is not theirs


@pytest.mark.parametrize("scale", [None, (1,), (24, 1), (24, 2, 1)], ids=["plain", "tensor", "row", "block"])
def test_weights_in_fp8_are_read_with_their_scales(scale):
    """kohya's layers keep fp8 numbers and divide by scales of the tensor, of rows, or of blocks of inputs."""
    layer = nn.Linear(32, 24)
    W = layer.weight.detach()
    if scale is None:
        layer.weight.data = W.to(torch.float8_e4m3fn)
    else:
        parts = W if len(scale) < 3 else W.view(24, 2, 16)
        scales = parts.abs().amax(-1, keepdim=True) / 448 if len(scale) > 1 else W.abs().amax().view(1) / 448
        layer.register_buffer("scale_weight", scales)
        layer.weight.data = (parts / scales).view(24, 32).to(torch.float8_e4m3fn)
        assert scales.shape == scale
    assert weight_of_kohya_module(layer).dtype == torch.float32
    torch.testing.assert_close(weight_of_kohya_module(layer), W, rtol=0.07, atol=1e-3)


def test_a_network_on_fp8_weights_learns_beside_the_directions_of_those_weights():
    model = Model()
    for layer in (model.q, model.out):
        layer.weight = nn.Parameter(layer.weight.to(torch.float8_e4m3fn), requires_grad=False)
    _, network, _ = begin(model=model, with_encoder=False)
    A = network.lora_unet_q.lora_down.weight
    torch.testing.assert_close(A.T.double() @ A.double(), leading(model.q.weight.float(), 3), rtol=0, atol=1e-5)


def test_the_second_start_finds_nothing_anew(monkeypatch):
    model = Model()
    _, first, _ = begin(model=model, with_encoder=False)
    again = Model()
    again.load_state_dict(model.state_dict())
    monkeypatch.setattr("qrlora.basis.compute_basis", lambda *a, **k: pytest.fail("was found anew"))
    _, second, _ = begin(model=again, with_encoder=False)
    for lora in second.unet_loras:
        assert all(
            torch.equal(first.state_dict()[f"{lora.lora_name}.{key}"], x) for key, x in lora.state_dict().items()
        )


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("loha", r"networks.loha.LoHaModule \(of no known version\) has no lora_down: no plain LoRA"),
        (
            "oft",
            r"networks.oft.OFTNetwork \(of no known version\) has no text_encoder_loras: no network of plain LoRAs",
        ),
        (
            "old",
            r"networks.old.OldNetwork \(of no known version\) has no apply_max_norm_regularization\(\), which qrlora",
        ),
    ],
)
def test_networks_that_cannot_be_frozen_are_refused_by_name(module, message):
    create = importlib.import_module(f"qrlora.networks.{module}").create_network
    with pytest.raises(ValueError, match=message):
        create(1.0, 2, 2, None, None, Model())


def test_where_there_is_no_trainer_the_module_says_so(monkeypatch):
    with pytest.raises(ModuleNotFoundError, match="stands for networks.lora_none of sd-scripts or musubi-tuner"):
        importlib.import_module("qrlora.networks.lora_none")


def spoilt(**changes):
    model = Model()
    for name, value in changes.items():
        getattr(model, name).weight.data.fill_(value)
    return model


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ranks": "q:13"}, "lora_unet_q: has 12 directions, its LoRA rank 13; give it a lower rank"),
        ({"model": spoilt(out=float("nan"))}, "lora_unet_out: the weight of shape .* holds NaN or infinity"),
        ({"model": spoilt(q=float("inf"))}, "lora_unet_q: the weight of shape .* holds NaN or infinity"),
        ({"model": Model().to("meta")}, "lora_unet_conv: its weight is on the meta device; load the model first"),
    ],
)
def test_what_has_no_directions_is_refused_by_layer_and_nothing_is_changed(settings, message):
    model = settings.pop("model", Model())
    forwards = [layer.forward for layer in model.children()]
    with pytest.raises(ValueError, match=message):
        begin(model=model, with_encoder=False, **settings)
    assert [layer.forward for layer in model.children()] == forwards


def test_a_weight_of_another_shape_than_its_lora_is_refused():
    """As where weights are packed, or sharded over processes."""
    model = Model()
    network = importlib.import_module("qrlora.networks.lora").create_network(1.0, 2, 2, None, None, model)
    model.q.weight.data = model.q.weight.data[:6]
    with pytest.raises(ValueError, match=r"lora_unet_q: its weight is \(6, 48\), its LoRA for one of \(12, 48\)"):
        network.apply_to(None, model, False, True)


def test_a_full_gpu_leaves_a_weight_to_the_cpu(monkeypatch):
    """A base model may fill the GPU; what is found there or here is the same directions."""
    from qrlora.basis import compute_basis

    asked = []
    plain = torch.Tensor.to

    def full(tensor, *args, **kwargs):
        if args[:1] == ("cuda",):
            asked.append(tensor.shape)
            raise torch.cuda.OutOfMemoryError("full")
        return plain(tensor, *args, **kwargs)

    weights = [("a", torch.randn(6, 8)), ("b", torch.randn(9, 5))]
    found = compute_basis(weights, 2).Q
    monkeypatch.setattr(torch.Tensor, "to", full)
    again = compute_basis(weights, 2, device="cuda").Q
    assert len(asked) == 2 and all(torch.equal(found[layer], Q) for layer, Q in again.items())


def test_directions_are_looked_for_on_a_gpu_if_there_is_one(monkeypatch):
    asked = []

    def find(weights, rank, progress=None, device=None):
        asked.append(device)
        return qrlora.trainers.freeze_lora.Weights, 1 / 0

    monkeypatch.setattr(qrlora.trainers.freeze_lora, "cached_basis", find)
    for there in (True, False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        with pytest.raises(ZeroDivisionError):
            begin()
    assert asked == ["cuda", None]
