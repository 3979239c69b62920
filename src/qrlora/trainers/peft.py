"""QR-LoRA for whatever injects LoRAs with PEFT: `freeze` after it, or a whole script that nobody edits.

    accelerate launch -m qrlora.trainers.peft train_dreambooth_lora_sdxl.py --rank 64 ...

Letters: W (o, i).
"""

import functools
import runpy
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
from peft.tuners.lora import LoraLayer, LoraModel
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn

from ..files.peft_config import BESIDE
from .freeze_lora import AdaptedLayer, freeze_layers


def freeze(model: nn.Module, adapter: str = "default") -> None:
    """Freeze an adapter that PEFT has just added: it becomes a QR-LoRA, A = Q^T a buffer, and B zero, both float32.

    Call it after `get_peft_model` or `add_adapter` and before the optimizer is made. A trained adapter, such as a
    loaded one, keeps its A and B if it was a QR-LoRA of this base.

    Args:   model: of any library; its base may be quantised, if PEFT can dequantise it.
    Raises: ValueError: no such adapter, a layer with more than a plain A and B or that began within the weight, naming
            it; and as `freeze_lora.freeze_layers`.
    """
    config = getattr(model, "peft_config", {}).get(adapter)
    begun = getattr(config, "init_lora_weights", True)
    if str(begun).lower() not in BESIDE:
        raise ValueError(f"init_lora_weights={begun!r} has changed the base's weights; use init_lora_weights=True")
    adapted = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    layers = [_adapted_layer(name, module, adapter) for name, module in adapted.items() if adapter in _adapters(module)]
    if not layers:
        others = sorted({other for module in adapted.values() for other in _adapters(module)})
        raise ValueError(f"the model has no LoRA of PEFT named {adapter!r}; there are: {', '.join(others) or 'none'}")
    freeze_layers(layers)


def freeze_every_peft_lora() -> list[str]:
    """From here on `freeze` every LoRA that PEFT adds to train it.

    What only infers is left as it is, and so is what waits on the meta device for its file: for both a file follows.

    Returns: the names of the adapters frozen, which grow.
    Raises:  ValueError: a PEFT without the function that adds adapters.
    """
    inject = getattr(LoraModel, "inject_adapter", None)
    if inject is None:
        raise ValueError(f"peft {peft.__version__}: LoraModel has no inject_adapter(), which qrlora overrides")
    frozen: list[str] = []

    @functools.wraps(inject)
    def injected(self: Any, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """PEFT's inject_adapter, after which the new LoRA is frozen."""
        inject(self, model, adapter_name, *args, **kwargs)
        mine = [x for name, x in model.named_parameters() if f".lora_A.{adapter_name}." in name]
        if not self.peft_config[adapter_name].inference_mode and not any(A.is_meta for A in mine):
            freeze(model, adapter_name)
            frozen.append(adapter_name)

    LoraModel.inject_adapter = injected
    return frozen


def weight_of_peft_layer(base: nn.Module, transposed: bool = False) -> Tensor:
    """W (o, i) of a layer under PEFT in floats, whoever has quantised it. Raises ValueError: PEFT cannot read it."""
    if not isinstance(getattr(base, "weight", None), Tensor) and not hasattr(base, "W_q"):
        raise ValueError(f"a {type(base).__name__} has no weight that PEFT {peft.__version__} can dequantise")
    W = dequantize_module_weight(base).detach()
    if type(W) is not Tensor:  # quanto's, which PEFT leaves to its own layers
        W = W.dequantize()
    return W.T if transposed else W.flatten(1)


def main(arguments: Sequence[str]) -> None:
    """Run a Python script as if by itself, with every LoRA that it adds by PEFT frozen."""
    if not arguments or not Path(arguments[0]).is_file():
        raise SystemExit(f"usage: python -m qrlora.trainers.peft SCRIPT ...; no script {(arguments or [''])[0]!r}")
    frozen = freeze_every_peft_lora()
    sys.argv = [*arguments]
    sys.path[0] = str(Path(arguments[0]).resolve().parent)
    runpy.run_path(arguments[0], run_name="__main__")
    if not frozen:
        warnings.warn(f"{arguments[0]} added no LoRA with PEFT to train: nothing was frozen", stacklevel=2)


def _adapters(module: Any) -> list[str]:
    return [*module.lora_A, *module.lora_embedding_A]


def _adapted_layer(name: str, module: Any, adapter: str) -> AdaptedLayer:
    """A layer with a LoRA of PEFT. Raises ValueError: an embedding's, a parameter's, or one that does more than B A."""
    more = getattr(module, "lora_variant", {}).get(adapter)
    if adapter not in module.lora_A or hasattr(module, "parameter_name") or more:
        kind = type(more or module).__name__
        raise ValueError(
            f"{name}: a {kind} of PEFT {peft.__version__} is no plain LoRA of a layer's weight; leave it out"
        )
    weight = functools.partial(weight_of_peft_layer, module.get_base_layer(), getattr(module, "fan_in_fan_out", False))
    return AdaptedLayer(name.removeprefix("base_model.model."), module.lora_A[adapter], module.lora_B[adapter], weight)


if __name__ == "__main__":
    main(sys.argv[1:])
