"""Seconds and kept squared norm of a basis of rank 64: ours, against full SVD and QR, and against other ways to start a
LoRA.

    python bench/basis.py                   # this machine's CPU, about six minutes on two quiet cores
    python bench/basis.py --base z-image    # a base of full size, extrapolated: one layer of each shape, random weights
    python bench/basis.py --device cuda     # the same on a GPU, and every layer of SDXL, SD3-medium and FLUX.1-dev

"Full SVD + QR" is the paper's eq. 3-6 in float32: W = U S V^T whole, then the QR of V_r S_r. PEFT's starts are its own
`pissa`, `pissa_niter_16` and `olora`, run on a layer of that weight (they also rewrite the weight, which ours never
does). "Squared norm" is |W Q|^2 over the best possible, in float64; "of the span" 1 - the mean squared cosine of the
angles between ours and the SVD's, which is in float32 itself. Spectra: Gaussian, the worst case; "trained", k^-1/2 over
256 directions on a Gaussian bulk whose largest singular value is a tenth of the first; and the built-in bases' own
weights. The floor is one reading of W and one product of W with 64 columns, at the rates measured beside it.
"""

import unittest.mock
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from harness import Row, above, arguments, compare, laps, report, seconds
from qrlora.basis import compute_basis
from qrlora.families import open_base
from qrlora.families.base_without_weights import blank_base
from qrlora.linalg import all_singular_vectors, leading_subspace, principal_angles, subspace_and_lost_fraction

RANK = 64
GOALS = {(1280, 1280): (10, 5), (3072, 3072): (20, 10), (3072, 12288): (30, 10), (12288, 3072): (30, 10)}
"""{shape (outputs, inputs): times faster than full SVD + QR on trained and on Gaussian weights}."""
WHOLE = {"sdxl": (60, 1), "sd3-medium": (120, 1), "flux-dev": (300, 3)}
"""{base: (the paper's seconds on an A800, our goal in seconds on one GPU)}, all layers of the default targets."""


def weight(shape: tuple[int, int], kind: str, device: str) -> Tensor:
    """A random weight (o, i) with the named spectrum."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(shape, generator=generator)
    if kind == "trained":
        left, right = (torch.linalg.qr(torch.randn(n, 256, generator=generator)).Q for n in shape)
        edge = shape[0] ** 0.5 + shape[1] ** 0.5
        noise = noise * 0.1 / edge + (left * torch.arange(1, 257) ** -0.5) @ right.T
    return noise.to(device)


def full_svd(W: Tensor, rank: int = RANK) -> Tensor:
    """Q of the paper, eq. 3-6: all singular vectors, then the QR of the strongest, weighted."""
    _, s, vh = torch.linalg.svd(W, full_matrices=False)
    return torch.linalg.qr(vh[:rank].T * s[:rank]).Q


def captured_norm(W: Tensor, Q: Tensor) -> float:
    return float((W.double() @ Q.double()).square().sum())


def peft_start(W: Tensor, start: str) -> Callable[[], object]:
    """PEFT's own initialisation of one linear layer of that weight; only the start itself is in the call."""
    from peft.tuners.lora import Linear, LoraConfig

    base = torch.nn.Linear(W.shape[1], W.shape[0], bias=False, device=W.device)
    base.weight = torch.nn.Parameter(W.clone(), requires_grad=False)
    config = LoraConfig(r=RANK, lora_alpha=RANK)
    layer = Linear(base, "x", config=config, r=RANK, lora_alpha=RANK)

    def run() -> None:
        base.weight.data.copy_(W)
        if start == "olora":
            layer.olora_init("x")
        else:
            layer.pissa_init("x", start)

    return run


def floor(W: Tensor) -> float:
    """Seconds of reading W once and of one product with RANK columns."""
    X = torch.randn(W.shape[1], RANK, device=W.device)
    return sum(min(seconds(work) for _ in range(3)) for work in (lambda: W.sum(), lambda: W @ X))


def against_svd(shape: tuple[int, int], kind: str, device: str, quick: bool) -> Row:
    """One shape and spectrum. A full SVD of the largest takes a minute on a CPU: it runs in one round then."""
    W = weight(shape, kind, device)
    found: dict[str, Tensor] = {}

    def keep(way: str, work: Callable[[Tensor], Tensor]) -> Callable[[], None]:
        return lambda: found.__setitem__(way, work(W))

    ways = {"ours": keep("ours", lambda W: leading_subspace(W, RANK)), "full SVD + QR": keep("svd", full_svd)}
    if not quick and W.numel() < 2e6:
        ways |= {f"peft {name}": peft_start(W, name) for name in ("pissa", "pissa_niter_16", "olora")}
    ways["ours"]()
    goal = {} if shape not in GOALS or device != "cpu" else {"full SVD + QR": f"{GOALS[shape][kind != 'trained']}x"}
    rounds = 1 if shape == (3072, 12288) and device == "cpu" else 3
    row = compare(f"{shape[0]}x{shape[1]} {kind}", ways, rounds, goal, warm=False)
    share = captured_norm(W, found["ours"]) / captured_norm(W, found["svd"])
    print(f"{row.name}: {row.ratio('full SVD + QR'):.1f}x, squared norm {share:.6f}", flush=True)
    open_span = 1 - float(principal_angles(found["ours"], found["svd"]).double().square().mean())
    notes = {"lost, as measured": f"{subspace_and_lost_fraction(W, RANK)[1]:.0e}", "of the span": f"{open_span:.0e}"}
    return above(replace(row, notes={"squared norm": f"{share:.6f}", **notes}), floor(W))


