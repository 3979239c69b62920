"""Bases: what they span, how they are told apart, how they are kept."""

import errno
import os

import pytest
import torch

from qrlora.basis import (
    Basis,
    Weights,
    cache_folder,
    cached_basis,
    compute_basis,
    fingerprint,
    load_basis,
    same_base,
    save_basis,
    weights_key,
)
from qrlora.lanczos import TOLERANCE
from qrlora.linalg import leading_subspace


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("QRLORA_CACHE", str(tmp_path / "cache"))


def some_weights(seed=0, count=3, o=12, i=10):
    generator = torch.Generator().manual_seed(seed)
    return [(f"blocks.{k}.to_q", torch.randn(o, i, generator=generator)) for k in range(count)]


@pytest.mark.parametrize("side", ["input", "output"])
def test_a_basis_is_the_leading_subspace_of_every_layer(side):
    seen = []
    basis = compute_basis(iter(some_weights()), 4, side, progress=seen.append)
    assert seen == list(basis.Q) and (basis.rank, basis.side) == (4, side)
    for layer, weight in some_weights():
        assert torch.equal(basis.Q[layer], leading_subspace(weight, 4, side))


def test_a_truncated_basis_is_the_basis_of_the_lower_rank():
    basis = compute_basis(some_weights(), 6)
    assert basis.truncate(2).digest == compute_basis(some_weights(), 2).digest
    with pytest.raises(ValueError, match=r"1\.\.6 .* got 7"):
        basis.truncate(7)


def test_the_digest_sees_one_bit_a_name_and_the_side():
    basis = compute_basis(some_weights(), 4)
    bent = {layer: Q.clone() for layer, Q in basis.Q.items()}
    bent["blocks.1.to_q"].view(torch.int32)[0, 0] ^= 1
    renamed = {layer.replace("0", "9"): Q for layer, Q in basis.Q.items()}
    others = (Basis(bent, 4, "input"), Basis(renamed, 4, "input"), Basis(basis.Q, 4, "output"))
    assert len({basis.digest, *(other.digest for other in others)}) == 4
    assert Basis(dict(reversed(basis.Q.items())), 4, "input").digest == basis.digest


@pytest.mark.parametrize(
    ("rank", "weight", "message"),
    [(11, torch.ones(12, 10), "x.to_q: rank must lie in 1..10"), (2, torch.full((4, 4), torch.nan), "x.to_q: .*NaN")],
)
def test_a_layer_without_such_a_basis_is_named(rank, weight, message):
    with pytest.raises(ValueError, match=message):
        compute_basis([("x.to_q", weight)], rank)


def test_no_layers_have_no_basis():
    with pytest.raises(ValueError, match="at least one layer"):
        compute_basis([], 2)


def test_a_basis_is_computed_once():
    seen = []
    first = cached_basis(some_weights(), 4, progress=seen.append)
    again = cached_basis(some_weights(), 4, progress=seen.append)
    assert len(seen) == 3 and again.digest == first.digest == load_basis(first.digest).digest


def test_another_weight_rank_or_side_is_another_basis():
    digests = [
        cached_basis(weights, rank, side).digest
        for weights, rank, side in (
            (some_weights(), 4, "input"),
            (some_weights(1), 4, "input"),
            (some_weights(), 3, "input"),
            (some_weights(), 4, "output"),
        )
    ]
    assert len(set(digests)) == 4


def test_a_damaged_cache_is_computed_again_with_one_warning():
    basis = cached_basis(some_weights(), 4)
    (path,) = cache_folder().glob("*.safetensors")
    whole = path.read_bytes()
    for damage in (whole[:-3], whole[:-1] + bytes([whole[-1] ^ 1]), b""):
        path.write_bytes(damage)
        with pytest.warns(UserWarning, match="computed again") as caught:
            assert cached_basis(some_weights(), 4).digest == basis.digest
        assert len(caught) == 1 and path.read_bytes() == whole
    path.unlink()
    with pytest.warns(UserWarning, match="computed again"):
        cached_basis(some_weights(), 4)


