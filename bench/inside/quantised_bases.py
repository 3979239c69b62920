"""`qrlora.freeze` beside real quantised layers on CPU: A against a float64 SVD of what PEFT dequantises.

PYTHONPATH=src PYTHON bench/inside/quantised_bases.py     # with bitsandbytes, hqq, optimum-quanto and torchao
"""

import os
import tempfile
import warnings
from collections.abc import Callable

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from watch import span_error

import qrlora
from qrlora.trainers.peft import weight_of_peft_layer

SIZE = 64
W = torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(0)) @ torch.linspace(1, 0.02, SIZE).diag()


def plain() -> nn.Module:
    layer = nn.Linear(SIZE, SIZE, bias=False)
    layer.weight.data.copy_(W)
    return layer


def nf4() -> nn.Module:
    import bitsandbytes as bnb

    layer = bnb.nn.Linear4bit(SIZE, SIZE, bias=False, quant_type="nf4", compute_dtype=torch.float32)
    layer.weight = bnb.nn.Params4bit(W.clone(), requires_grad=False, quant_type="nf4")
    return layer.to("cpu")


def int8() -> nn.Module:
    import bitsandbytes as bnb

    layer = bnb.nn.Linear8bitLt(SIZE, SIZE, bias=False, has_fp16_weights=False)
    layer.weight = bnb.nn.Int8Params(W.clone(), requires_grad=False, has_fp16_weights=False)
    return layer.to("cpu")


def hqq() -> nn.Module:
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    return HQQLinear(plain(), BaseQuantizeConfig(nbits=4, group_size=32), compute_dtype=torch.float32, device="cpu")


def quanto() -> nn.Module:
    from optimum.quanto import freeze, qint8, quantize

    model = nn.Sequential(plain())
    quantize(model, weights=qint8)
    freeze(model)
    return model[0]


def torchao() -> nn.Module:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = nn.Sequential(plain())
    quantize_(model, Int8WeightOnlyConfig())
    return model[0]


def row(make: Callable[[], nn.Module]) -> str:
    model = get_peft_model(nn.Sequential(make()), LoraConfig(r=4, lora_alpha=4, target_modules=["0"]))
    qrlora.freeze(model)
    (layer,) = (x for x in model.modules() if hasattr(x, "lora_A"))
    held = weight_of_peft_layer(layer.get_base_layer()).float()
    learning = [x for x in model.parameters() if x.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-2)
    x, losses = torch.randn(8, SIZE), []
    for _ in range(5):
        loss = (model(x) - 1).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    error, off = span_error(layer.lora_A["default"].weight, held), float((held - W).norm() / W.norm())
    numbers = sum(x.numel() for x in learning)
    return f"A {error:.0e}, weight {off:.3f} off, {numbers} numbers, loss {losses[0]:.2f} -> {losses[-1]:.2f}"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as cache:
        os.environ["QRLORA_CACHE"] = cache
        for make in (plain, nf4, int8, hqq, quanto, torchao):
            print(f"{make.__name__}: {row(make)}", flush=True)
