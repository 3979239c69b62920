"""Parameters of merging rules: typed, checked against its signature, the same in Python and on the command line."""

import pytest
import torch

from commands import run
from qrlora import files, merge
from qrlora.adapter import Adapter, Header, Pair
from qrlora.merging import RULES
from qrlora.merging.rule_parameters import rule_parameters


def adapters(n=2):
    generator = torch.Generator().manual_seed(0)
    header = Header(method="lora", rank=2)
    pairs = [Pair(torch.randn(2, 6, generator=generator), torch.randn(5, 2, generator=generator)) for _ in range(n)]
    return [Adapter({"a": pair}, header) for pair in pairs]


def test_a_density_of_one_keeps_every_entry_and_a_smaller_one_that_share():
    """Of one adapter, TIES and KnOTS at density 1 are the adapter; TIES at 0.2 keeps 6 of 30 entries, cut to rank."""
    (one,) = adapters(1)
    for rule in ("ties", "knots"):
        torch.testing.assert_close(merge([one], [1.0], rule, density=1.0).dense("a"), one.dense("a"))
    sparse = merge([one], [1.0], "ties", density=0.2)
    largest = one.dense("a").flatten().abs().topk(6)
    kept = torch.zeros(30).scatter(0, largest.indices, one.dense("a").flatten()[largest.indices]).view(5, 6)
    u, s, vh = torch.linalg.svd(kept)
    torch.testing.assert_close(sparse.dense("a"), (u[:, :2] * s[:2]) @ vh[:2])
    assert sparse.header.config["density"] == 0.2


def test_dare_that_drops_nothing_is_the_sum():
    both = adapters()
    summed = both[0].dense("a") + 0.5 * both[1].dense("a")
    torch.testing.assert_close(merge(both, [1.0, 0.5], "dare", drop=0.0).dense("a"), summed)
    seeds = [merge(both, [1.0, 1.0], "dare", seed=seed).dense("a") for seed in (0, 0, 1)]
    assert torch.equal(seeds[0], seeds[1]) and not torch.equal(seeds[0], seeds[2])


WRONG = [
    ("ties", {"densty": 0.3}, "no parameter 'densty'; rule 'ties' takes density .a number, 0.2 by default."),
    ("ties", {"density": "many"}, "density must be a number, got 'many'; rule 'ties' takes density"),
    ("ties", {"density": True}, "density must be a number, got True"),
    ("ties", {"density": float("nan")}, "density must be a number, got nan"),
    ("ties", {"density": 0.0}, "0 < density <= 1, got 0"),
    ("knots", {"density": 1.5}, "0 < density <= 1, got 1.5"),
    ("dare", {"seed": 0.5}, "seed must be a whole number, got 0.5; rule 'dare' takes drop .*, seed .a whole number, 0"),
    ("dare", {"seed": -1}, "seed must be 0 or more, got -1"),
    ("dare", {"drop": 1.0}, "0 <= drop < 1, got 1"),
    ("stack", {"density": 0.3}, "no parameter 'density'; rule 'stack' takes no parameters"),
]


@pytest.mark.parametrize("rule, values, message", WRONG)
def test_a_parameter_that_a_rule_does_not_take_is_refused_with_its_list(rule, values, message):
    with pytest.raises(ValueError, match=message):
        merge(adapters(), [1.0, 1.0], rule, **values)


def test_every_parameter_of_every_rule_has_a_type_and_a_default_that_passes():
    for name, rule in RULES.items():
        defaults = {x: p.default for x, p in rule_parameters(rule).items()}
        if defaults:
            same = merge(adapters(), [1.0, 1.0], name, **defaults), merge(adapters(), [1.0, 1.0], name)
            assert torch.equal(same[0].dense("a"), same[1].dense("a"))


def test_set_on_the_command_line_is_the_keyword_of_merge(studio, tmp_path, capsys):
    inputs = [studio / "dog.safetensors", studio / "cat.safetensors"]
    words = ["merge", *inputs, "-o", tmp_path / "a.safetensors", "--rule"]
    code, _, err = run(capsys, *words, "dare", "--set", "drop=0.5", "--set", "seed=3")
    assert code == 0, err
    ours = merge([files.load(x) for x in inputs], [1.0, 1.0], "dare", drop=0.5, seed=3)
    theirs = files.load(tmp_path / "a.safetensors")
    assert all(torch.equal(ours.dense(layer), theirs.dense(layer)) for layer in ours.layers)
    assert theirs.header.config["drop"] == 0.5 and theirs.header.config["seed"] == 3
    for wrong, message in (
        ("drop=half", "drop must be a number"),
        ("seed=1.5", "whole number"),
        ("drop", "NAME=VALUE"),
    ):
        code, _, err = run(capsys, *words, "dare", "--set", wrong, "--overwrite")
        assert code == 2 and message in err and err.count("\n") == 1


def test_the_rule_plain_is_peft_linear_now(studio, tmp_path, capsys):
    both = adapters()
    with pytest.warns(DeprecationWarning, match="rule='plain' is now 'peft-linear'; the old name goes with 0.3"):
        old = merge(both, [1.0, 1.0], "plain")
    assert torch.equal(old.dense("a"), merge(both, [1.0, 1.0], "peft-linear").dense("a"))
    assert old.header.config["rule"] == old.header.method == "peft-linear"
    output = tmp_path / "a.safetensors"
    code, _, err = run(capsys, "merge", studio / "dog.safetensors", "--rule", "plain", "-o", output)
    assert code == 0 and err == "warning: --rule plain is now --rule peft-linear; the old name goes with 0.3\n"
    assert files.read_header(output).config["rule"] == "peft-linear"