@pytest.mark.parametrize("cache", ["a file", "read-only", "unreadable", "full"])
def test_a_cache_that_cannot_be_written_is_done_without_with_one_warning(
    tmp_path, monkeypatch, permissions_count, cache
):
    """The directions are the ones that would be computed, at the rank asked for; nothing is left behind."""
    if cache == "a file":
        cache_folder().parent.write_text("no folder")
    elif cache == "full":

        def full(*_):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "posix_fallocate", full)
    else:
        cache_folder().mkdir(parents=True)
        cache_folder().chmod(0o555 if cache == "read-only" else 0)
    with pytest.warns(UserWarning, match="set QRLORA_CACHE to a folder that can be written") as caught:
        basis = cached_basis(some_weights(), 3)
    assert len(caught) == 1 and basis.digest == compute_basis(some_weights(), 3).digest
    if cache_folder().is_dir():
        cache_folder().chmod(0o755)
    assert not list(cache_folder().parent.rglob("*.*"))


def test_what_a_read_only_cache_holds_is_used(permissions_count):
    """One that an administrator has filled: nothing is said where nothing need be written."""
    basis = cached_basis(some_weights(), 4)
    cache_folder().chmod(0o555)
    assert cached_basis(some_weights(), 4, progress=pytest.fail).digest == basis.digest
    with pytest.warns(UserWarning, match="QRLORA_CACHE") as caught:
        smaller = cached_basis(some_weights(), 2, progress=pytest.fail)
    assert len(caught) == 1 and smaller.digest == compute_basis(some_weights(), 2).digest
    with pytest.warns(UserWarning, match="QRLORA_CACHE") as caught:
        other = cached_basis(some_weights(), 4, "output")
    assert len(caught) == 1 and other.digest == compute_basis(some_weights(), 4, "output").digest


def test_what_the_directions_lack_is_measured_kept_and_passed_on():
    """The layer that lacks most counts; small layers lack nothing, for all their eigenvectors are found."""
    large = ("large", torch.randn(800, 800, generator=torch.Generator().manual_seed(0)))
    weights = [*some_weights(), large]
    computed = compute_basis(weights, 4)
    assert computed.lost is not None and 0 < computed.lost <= TOLERANCE
    assert computed.lost == cached_basis(weights, 4).lost == cached_basis(weights, 3).lost
    assert computed.truncate(2).lost == computed.lost and compute_basis(some_weights(), 4).lost == 0


WRONG_RECORDS = [
    "{",
    "[]",
    "null",
    '{"x": {}}',
    '{"64": null}',
    '{"64": {"file": "x"}}',
    "[" * 100_000,
    "\x00",
    "\udcff",
]
WRONG_RECORDS += ['{"64": {"file": 5, "checksum": 1, "lost": 0.0, "digests": {}}}']
WRONG_RECORDS += ['{"64": {"file": "x", "checksum": 1, "lost": 0.0, "digests": 5}}']


@pytest.mark.parametrize("text", WRONG_RECORDS, ids=lambda text: ascii(text[:60]))
def test_a_damaged_record_is_written_anew_with_one_warning(text):
    digest = cached_basis(some_weights(), 4).digest
    (record,) = cache_folder().glob("*.json")
    record.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.warns(UserWarning, match="computed again") as caught:
        assert cached_basis(some_weights(), 4).digest == digest
    assert len(caught) == 1 and cached_basis(some_weights(), 4).digest == digest


