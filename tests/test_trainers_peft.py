"""PEFT's own layers, frozen: `qrlora.freeze`, and scripts that are started by `qrlora.trainers.peft`."""

import sys
import warnings

import peft
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn
from transformers.pytorch_utils import Conv1D

import qrlora
from qrlora.trainers.peft import freeze_every_peft_lora, weight_of_peft_layer

pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set")  # PEFT notices by itself
TARGETS = ["first", "second", "conv", "turned"]


class Model(nn.Module):
    """Linear layers, a convolution and a layer whose weight is (i, o)."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(12, 16)
        self.turned = Conv1D(10, 16)
        self.second = nn.Linear(10, 24)
        self.conv = nn.Conv1d(2, 6, 3, padding=1)

    def forward(self, x):
        return self.conv(self.second(self.turned(self.first(x).tanh()).tanh()).view(-1, 2, 12))


def config(rank=3, **settings):
    return LoraConfig(r=rank, lora_alpha=rank, target_modules=settings.pop("target_modules", TARGETS), **settings)


def worn(model=None, adapter="default", **settings):
    """A model with a frozen adapter."""
    model = get_peft_model(model or Model(), config(**settings), adapter_name=adapter)
    qrlora.freeze(model, adapter)
    return model


def learn(model, steps=4, **optimizer):
    held = [x for x in model.parameters() if x.requires_grad]
    optimizer = torch.optim.AdamW(held, lr=1e-2)
    losses, generator = [], torch.Generator().manual_seed(3)
    for _ in range(steps):
        loss = (model(torch.randn(4, 12, generator=generator)) - 1).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def factors(model, adapter="default"):
    """{layer: (A, B, W)}, matrices."""
    found = {}
    for name, layer in model.named_modules():
        if adapter in getattr(layer, "lora_A", ()):
            W = weight_of_peft_layer(layer.get_base_layer(), getattr(layer, "fan_in_fan_out", False))
            found[name.rpartition(".")[2]] = (
                layer.lora_A[adapter].weight.flatten(1),
                layer.lora_B[adapter].weight.flatten(1),
                W,
            )
    return found


def spans(A, W, atol=1e-5):
    V = torch.linalg.svd(W.double(), full_matrices=False).Vh[: len(A)]
    torch.testing.assert_close(A.T.double() @ A.double(), V.T @ V, rtol=0, atol=atol)


def test_A_is_each_layers_leading_subspace_and_B_alone_learns():
    model = worn()
    base = {name: x.clone() for name, x in model.state_dict().items() if "lora_" not in name}
    before = {name: A.clone() for name, (A, _, _) in factors(model).items()}
    assert before.keys() == set(TARGETS)
    assert {name.split(".")[-3] for name, x in model.named_parameters() if x.requires_grad} == {"lora_B"}
    losses = learn(model)
    assert losses[-1] < losses[0]
    for name, (A, B, W) in factors(model).items():
        spans(A, W)
        assert torch.equal(A, before[name]) and B.any() and A.dtype == B.dtype == torch.float32
    assert all(torch.equal(base[name], x) for name, x in model.state_dict().items() if name in base)


def test_the_first_loss_is_the_free_loras_to_the_last_bit():
    ours, free = Model(), Model()
    free.load_state_dict(ours.state_dict())
    assert learn(worn(ours), 1) == learn(get_peft_model(free, config()), 1)


def test_what_switches_adapters_on_and_off_does_not_wake_A():
    model = worn()
    model.add_adapter("other", config())
    qrlora.freeze(model, "other")
    model.set_adapter("other")
    model.requires_grad_(True)
    model.set_adapter("default")
    with model.disable_adapter():
        pass
    model.base_model.enable_adapter_layers()
    assert not [name for name, _ in model.named_parameters() if "lora_A" in name]
    first, second = factors(model), factors(model, "other")
    assert all(torch.equal(first[name][0], second[name][0]) for name in first)
    model.delete_adapter("other")
    assert not factors(model, "other") and learn(model)[-1] < 1e9


def test_a_saved_adapter_is_an_ordinary_lora_that_goes_on_as_it_was(tmp_path):
    """Reloaded, A is a parameter again, until `freeze`, which keeps what was learnt."""
    model = worn()
    base = Model()
    base.load_state_dict({name: x.clone() for name, x in model.unload().state_dict().items()})
    model = worn(base)
    learn(model)
    model.save_pretrained(tmp_path)
    said = model(torch.ones(2, 12))

    fresh = Model()
    fresh.load_state_dict({name: x.clone() for name, x in model.unload().state_dict().items()})
    again = PeftModel.from_pretrained(fresh, tmp_path, is_trainable=True)
    before = {name: (A.clone(), B.clone()) for name, (A, B, _) in factors(again).items()}
    assert [name for name, x in again.named_parameters() if "lora_A" in name and x.requires_grad]
    qrlora.freeze(again)
    for name, (A, B, _) in factors(again).items():
        assert torch.equal(A, before[name][0]) and torch.equal(B, before[name][1])
    assert not [name for name, _ in again.named_parameters() if "lora_A" in name]
    torch.testing.assert_close(again(torch.ones(2, 12)), said)
    merged = again.merge_and_unload()
    torch.testing.assert_close(merged(torch.ones(2, 12)), said, rtol=1e-4, atol=1e-5)


def test_freezing_twice_changes_nothing():
    model = worn()
    learn(model)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    qrlora.freeze(model)
    assert all(torch.equal(before[name], x) for name, x in model.state_dict().items())


def test_a_free_lora_cannot_go_on_frozen_nor_be_loaded_into_a_frozen_one():
    free = get_peft_model(Model(), config())
    learn(free)
    before = {name: x.clone() for name, x in free.state_dict().items()}
    with pytest.raises(ValueError, match=r"(first|turned|second|conv): its A spans \d+% of this base's directions"):
        qrlora.freeze(free)
    assert all(torch.equal(before[name], x) for name, x in free.state_dict().items())
    assert [name for name, _ in free.named_parameters() if "lora_A" in name]
    model = worn()
    with pytest.raises(ValueError, match="cannot go on as a QR-LoRA"):
        set_peft_model_state_dict(model, get_peft_model_state_dict(free))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_factors_are_float32_beside_a_base_in_16_bits(dtype):
    model = worn(Model().to(dtype))
    for A, B, W in factors(model).values():
        assert A.dtype == B.dtype == torch.float32 and W.dtype == dtype
        spans(A, W)
    model(torch.ones(2, 12, dtype=dtype)).sum().backward()


def test_a_base_quantised_by_torchao_gives_the_directions_of_its_own_numbers():
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = nn.Sequential(nn.Linear(64, 64))
    W = model[0].weight.detach().clone()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantize_(model, Int8WeightOnlyConfig())
        adapted = get_peft_model(model, config(target_modules=["0"]))
        qrlora.freeze(adapted)
        ((A, _, held),) = factors(adapted).values()
    spans(A, held)
    torch.testing.assert_close(held, W, rtol=0, atol=0.01)
    assert not torch.equal(held, W)
    adapted(torch.ones(1, 64)).sum().backward()


def test_a_base_quantised_by_hqq_or_quanto_is_read_by_its_own_dequantize():
    """Their layers keep W_q, and a subclass of Tensor; here the least that PEFT asks of them."""

    class HQQ(nn.Module):
        W_q = torch.zeros(3)

        def dequantize(self):
            return torch.arange(6.0).view(2, 3)

    class Quantised(torch.Tensor):
        def dequantize(self):
            return torch.arange(6.0).view(2, 3)

    quanto = nn.Linear(3, 2)
    quanto.weight = nn.Parameter(torch.zeros(2, 3).as_subclass(Quantised), requires_grad=False)
    for layer in (HQQ(), quanto):
        assert torch.equal(weight_of_peft_layer(layer), torch.arange(6.0).view(2, 3))


def test_ddp_sends_rank_0s_A_and_reduces_B_alone(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/at", rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(worn())
        assert learn(model)[-1] < 1e9
        buffers = {name for name, _ in model.module.named_buffers()}
        assert len([name for name in buffers if "lora_A" in name]) == len(TARGETS)
    finally:
        torch.distributed.destroy_process_group()


class Embedded(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(8, 6)
        self.attention = nn.MultiheadAttention(8, 2)


@pytest.mark.parametrize(
    ("settings", "model", "message"),
    [
        ({"target_modules": ["words"]}, Embedded, "words: a Embedding of PEFT .* is no plain LoRA"),
        ({"target_modules": ["attention"]}, Embedded, "a MultiheadAttention has no weight that PEFT .* can dequantise"),
        ({"target_modules": ["first"], "use_dora": True}, Model, "first: a DoraLinearVariant of PEFT .* is no plain"),
        ({"target_modules": ["first"], "init_lora_weights": "pissa"}, Model, "init_lora_weights='pissa' has changed"),
        ({"target_modules": ["first"], "init_lora_weights": "olora"}, Model, "init_lora_weights='olora' has changed"),
        (
            {"target_modules": ["first"], "rank": 13},
            Model,
            "first: has 12 directions, its LoRA rank 13; give it a lower",
        ),
        ({"target_modules": ["first"]}, lambda: Model().to("meta"), "first: its LoRA is on the meta device"),
    ],
)
def test_what_is_no_plain_lora_on_a_weight_is_refused_by_layer(settings, model, message):
    adapted = get_peft_model(model(), config(**settings))
    with pytest.raises(ValueError, match=message):
        qrlora.freeze(adapted)


def test_an_adapter_that_is_not_there_and_weights_that_are_no_numbers_are_refused():
    model = Model()
    model.first.weight.data[0, 0] = float("nan")
    adapted = get_peft_model(model, config(target_modules=["first"]))
    with pytest.raises(ValueError, match="has no LoRA of PEFT named 'style'; there are: default"):
        qrlora.freeze(adapted, "style")
    with pytest.raises(ValueError, match="has no LoRA of PEFT named 'default'; there are: none"):
        qrlora.freeze(Model())
    with pytest.raises(ValueError, match="first: the weight of shape .* holds NaN or infinity"):
        qrlora.freeze(adapted)


@pytest.fixture
def frozen(monkeypatch):
    """`freeze_every_peft_lora`, until the end of a test."""
    from peft.tuners.lora import LoraModel

    monkeypatch.setattr(LoraModel, "inject_adapter", LoraModel.inject_adapter)
    return freeze_every_peft_lora()


def test_everywhere_freezes_what_will_be_trained_and_leaves_what_only_infers_or_waits_for_a_file(frozen, tmp_path):
    model = get_peft_model(Model(), config())
    assert frozen == ["default"] and not [name for name, _ in model.named_parameters() if "lora_A" in name]
    model.add_adapter("more", config())
    assert frozen == ["default", "more"]
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(Model(), tmp_path)
    waiting = PeftModel.from_pretrained(Model(), tmp_path, low_cpu_mem_usage=True)
    assert frozen == ["default", "more"]
    for other in (loaded, waiting):
        assert [name for name, _ in other.named_parameters() if "lora_A" in name]


def test_a_peft_without_the_function_that_is_overridden_is_refused_with_its_version(monkeypatch):
    from peft.tuners.tuners_utils import BaseTuner

    monkeypatch.delattr(BaseTuner, "inject_adapter")
    with pytest.raises(
        ValueError, match=rf"peft {peft.__version__}: LoraModel has no inject_adapter\(\), which qrlora"
    ):
        freeze_every_peft_lora()


SCRIPT = """
import sys, torch
from beside import add
model = add()
names = [name for name, x in model.named_parameters() if x.requires_grad]
print(__name__, sys.argv[1:], names)
"""
BESIDE = """
import torch
from peft import LoraConfig, get_peft_model
def add():
    return get_peft_model(torch.nn.Sequential(torch.nn.Linear(4, 4)), LoraConfig(r=2, target_modules=["0"]))
