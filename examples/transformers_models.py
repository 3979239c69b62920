"""The method on two models of transformers: a language model trained on a sentence, a ViT on two images.

    python examples/transformers_models.py

A language model and a vision transformer, tiny and with random weights, so that this takes seconds; `from_pretrained`
gives you real ones. Each adapter is saved to a file and loaded again.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, ViTConfig, ViTForImageClassification

import qrlora


def fine_tune(what: str, model: nn.Module, targets: str, loss: Callable[[], Tensor], path: Path) -> None:
    """Train, save, and check that the file applied to the untouched model predicts as the trained one."""
    learning = qrlora.inject(model, targets=targets, rank=8)
    optimizer = torch.optim.Adam(learning.parameters(), lr=2e-2)
    first = loss().item()
    for _ in range(60):
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()
    last, count = loss().item(), sum(parameter.numel() for parameter in learning.parameters())
    qrlora.save(learning.extract(base=what), path)
    learning.detach()
    assert abs(loss().item() - first) < 1e-6
    qrlora.injection.apply(model, qrlora.load(path), "again")
    assert abs(loss().item() - last) < 1e-4
    print(f"{what}: {count} of {sum(p.numel() for p in model.parameters())} parameters; loss {first:.3f} -> {last:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("out/transformers"))
    folder = parser.parse_args().folder
    torch.manual_seed(0)

    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    language = LlamaForCausalLM(LlamaConfig(vocab_size=256, initializer_range=0.1, **shape)).eval()
    sentence = torch.tensor([list(b"adapters of one basis add")])
    layers = "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj"
    path = folder / "language.safetensors"
    fine_tune("language model", language, layers, lambda: language(sentence, labels=sentence).loss, path)

    vision = ViTForImageClassification(ViTConfig(image_size=32, patch_size=8, **shape)).eval()
    pictures, classes = torch.randn(2, 3, 32, 32), torch.tensor([0, 1])
    layers = "q_proj,k_proj,v_proj,o_proj,fc1,fc2"
    path = folder / "vision.safetensors"
    fine_tune("vision transformer", vision, layers, lambda: vision(pictures, labels=classes).loss, path)


if __name__ == "__main__":
    main()
