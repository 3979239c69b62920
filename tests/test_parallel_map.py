"""Work beside each other: the same answers in the same order, and the machine as it was."""

import threading

import pytest
import torch

from qrlora.basis import compute_basis
from qrlora.linalg import all_singular_vectors
from qrlora.parallel_map import MAX_WORKERS, parallel_map


@pytest.fixture(autouse=True)
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def test_answers_come_in_order_from_several_threads_and_the_setting_comes_back():
    """Each waits until MOST of them are at work, which one thread alone would never see."""
    together = threading.Barrier(MAX_WORKERS, timeout=20)

    def work(k):
        together.wait()
        return k, torch.get_num_threads(), threading.get_ident()

    told = list(parallel_map(work, range(2 * MAX_WORKERS)))
    assert [k for k, _, _ in told] == list(range(2 * MAX_WORKERS))
    assert {threads for _, threads, _ in told} == {4 // MAX_WORKERS} and len({who for _, _, who in told}) == MAX_WORKERS
    assert torch.get_num_threads() == 4


def test_things_are_fetched_when_their_turn_is_near():
    """No more are held than are worked on and one more, however many there are."""
    fetched = []

    def things():
        for k in range(100):
            fetched.append(k)
            yield k

    for done, _ in enumerate(parallel_map(lambda k: k, things())):
        assert len(fetched) <= done + MAX_WORKERS + 1


@pytest.mark.parametrize("threads", [1, 4])
def test_a_failure_is_raised_and_what_has_not_begun_is_left(threads):
    torch.set_num_threads(threads)
    begun = []

    def work(k):
        begun.append(k)
        if k == 1:
            raise ValueError("no")
        return k

    with pytest.raises(ValueError, match="no"):
        list(parallel_map(work, range(100)))
    assert len(begun) <= 2 + 2 * MAX_WORKERS and torch.get_num_threads() == threads


def test_bases_of_several_layers_at_once_are_the_leading_directions_of_each():
    generator = torch.Generator().manual_seed(0)
    weights = [(f"layer{k}", torch.randn(40 + k, 30, generator=generator)) for k in range(9)]
    weights.append(("large", torch.randn(900, 800, generator=generator)))
    basis = compute_basis(weights, 4)
    assert list(basis.Q) == [layer for layer, _ in weights]
    for layer, weight in weights:
        exact = all_singular_vectors(weight)[:, :4]
        assert ((exact.T @ basis.Q[layer].double()).square().sum() / 4) > 0.999
    with pytest.raises(ValueError, match="layer3: .*NaN"):
        compute_basis([(n, w * float("nan") if n == "layer3" else w) for n, w in weights], 4)
