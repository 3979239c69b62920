"""Prompts of different lengths side by side: padded, and cut again where no row needs the padding."""

import pytest
import torch

from qrlora.families.condition import Condition


def told(*lengths, **more):
    """A condition of one row for each length, of one part each; the text of row k holds k + 1 everywhere."""
    texts = [torch.full((1, n, 3), k + 1.0) for k, n in enumerate(lengths)]
    return [
        Condition({"text": text, **{name: x[k : k + 1] for name, x in more.items()}}) for k, text in enumerate(texts)
    ]


def test_rows_of_one_length_are_joined_without_a_mask():
    joined = Condition.joined(told(4, 4, pooled=torch.arange(2.0)))
    assert {name: tuple(x.shape) for name, x in joined.tensors.items()} == {"text": (2, 4, 3), "pooled": (2,)}
    assert joined.mask("text") is None and joined.mask("pooled") is None


@pytest.mark.parametrize("padded", [False, True])
def test_a_shorter_text_is_padded_and_its_mask_says_where_it_ends(padded):
    """Also where a part holds padding of its own."""
    parts = told(2, 5)
    if padded:
        parts[0] = Condition.joined(told(2, 3)).rows([0, 1])
        joined = Condition.joined([parts[0], parts[1]])
        assert [len(x) for x in joined.texts("text")] == [2, 3, 5]
        return
    joined = Condition.joined(parts)
    assert joined.mask("text").tolist() == [[True] * 2 + [False] * 3, [True] * 5]
    assert joined.tensors["text"].shape == (2, 5, 3) and not joined.tensors["text"][0, 2:].any()


def test_chosen_rows_keep_no_padding_that_none_of_them_needs():
    joined = Condition.joined(told(2, 5, 4, pooled=torch.arange(3.0)))
    alone = joined.rows([0, 0])
    assert alone.mask("text") is None and torch.equal(alone.tensors["text"], torch.ones(2, 2, 3))
    two = joined.rows([0, 2])
    assert two.tensors["text"].shape == (2, 4, 3) and two.mask("text").sum(1).tolist() == [2, 4]