def test_a_smaller_rank_is_read_from_a_larger_one_and_is_the_one_that_would_be_computed():
    """Whatever was asked first: the digest of a rank does not depend on it."""
    seen = []
    large = cached_basis(some_weights(), 8, progress=seen.append)
    small = cached_basis(some_weights(), 3, progress=seen.append)
    assert len(seen) == 3 and small.rank == 3
    assert all(torch.equal(small.Q[layer], Q[:, :3]) for layer, Q in large.Q.items())
    assert small.digest == compute_basis(some_weights(), 3).digest == load_basis(small.digest).digest
    assert cached_basis(some_weights(), 3).digest == Basis(small.Q, 3, "input").digest
    with pytest.raises(ValueError, match=r"blocks.0.to_q: rank must lie in 1\.\.10.* got 11"):
        cached_basis(some_weights(), 11)


def test_a_rank_above_what_is_kept_is_computed_and_kept_beside_it():
    weights = [("a", torch.randn(100, 100, generator=torch.Generator().manual_seed(0)))]
    seen = []
    digests = [cached_basis(weights, rank, progress=seen.append).digest for rank in (64, 65, 64, 100)]
    assert len(seen) == 2 and digests[0] == digests[2] == compute_basis(weights, 64).digest
    assert cached_basis(weights, 65, progress=seen.append).digest == compute_basis(weights, 65).digest


def test_a_known_base_is_told_by_its_samples_alone_and_any_spread_change_is_another():
    """A fine-tune in 16 bits that moves one entry in a thousand, a block of one row in sixty-four, another dtype."""
    weight = torch.randn(256, 256, generator=torch.Generator().manual_seed(0)).half()
    sparse, rows = weight.clone(), weight.clone()
    sparse.view(torch.int16)[torch.rand(256, 256, generator=torch.Generator().manual_seed(1)) < 1e-3] ^= 1
    rows[37:41] *= 1.01
    changed = [weight, sparse, rows, weight.float(), weight.T.contiguous()]
    keys = [weights_key([("a", x)], "input") for x in changed] + [weights_key([("a", weight)], "output")]
    assert len(set(keys)) == 6 and weights_key([("b", weight)], "input") not in keys
    assert weights_key([("a", weight.T.contiguous().T)], "input") == keys[0]


def test_a_fingerprint_reads_only_the_layers_that_it_names():
    layers, read = dict(some_weights(count=60)), []

    def one(layer):
        read.append(layer)
        return layers[layer]

    shapes = {name: tuple(weight.shape) for name, weight in layers.items()}
    assert fingerprint(Weights(shapes, one)) == fingerprint(layers.items()) and len(read) == 16


def test_a_basis_is_found_by_its_digest_alone():
    basis = compute_basis(some_weights(), 4, "output")
    save_basis(basis)
    found = load_basis(basis.digest)
    assert (found.rank, found.side) == (4, "output")
    assert all(torch.equal(found.Q[layer], Q) for layer, Q in basis.Q.items())
    with pytest.raises(FileNotFoundError):
        load_basis("0" * 64)


def test_a_fingerprint_knows_the_base_in_another_dtype_and_refuses_another_base():
    weights, other = some_weights(count=30, o=64, i=64), some_weights(7, count=30, o=64, i=64)
    assert len(fingerprint(weights)) == 16
    half = [(layer, weight.bfloat16()) for layer, weight in weights]
    assert same_base(fingerprint(weights), fingerprint(half))
    assert not same_base(fingerprint(weights), fingerprint([(layer, 1.02 * weight) for layer, weight in weights]))
    assert not same_base(fingerprint(weights), fingerprint([(layer, 0.5 * weight) for layer, weight in other]))
    layer, weight = weights[3]
    assert fingerprint([(layer, weight)])[layer] == pytest.approx(float(weight.double().square().mean().sqrt()))


def test_fingerprints_of_overlapping_targets_can_be_compared():
    weights = some_weights(count=60)
    few, all_of_them = fingerprint(weights[::2]), fingerprint(weights)
    assert few.keys() & all_of_them.keys() and same_base(few, all_of_them)
    assert same_base({}, few)


def test_a_fingerprint_of_a_broken_base_is_refused():
    with pytest.raises(ValueError, match="x.to_q: the weight holds NaN"):
        fingerprint([("x.to_q", torch.full((2, 2), torch.nan))])
