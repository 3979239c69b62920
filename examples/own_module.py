"""The method on a module of your own: inject, train with any loop, extract the adapter, apply it again.

    python examples/own_module.py

The task: a small network has to follow another one that differs from it by a low-rank change.
"""

import torch
from torch import nn

import qrlora


def main() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 16))
    inputs = torch.randn(512, 32)
    before = model(inputs).detach()
    wanted = inputs @ torch.randn(32, 4) @ torch.randn(4, 16) * 0.05 + before

    learning = qrlora.inject(model, targets=["0", "2"], rank=8)
    assert torch.equal(model(inputs), before)  # step 0 is the base, bit for bit
    optimizer = torch.optim.Adam(learning.parameters(), lr=1e-2)
    losses = []
    for _ in range(200):
        loss = (model(inputs) - wanted).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())

    count = sum(parameter.numel() for parameter in learning.parameters())
    adapter, after = learning.extract(), model(inputs)
    learning.detach()
    assert torch.equal(model(inputs), before)  # the base was never touched
    qrlora.injection.apply(model, adapter, "mine")
    torch.testing.assert_close(model(inputs), after)
    print(f"{count} parameters trained; loss {losses[0]:.4f} -> {losses[-1]:.4f}")


if __name__ == "__main__":
    main()
