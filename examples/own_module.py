"""The method on a module of your own: freeze the leading directions of its layers, learn the rest, lift it out.

    python examples/own_module.py

The task: a small network has to follow another one that differs from it by a low-rank change.
"""

import torch
from torch import nn

from qrlora import METHODS, Header
from qrlora.attach import attach, begin, detach, lift
from qrlora.basis import compute_basis

RANK = 8


def main() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 16)).requires_grad_(False)
    inputs = torch.randn(512, 32)
    wanted = inputs @ torch.randn(32, 4) @ torch.randn(4, 16) * 0.05 + model(inputs)

    weights = {name: layer.weight for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    basis = compute_basis(weights.items(), RANK, side="input")
    starts = {name: METHODS["qr"].start(weight, basis.Q[name], RANK, None) for name, weight in weights.items()}

    before = model(inputs)
    learning = begin(model, starts, "mine")
    assert torch.equal(model(inputs), before)  # step 0 is the base, bit for bit
    optimizer = torch.optim.Adam(learning, lr=1e-2)
    losses = []
    for _ in range(200):
        loss = (model(inputs) - wanted).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())

    adapter = lift(model, "mine", Header(method="qr", rank=RANK, basis=basis.digest))
    after = model(inputs)
    detach(model, "mine")
    assert torch.equal(model(inputs), before)  # the base was never touched
    attach(model, adapter, "mine")
    torch.testing.assert_close(model(inputs), after)
    count = sum(parameter.numel() for parameter in learning)
    print(f"{count} parameters learnt; loss {losses[0]:.4f} -> {losses[-1]:.4f}")


if __name__ == "__main__":
    main()
