"""A setting that changes nothing is named, or refused, and not passed over in silence."""

from dataclasses import replace

import pytest
import torch

from qrlora.injection import inject
from qrlora.training import train
from test_training import settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slot": 10**9}, "slot=1000000000 changes nothing with method=qr: it is for ortha"),
        ({"slot": 0, "role": "style", "prompt": "a cat in <s> style"}, "slot=0 changes nothing with method=qr"),
        ({"slot": 2, "method": "lora"}, "slot=2 changes nothing with method=lora"),
        ({"slot": 2, "method": "peft:dora"}, "slot=2 changes nothing with method=peft:dora"),
        ({"preview_prompt": "a <c> at night"}, "preview_prompt='a <c> at night' changes nothing without previews"),
    ],
)
def test_a_setting_that_changes_nothing_in_a_training_is_named_and_the_recipe_goes_on(tmp_path, changes, message):
    with pytest.warns(UserWarning, match=message) as caught:
        train(settings(tmp_path, **{"steps": 1, **changes}))
    assert len(caught) == 1 and len(str(caught[0].message).splitlines()) == 1
    assert (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("name", ["preview_every", "adapter_every"])
def test_what_is_to_come_after_more_updates_than_there_are_is_named(tmp_path, name):
    with pytest.warns(UserWarning, match=f"{name}=5 is beyond the last update, steps=2"):
        train(settings(tmp_path, steps=2, **{name: 5}), on_preview=lambda step, image: pytest.fail("drawn"))
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["out.safetensors"]


def test_a_config_for_another_role_has_that_roles_slot(tmp_path):
    """Also one made from the content's: two adapters of one slot are not orthogonal. A header holds the number."""
    content = settings(tmp_path, steps=1, method="ortha", rank=2)
    style = replace(
        content, role="style", trigger="<s>", prompt="a cat in <s> style", output=tmp_path / "s.safetensors"
    )
    first, second = train(content), train(style)
    assert [x.header.config["slot"] for x in (first, second)] == [0, 1]
    assert all((pair.A @ second.layers[name].A.T).abs().max() < 1e-5 for name, pair in first.layers.items())
    train(replace(content, slot=0, method="qr", output=tmp_path / "qr.safetensors"))  # as a header of qr has it


def test_a_slot_of_a_method_without_slots_is_refused_on_a_live_model():
    model = torch.nn.Sequential(torch.nn.Linear(8, 8))
    with pytest.raises(ValueError, match="slot=3 changes nothing with method=lora: it is for ortha"):
        inject(model, "0", 2, method="lora", slot=3)
    assert type(model[0]) is torch.nn.Linear
