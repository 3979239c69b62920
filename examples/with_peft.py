"""QR-LoRA on a language model of transformers, by PEFT: one line after `get_peft_model`.

    python examples/with_peft.py

Two adapters are trained on a sentence each, on one tiny Llama with random weights; `from_pretrained` gives you a real
one. What PEFT saves are ordinary LoRAs that share A, so that qrlora adds them at the rank of one; PEFT loads the sum.
"""

import argparse
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import qrlora

RANK = 8
LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SENTENCES = ("adapters of one basis add", "and their rank stays as it was")


def base() -> LlamaForCausalLM:
    """The same model each time."""
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=256, initializer_range=0.1, **shape)).eval()


def learn(sentence: str, folder: Path) -> None:
    """Learn a sentence and save the adapter as PEFT does."""
    model = get_peft_model(base(), LoraConfig(r=RANK, lora_alpha=RANK, target_modules=LAYERS))
    qrlora.freeze(model)
    learning = [x for x in model.parameters() if x.requires_grad]
    optimizer = torch.optim.Adam(learning, lr=2e-2)
    words = torch.tensor([list(sentence.encode())])
    first = loss(model, words)
    for _ in range(60):
        model(words, labels=words).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    print(f"{sentence!r}: {sum(x.numel() for x in learning)} numbers learn; {first:.2f} -> {loss(model, words):.2f}")


def loss(model: torch.nn.Module, words: Tensor) -> float:
    with torch.no_grad():
        return model(words, labels=words).loss.item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("out/with_peft"))
    folder = parser.parse_args().folder
    places = [folder / str(k) for k in range(len(SENTENCES))]
    for sentence, place in zip(SENTENCES, places, strict=True):
        learn(sentence, place)
    both = qrlora.merge([qrlora.load(place) for place in places], [1.0, 1.0])
    model = PeftModel.from_pretrained(base(), places[0])
    for name, layer in model.named_modules():
        pair = both.layers.get(name.removeprefix("base_model.model."))
        if pair:  # PEFT's own layer, with the sum's A and B
            layer.lora_A["default"].weight.data, layer.lora_B["default"].weight.data = pair.A, pair.B
    for sentence in SENTENCES:
        words = torch.tensor([list(sentence.encode())])
        print(f"the sum, of rank {both.rank}, on {sentence!r}: {loss(base(), words):.2f} -> {loss(model, words):.2f}")


if __name__ == "__main__":
    main()
