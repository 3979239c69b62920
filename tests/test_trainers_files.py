"""Files that other trainers write with frozen directions: read, added, converted and checked like our own."""

import importlib
import warnings
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn

import qrlora
from qrlora.compat import check

pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set")


@pytest.fixture(autouse=True)
def inside_the_trainer(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent / "trainer")


class Model(nn.Module):
    """A model that no layout knows."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 16, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))

    def forward(self, x):
        x = self.conv(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x).tanh()
        return x


def copy_of(model):
    other = Model()
    other.load_state_dict(model.state_dict())
    return other


def kohya(model, file, seed=0, module="qrlora.networks.lora", dtype=torch.float32, rank=4, alpha=4):
    """Train as kohya's trainers do, and write what they write."""
    imported, wearing = importlib.import_module(module), copy_of(model)
    network = imported.create_network(1.0, rank, alpha, None, None, wearing, conv_dim="2")
    network.apply_to(None, wearing, False, True)
    groups, _ = network.prepare_optimizer_params(None, 1e-2, 1e-2)
    optimizer = torch.optim.AdamW(groups)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(4):
        (wearing(torch.randn(2, 2, 4, 4, generator=generator)) - seed).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    metadata = {"ss_network_module": module, "ss_network_dim": str(rank), "ss_network_alpha": str(alpha)}
    network.save_weights(file, dtype, metadata)
    return wearing


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_two_runs_on_one_base_add_at_their_rank_to_the_sum_of_their_updates(tmp_path, dtype):
    model, files = Model(), [tmp_path / f"{k}.safetensors" for k in range(2)]
    for k, file in enumerate(files):
        kohya(model, file, seed=k, dtype=dtype, alpha=2)
    one, other = (qrlora.load(file) for file in files)
    assert one.header.method == other.header.method == "qr"
    assert all(torch.equal(pair.A, other.layers[layer].A) for layer, pair in one.layers.items())
    both = qrlora.merge([one, other], [1.0, 0.5])
    assert both.rank == 4 and both.layers.keys() == one.layers.keys()
    tensors = [load_file(file) for file in files]
    for layer in one.layers:
        name = layer.replace(".", "_")
        (key,) = {key.split(".")[0] for key in tensors[0] if key.split(".")[0].endswith(name)}
        updates = [
            (x[f"{key}.lora_up.weight"].flatten(1).float() @ x[f"{key}.lora_down.weight"].flatten(1).float())
            * (float(x[f"{key}.alpha"]) / len(x[f"{key}.lora_down.weight"]))
            for x in tensors
        ]
        torch.testing.assert_close(both.dense(layer), updates[0] + 0.5 * updates[1], rtol=1e-4, atol=1e-5)


def test_a_model_without_a_layout_is_written_back_under_the_trainers_names(tmp_path):
    """The sum goes into the trainer's own network again, convolutions too."""
    model, files = Model(), [tmp_path / f"{k}.safetensors" for k in range(3)]
    wearing = [kohya(model, file, seed=k) for k, file in enumerate(files[:2])]
    qrlora.save(qrlora.merge([qrlora.load(file) for file in files[:2]], [1.0, 1.0]), files[2])
    theirs, written = load_file(files[0]), load_file(files[2])
    assert written.keys() == theirs.keys()
    assert {key: x.shape for key, x in written.items()} == {key: x.shape for key, x in theirs.items()}
    again = copy_of(model)
    network = importlib.import_module("networks.lora").create_network(1.0, 4, None, None, None, again, conv_dim="2")
    network.apply_to(None, again, False, True)
    network.load_weights(files[2])
    x = torch.randn(1, 2, 4, 4)
    torch.testing.assert_close(
        again.conv(x) - model.conv(x),
        sum(worn.conv(x) - model.conv(x) for worn in wearing),
        rtol=1e-4,
        atol=1e-5,
    )


def test_a_freely_learnt_file_of_the_same_trainer_stays_a_plain_lora(tmp_path):
    kohya(Model(), tmp_path / "free.safetensors", module="networks.lora")
    assert qrlora.load(tmp_path / "free.safetensors").header.method == "lora"


def test_peft_saves_files_that_add_and_load_again(tmp_path):
    base = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 12))
    state = {name: x.clone() for name, x in base.state_dict().items()}
    for k in range(2):
        fresh = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 12))
        fresh.load_state_dict(state)
        adapted = get_peft_model(fresh, LoraConfig(r=4, lora_alpha=8, target_modules=["0", "1"]))
        qrlora.freeze(adapted)
        optimizer = torch.optim.AdamW([x for x in adapted.parameters() if x.requires_grad], lr=1e-2)
        for _ in range(3):
            (adapted(torch.randn(4, 16)) - k).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        adapted.save_pretrained(tmp_path / str(k))
    one, other = (qrlora.load(tmp_path / str(k)) for k in range(2))
    both = qrlora.merge([one, other], [1.0, 1.0])
    assert one.header.method == "qr" and both.rank == 4
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fresh = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 12))
        fresh.load_state_dict(state)
        merged = PeftModel.from_pretrained(fresh, tmp_path / "0").merge_and_unload()
    torch.testing.assert_close(merged[0].weight - state["0.weight"], one.dense("0"), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(both.dense("1"), one.dense("1") + other.dense("1"), rtol=1e-4, atol=1e-6)


def test_inspecting_and_checking_take_such_a_file(tmp_path, capsys):
    from qrlora import cli

    file = tmp_path / "it.safetensors"
    kohya(Model(), file)
    with pytest.raises(SystemExit) as end:
        cli.main(["inspect", str(file)])
    said = capsys.readouterr().out
    assert not end.value.code and "qr (arXiv 2507.04599" in said
    assert load_file(file).keys() == {verdict.key for verdict in check(file, "kohya")}
