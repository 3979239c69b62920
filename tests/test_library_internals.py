"""Names of other libraries that their documentation does not promise, each used in one function of ours: after an
upgrade this file says which of them is gone or has changed."""

import inspect

import pytest
import torch

from qrlora.estimate.memory_counting import cpu_flash_attention
from qrlora.families.public_configs import PUBLIC
from qrlora.families.quantization import diffusers_quantizer
from qrlora.families.single_file import conversion_of
from qrlora.injection.peft_methods import SWITCHES, UNSUPPORTED_KINDS, peft_tables


@pytest.mark.parametrize("kind", sorted({base.model_config["_class_name"] for base in PUBLIC.values()}))
def test_diffusers_converts_single_files_of_a_class_by_a_function_of_the_checkpoint(kind):
    assert conversion_of(kind) is not None, f"SINGLE_FILE_LOADABLE_CLASSES of diffusers has no {kind}"
    inspect.signature(conversion_of(kind)).bind(config={}, checkpoint={})


def test_diffusers_quantizer_has_the_hooks_that_fill_a_model_weight_by_weight():
    quantizer = diffusers_quantizer("int8", torch.bfloat16)
    calls = {
        "validate_environment": ((), {}),
        "preprocess_model": (("model",), {"device_map": None, "keep_in_fp32_modules": []}),
        "check_if_quantized_param": (("model", "value", "name", {}), {"param_device": "cpu"}),
        "create_quantized_param": (("model", "value", "name", "cpu", {}, []), {"dtype": torch.bfloat16}),
        "postprocess_model": (("model",), {}),
    }
    for name, (arguments, keywords) in calls.items():
        assert hasattr(quantizer, name), f"diffusers' quantizer has no {name}"
        inspect.signature(getattr(quantizer, name)).bind(*arguments, **keywords)


def test_peft_has_a_configuration_for_every_tuner_and_all_kinds_that_are_refused_by_name():
    configs, tuners = peft_tables()
    assert tuners.keys() <= configs.keys()
    known = {x.value.lower() for x in configs}
    assert {row.lower() for row, _ in SWITCHES.values()} <= known and UNSUPPORTED_KINDS.keys() <= known
    for tuner in (x for kind, x in tuners.items() if kind.value.lower() not in UNSUPPORTED_KINDS):
        inspect.signature(tuner).bind("model", "config", "name")


def test_attention_by_torchs_cpu_operator_is_softmax_of_the_scaled_products():
    q, k, v = torch.randn(3, 1, 2, 5, 8)
    found = cpu_flash_attention()(q, k, v, 0.0, False, attn_mask=None, scale=0.5)[0]
    torch.testing.assert_close(found, (0.5 * q @ k.mT).softmax(-1) @ v)
