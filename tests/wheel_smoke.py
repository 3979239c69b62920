"""What an installed wheel must do, by the Python that has it: `python tests/wheel_smoke.py core|cli|diffusers`.

Not a test of pytest: the environment has nothing but the wheel and one of its extras.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

LAYER = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"


def core() -> None:
    """The method on a model of one's own, files and merging, from Python."""
    import torch

    import qrlora

    model = torch.nn.Sequential(torch.nn.Linear(16, 8))
    injected = qrlora.inject(model, targets=["0"], rank=2)
    optimizer = torch.optim.Adam(injected.parameters(), lr=1e-2)
    x, y = torch.randn(32, 16), torch.randn(32, 8)
    losses = []
    for _ in range(20):
        loss = (model(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0], losses
    qrlora.save(injected.extract(base="mine"), "own.safetensors")
    own = qrlora.load("own.safetensors")
    merged = qrlora.merge([own, own], [1.0, 0.5])
    torch.testing.assert_close(merged.layers["0"].B @ merged.layers["0"].A, 1.5 * own.layers["0"].B @ own.layers["0"].A)


def adapter_files() -> None:
    """Two SDXL adapters, a.safetensors and b.safetensors."""
    import torch

    import qrlora
    from qrlora.adapter import Adapter, Header, Pair

    for name in "ab":
        header = Header(rank=2, family="sdxl", component="unet", base="x", method="lora")
        pair = Pair(torch.randn(2, 640), torch.randn(640, 2))
        qrlora.save(Adapter({LAYER: pair}, header), f"{name}.safetensors")


def command(*words: str, code: int = 0) -> str:
    """What a command prints. It must end with that exit code and without a traceback."""
    done = subprocess.run([sys.executable, "-m", "qrlora", *words], capture_output=True, text=True)
    said = done.stdout + done.stderr
    assert done.returncode == code and "Traceback" not in said, (words, done.returncode, said)
    print(f"qrlora {' '.join(words)}: {code}")
    return said


def cli() -> None:
    """The commands that work on adapter files."""
    adapter_files()
    command("merge", "a.safetensors", "b.safetensors=0.5", "-o", "m.safetensors", "--rule", "stack")
    command("convert", "m.safetensors", "d.safetensors", "--keys", "diffusers")
    command("convert", "d.safetensors", "k.safetensors", "--keys", "kohya")
    command("check", "m.safetensors")
    command("inspect", "m.safetensors")
    command("inspect", "a.safetensors", "b.safetensors")
    command("--help")


def missing(extra: str, *words: str) -> None:
    """A command whose extra is missing says so in one line."""
    said = command(*words, code=2)
    assert f'pip install "qrlora[{extra}]"' in " ".join(said.split()), said
    print(" ", said.strip())


def diffusers() -> None:
    """Own training and sampling: the demonstration, shortened; bases of the data package by name."""
    command("demo", "--quick", "--output", "demo")
    assert {"content.safetensors", "style.safetensors", "merged.safetensors", "demo.png"} <= set(os.listdir("demo"))
    command("generate", "a <c> in <s> style", "demo/merged.safetensors", "--steps", "2", "-o", "picture.png")


def main(extra: str) -> None:
    """Run what an environment with this extra must do, and what it must refuse."""
    os.environ["PYTHONIOENCODING"] = "utf-8"
    folder = tempfile.mkdtemp()
    os.chdir(folder)
    report = command("doctor")
    print(report)
    core()
    if extra == "core":
        missing("cli", "merge", "a", "b")
        return
    cli()
    if extra == "cli":
        Path("a.png").touch()
        missing("diffusers", "train", "image=a.png", "output=new.safetensors")
        missing("diffusers", "generate", "a <c>", "a.safetensors")
        return
    diffusers()
    if not re.search(r"built-in bases: .*tiny-sdxl", report):
        said = command("demo", "--quick", "--base", "tiny-sdxl", "--output", "sdxl", code=2)
        assert "pip install packages/qrlora-bases" in said, said
    print("wheel_smoke: passed in", Path(folder))


if __name__ == "__main__":
    main(sys.argv[1])