"""


@pytest.fixture
def launched(monkeypatch, frozen):
    """`main`, and the interpreter as it was afterwards."""
    from qrlora.trainers.peft import main

    monkeypatch.setattr(sys, "argv", [*sys.argv])
    monkeypatch.setattr(sys, "path", [*sys.path])
    return main


def test_a_script_that_nobody_edits_is_run_frozen(tmp_path, launched, capsys):
    """As `accelerate launch -m qrlora.trainers.peft SCRIPT ...` starts it."""
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "beside.py").write_text(BESIDE)
    launched([str(tmp_path / "script.py"), "--rank", "2"])
    assert capsys.readouterr().out.startswith("__main__ ['--rank', '2'] ['base_model.model.0.lora_B.default.weight']")


def test_a_script_that_is_not_there_or_adds_no_lora_is_told(tmp_path, launched):
    (tmp_path / "nothing.py").write_text("")
    with pytest.warns(UserWarning, match="nothing.py added no LoRA with PEFT to train: nothing was frozen"):
        launched([str(tmp_path / "nothing.py")])
    with pytest.raises(SystemExit, match="no script 'none.py'"):
        launched(["none.py"])
    with pytest.raises(SystemExit, match="usage: python -m qrlora.trainers.peft SCRIPT"):
        launched([])
