"""Quantised bases: the trainable component in 4 or 8 bits a weight, its original weights read from the checkpoint.

diffusers quantises one linear layer after another while it reads the checkpoint, so that neither the whole original
nor two copies are ever in memory. Text encoders and VAE keep their dtype: they are gone before training begins.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .. import optional_dependencies
from ..devices import return_freed_memory
from ..safetensors_files import places, read_rows
from .weight_files import weight_files

LIBRARIES = {"nf4": "bitsandbytes", "int8": "torchao", "float8": "torchao"}
"""How the weights are kept -> the library that does it: 4-bit normal float (arXiv 2305.14314), or 8 bits."""


def check_quantize(quantize: str, device: torch.device) -> None:
    """Raises ValueError with the way out: an unknown word for `quantize`, a library that is not installed, nf4 without
    CUDA."""
    if not quantize:
        return
    if quantize not in LIBRARIES:
        raise ValueError(f"quantize must be one of {', '.join(LIBRARIES)} or empty, got {quantize!r}")
    if quantize == "nf4" and device.type != "cuda":
        raise ValueError(f"quantize=nf4 needs a GPU with CUDA, the device is {device}: use quantize=int8 or float8")
    optional_dependencies.require("quantize", LIBRARIES[quantize], reason=f"quantize={quantize}")


def quantization_kwargs(component: str, quantize: str, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments with which a pipeline's `from_pretrained` quantises one component; none for an empty `quantize`."""
    if not quantize:
        return {}
    import diffusers

    way = _quantization_config(quantize, dtype)
    return {"quantization_config": diffusers.PipelineQuantizationConfig(quant_mapping={component: way})}


def _quantization_config(quantize: str, dtype: torch.dtype) -> Any:
    """diffusers' configuration for quantising one model."""
    import diffusers

    if quantize == "nf4":
        return diffusers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    import torchao.quantization as torchao

    kinds = {"int8": torchao.Int8WeightOnlyConfig, "float8": torchao.Float8WeightOnlyConfig}
    return diffusers.TorchAoConfig(kinds[quantize]())


def diffusers_quantizer(quantize: str, dtype: torch.dtype) -> Any:
    """The quantizer that diffusers' loader would use. Its class and the hooks that `fill_quantised` calls are not among
    diffusers' documented names (tests/test_library_internals.py)."""
    from diffusers.quantizers import DiffusersAutoQuantizer

    return DiffusersAutoQuantizer.from_config(_quantization_config(quantize, dtype), pre_quantized=False)


def fill_quantised(model: Any, value_of: Callable[[str], Tensor], quantize: str, device: torch.device) -> None:
    """Values for a diffusers model on the meta device, quantised one after another as diffusers' loader does it; with
    an empty `quantize` in the model's own dtype.

    Args: value_of: (name of a parameter or buffer) -> its value on the device, asked for once each.
    """
    from accelerate.utils import set_module_tensor_to_device

    dtype, quantizer = model.dtype, None
    if quantize:
        quantizer = diffusers_quantizer(quantize, dtype)
        quantizer.validate_environment()
        kept = [*(model._keep_in_fp32_modules or ())]  # as they are, in float32
        quantizer.preprocess_model(model, device_map=None, keep_in_fp32_modules=kept)
    for name in list(model.state_dict()):
        value = value_of(name)
        if quantizer and quantizer.check_if_quantized_param(model, value, name, {}, param_device=device):
            quantizer.create_quantized_param(model, value, name, device, {}, [], dtype=dtype)
            del value
            return_freed_memory()  # else what was freed between the weights can come to more than they are in bfloat16
        else:
            set_module_tensor_to_device(model, name, device, value=value)
    if quantizer:
        quantizer.postprocess_model(model)
        keep_no_copies(model)
    model.requires_grad_(False)


def keep_no_copies(model: nn.Module) -> None:
    """Quantised linear layers of a model keep no unpacked weight for the backward pass from now on. torchao's would, so
    that all weights at once came to more than in bfloat16; bitsandbytes' layers, of a class of their own, unpack again
    already."""
    for layer in model.modules():
        if type(layer) is nn.Linear and is_traceable_wrapper_subclass(layer.weight):
            layer.__class__ = QuantizedLinear


class QuantizedLinear(nn.Linear):
    """A linear layer whose frozen weight is a tensor of torchao's, of few bits a number."""

    def forward(self, input: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and input.requires_grad):
            return super().forward(input)
        return Unpacked.apply(input, self.weight, self.bias)  # pyright: ignore[reportReturnType]


class Unpacked(torch.autograd.Function):
    """x W^T + b with frozen W (o, i) and b; W is unpacked in each pass anew, and kept as it is stored."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
        ctx.save_for_backward(W)
        return functional.linear(x, W, b)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (W,), (g,) = ctx.saved_tensors, gradients
        return g @ W.dequantize().to(g.dtype), None, None


def original_weights(folder: Path, variant: str = "") -> Callable[[str], Tensor]:
    """(layer) -> its weight (o, i) as a component's checkpoint stores it, read from disk at each call.

    Args:    folder: of the component.  variant: of the files to read, as `weight_files` takes it.
    Raises:  OSError: no such file.  ValueError: damaged; when called: without that layer.
    """
    files = weight_files(folder, variant)
    if not files:
        raise FileNotFoundError(f"{folder} has no weights as safetensors: the original ones are needed")
    held = {name: (file, place) for file in files for name, place in places(file).items()}

    def read(layer: str) -> Tensor:
        """One layer's original weight, read from the checkpoint of the quantised base."""
        if f"{layer}.weight" not in held:
            raise ValueError(f"{files[0]} has no tensor {f'{layer}.weight'!r}")
        file, place = held[f"{layer}.weight"]
        return read_rows(file, [(place, 0, place.shape[0])])

    return read