def candidates(kind: str, device: str) -> list[Row]:
    """Other ways to leading directions, 1280 x 1280, and what their |W Q|^2 lacks of the best possible."""
    W, found = weight((1280, 1280), kind, device), {}

    def keep(way: str, work: Callable[[], Tensor]) -> Callable[[], None]:
        return lambda: found.__setitem__(way, work())

    def in_float32() -> Tensor:
        with unittest.mock.patch("qrlora.lanczos.has_fast_bfloat16", return_value=False):
            return leading_subspace(W, RANK)

    ways = {
        "ours": lambda: leading_subspace(W, RANK),
        "ours, float32 alone": in_float32,
        "Gram matrix, all eigenvectors": lambda: all_singular_vectors(W)[:, :RANK].float(),
        "svd_lowrank, 2 power steps": lambda: torch.svd_lowrank(W, RANK + 16, 2)[2][:, :RANK],
        "svd_lowrank, 16 power steps": lambda: torch.svd_lowrank(W, RANK + 16, 16)[2][:, :RANK],
    }
    took = laps({way: keep(way, work) for way, work in ways.items()}, 5)
    best = captured_norm(W, found["Gram matrix, all eigenvectors"])
    lost = {way: f"{max(1 - captured_norm(W, Q) / best, 0.0):.0e}" for way, Q in found.items()}
    return [
        Row(
            f"1280x1280 {kind}",
            {"ours": took["ours"], way: took[way]},
            notes={"squared norm lost": f"{x}, ours {lost['ours']}"},
        )
        for way, x in lost.items()
        if way != "ours"
    ]


def of_builtin(name: str, device: str, quick: bool) -> Row:
    """A built-in base's own weights, all default targets."""
    base = open_base(name, device)
    layers = [W.float() for _, W in base.weights(base.defaults.targets or "")]
    layers = layers[:6] if quick else layers
    rank = min(RANK, *(min(W.shape) for W in layers))
    ways = {
        "ours": lambda: [leading_subspace(W, rank) for W in layers],
        "full SVD + QR": lambda: [full_svd(W, rank) for W in layers],
    }
    row = compare(f"{name}, {len(layers)} layers, rank {rank}", ways, 3)
    shares = [captured_norm(W, leading_subspace(W, rank)) / captured_norm(W, full_svd(W, rank)) for W in layers]
    return Row(row.name, row.measured, row.goals, {"squared norm": f"{min(shares):.6f}"})


def whole(name: str, device: str, rounds: int) -> list[Row]:
    """Every layer of a base of full size, several at a time as a start does it, and one by one: real shapes, random
    weights with the trained spectrum, one for all layers of a shape."""
    base, _, _ = blank_base(name)
    shapes = [(x.out_features, x.in_features) for x in base.target_layers(base.defaults.targets).values()]
    made = {shape: weight(shape, "trained", device) for shape in set(shapes)}
    layers = [(f"layer {k}", made[shape]) for k, shape in enumerate(shapes)]
    layers = layers if device != "cpu" else layers[:: len(layers) // 24 or 1]
    ways = {
        "ours": lambda: compute_basis(layers, RANK),
        "one by one": lambda: [leading_subspace(W, RANK) for _, W in layers],
    }
    row = compare(f"{name}, {len(layers)} of {len(shapes)} layers", ways, rounds)
    if device == "cpu":
        return [row]
    paper, goal = WHOLE[name]
    notes = {"ours": row.measured["ours"], "the paper, A800": [float(paper)] * rounds}
    return [row, Row(f"{name}, all {len(shapes)} layers", notes, {"the paper, A800": f"{paper / goal:g}x"})]


def extrapolated(name: str, device: str) -> float:
    """Seconds of the basis of a base of full size, printed: one layer of each shape of its default targets, weights
    N(0, 1), the slow case, times how many layers have it."""
    base, _, _ = blank_base(name)
    layers = base.target_layers(base.defaults.targets).values()
    counts = Counter((x.out_features, x.in_features) for x in layers)
    leading_subspace(weight((256, 256), "gauss", device), RANK)  # warms up
    total = 0.0
    for shape, count in counts.items():
        W = weight(shape, "gauss", device)
        took = seconds(lambda W=W: leading_subspace(W, min(RANK, *W.shape)))
        total += count * took
        print(f"{name}: {shape[0]}x{shape[1]}, {took:.2f} s, {count} times", flush=True)
    print(f"{name}: {total:.0f} s for {sum(counts.values())} layers, extrapolated from one of each shape", flush=True)
    return total


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--base", nargs="+", default=[], help="these alone, extrapolated: names that estimate knows")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.base:
        for name in options.base:
            extrapolated(name, options.device)
        return
    shapes = [(800, 800)] if options.quick else list(GOALS)
    rows = [
        against_svd(shape, kind, options.device, options.quick) for shape in shapes for kind in ("trained", "gauss")
    ]
    rows += [of_builtin(name, options.device, options.quick) for name in ("tiny-sdxl", "tiny-sd3", "tiny-flux")]
    if not options.quick:
        rows += [row for kind in ("trained", "gauss") for row in candidates(kind, options.device)]
        for name in WHOLE if options.device != "cpu" else ("sdxl", "sd3-medium"):
            rows += whole(name, options.device, 3)
    report("Bases", rows, options.folder)


if __name__ == "__main__":
    main()
