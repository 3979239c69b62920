"""Seconds and kept energy of a basis of rank 64: ours, against full SVD and QR, and against other ways to start a LoRA.

    python bench/basis.py                   # this machine's CPU, under four minutes on two quiet cores
    python bench/basis.py --device cuda     # the same on a GPU, and every layer of SDXL, SD3-medium and FLUX.1-dev

"Full SVD + QR" is the paper's eq. 3-6 in float32: W = U S V^T whole, then the QR of V_r S_r. PEFT's starts are its own
`pissa`, `pissa_niter_16` and `olora`, run on a layer of that weight (they also rewrite the weight, which ours never
does). "Energy" is |W Q|^2 over the best possible, in float64. Spectra: Gaussian, the worst case; "trained", k^-1/2 over
256 directions on a Gaussian bulk whose largest singular value is a tenth of the first; and the built-in bases' own
weights. The floor is one reading of W and one product of W with 64 columns, at the rates measured beside it.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from harness import Row, arguments, compare, report, seconds
from qrlora.families import open_base
from qrlora.linalg import leading_subspace

RANK = 64
GOALS = {(1280, 1280): (10, 5), (3072, 3072): (20, 10), (3072, 12288): (30, 10), (12288, 3072): (30, 10)}
"""{shape (outputs, inputs): times faster than full SVD + QR on trained and on Gaussian weights}."""
LAYERS = {"SDXL": [((640, 640), 40), ((1280, 1280), 240)], "SD3-medium": [((1536, 1536), 188)]}
LAYERS["FLUX.1-dev"] = [((3072, 3072), 266), ((12288, 3072), 38), ((3072, 12288), 38)]
"""{base: [(shape, how many layers)]} of the default targets."""


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


def energy(W: Tensor, Q: Tensor) -> float:
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


def floor(W: Tensor) -> str:
    """Milliseconds of reading W once, and of one product with RANK columns."""
    X = torch.randn(W.shape[1], RANK, device=W.device)
    read, product = (min(seconds(work) for _ in range(3)) for work in (lambda: W.sum(), lambda: W @ X))
    return f"{1000 * read:.1f} + {1000 * product:.1f} ms"


def against_svd(shape: tuple[int, int], kind: str, device: str, quick: bool) -> Row:
    """One shape and spectrum. A full SVD of the larger takes a minute: it runs in one round then."""
    W = weight(shape, kind, device)
    found: dict[str, Tensor] = {}

    def keep(way: str, work: Callable[[Tensor], Tensor]) -> Callable[[], None]:
        return lambda: found.__setitem__(way, work(W))

    ways = {"ours": keep("ours", lambda W: leading_subspace(W, RANK)), "full SVD + QR": keep("svd", full_svd)}
    if not quick and W.numel() < 2e6:
        ways |= {f"peft {name}": peft_start(W, name) for name in ("pissa", "pissa_niter_16", "olora")}
    ways["ours"]()
    goal = {} if shape not in GOALS else {"full SVD + QR": f"{GOALS[shape][kind != 'trained']}x"}
    row = compare(f"{shape[0]}x{shape[1]} {kind}", ways, 1 if W.numel() > 2e6 else 3, goal, warm=False)
    share = energy(W, found["ours"]) / energy(W, found["svd"])
    print(f"{row.name}: {row.ratio('full SVD + QR'):.1f}x, energy {share:.6f}", flush=True)
    return Row(row.name, row.measured, row.goals, {"energy": f"{share:.6f}", "floor": floor(W)})


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
    shares = [energy(W, leading_subspace(W, rank)) / energy(W, full_svd(W, rank)) for W in layers]
    return Row(row.name, row.measured, row.goals, {"energy": f"{min(shares):.6f}"})


def whole_bases(device: str) -> None:
    """Every layer of a full-size base: shapes are real, weights random with the trained spectrum."""
    for name, layers in LAYERS.items():
        took = 0.0
        for shape, count in layers:
            W = weight(shape, "trained", device)
            leading_subspace(W, RANK)
            begun = time.perf_counter()
            for _ in range(count):
                leading_subspace(W, RANK)
            if device == "cuda":
                torch.cuda.synchronize()
            took += time.perf_counter() - begun
        print(f"{name}: {sum(count for _, count in layers)} layers in {took:.1f} s", flush=True)


def main() -> None:
    options = arguments(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    shapes = [(800, 800)] if options.quick else list(GOALS)
    rows = [
        against_svd(shape, kind, options.device, options.quick) for shape in shapes for kind in ("trained", "gauss")
    ]
    rows += [of_builtin(name, options.device, options.quick) for name in ("tiny-sdxl", "tiny-sd3", "tiny-flux")]
    report("Bases", rows, options.folder)
    if options.device == "cuda" and not options.quick:
        whole_bases(options.device)


if __name__ == "__main__":
    main()
