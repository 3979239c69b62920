"""QR-LoRA in ai-toolkit, as an extension: a file `extensions/qrlora/__init__.py` of one line,

    from qrlora.trainers.ai_toolkit import AI_TOOLKIT_EXTENSIONS

and `type: qrlora` in place of `type: diffusion_trainer` in a job's yaml. Written against ai-toolkit 0.12.
"""

import functools
import importlib
from typing import Any

from .freeze_lora import AdaptedLayer, freeze_layers
from .kohya import check_kohya_network, pairs_of
from .peft import weight_of_peft_layer

TRAINER = "extensions_built_in.sd_trainer.DiffusionTrainer"


class QRLoRA:
    """What ai-toolkit asks of an extension."""

    uid = "qrlora"
    name = "QR-LoRA"

    @classmethod
    def get_process(cls) -> type:
        """ai-toolkit's own trainer, whose network is frozen when it and what it resumes from are there.

        Raises: ValueError: an ai-toolkit whose trainer has no place for that.
        """
        theirs = importlib.import_module(TRAINER).DiffusionTrainer
        if not hasattr(theirs, "hook_add_extra_train_params"):
            version = getattr(importlib.import_module("version"), "VERSION", "unknown")
            raise ValueError(
                f"ai-toolkit {version}: DiffusionTrainer has no hook_add_extra_train_params(), which qrlora overrides"
            )

        def hook_add_extra_train_params(self: Any, params: list[dict[str, Any]]) -> list[dict[str, Any]]:
            return freeze_ai_toolkit_network(self.network, theirs.hook_add_extra_train_params(self, params))

        return type("QRLoRATrainer", (theirs,), {"hook_add_extra_train_params": hook_add_extra_train_params})


def freeze_ai_toolkit_network(network: Any, params: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Freeze a network of ai-toolkit.

    Returns: the optimizer's groups without its A.
    Raises:  ValueError: no network; one that is no plain LoRA's; as `freeze_layers`.
    """
    if network is None:
        raise ValueError("type: qrlora needs a network of type lora in the job's yaml")
    check_kohya_network(network)
    loras = [*network.text_encoder_loras, *network.unet_loras]
    layers = [
        AdaptedLayer(lora.lora_name, *pair, functools.partial(weight_of_peft_layer, lora.org_module[0]))
        for lora in loras
        for pair in pairs_of(lora)
    ]
    frozen = {id(layer.down.weight) for layer in layers}
    freeze_layers(layers)
    return [{**group, "params": [x for x in group["params"] if id(x) not in frozen]} for group in params]


AI_TOOLKIT_EXTENSIONS = [QRLoRA]
