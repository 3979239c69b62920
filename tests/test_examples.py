"""Every example runs as a person would run it, on the pico base, and says what its docstring promises."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import pico

pytestmark = pytest.mark.processes
EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name, *words):
    """Standard output of an example in a process of its own."""
    command = [sys.executable, str(EXAMPLES / name), *(str(word) for word in words)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """The folder in which `two_pictures.py` has worked."""
    folder = tmp_path_factory.mktemp("pictures")
    for name in ("dog", "cat"):
        Image.effect_noise((24, 24), 80).convert("RGB").save(folder / f"{name}.png")
    out = run("two_pictures.py", folder / "dog.png", folder / "cat.png", "--base", pico.folder(), "--folder", folder)
    assert re.search(r"rank 4, \d+ layers", out)
    return folder


def test_two_pictures_become_one(pictures):
    with Image.open(pictures / "merged.png") as picture:
        assert picture.size == (pico.SIZE, pico.SIZE)


def test_stock_diffusers_loads_the_file(pictures, tmp_path):
    words = [pico.folder(), pictures / "merged.safetensors", "--steps", 2, "--output", tmp_path / "picture.png"]
    assert "1 adapter on the UNet" in run("in_diffusers.py", *words)
    assert (tmp_path / "picture.png").exists()


def test_two_adapters_are_compared(pictures):
    out = run("compare_two.py", pictures / "content.safetensors", pictures / "style.safetensors")
    assert re.search(r"\d+ layers, largest cosine 0\.\d+", out) and "input overlap 1.000" in out


def test_a_grid_is_drawn(pictures, tmp_path):
    files = [pictures / "content.safetensors", pictures / "style.safetensors"]
    out = run("strength_grid.py", *files, "--base", pico.folder(), "--output", tmp_path / "grid.png")
    assert "9 pictures" in out and (tmp_path / "grid.png").exists()


def test_two_adapters_are_brought_together_in_other_ways(pictures, tmp_path):
    files = [pictures / name for name in ("content.safetensors", "style.safetensors", "dog.png", "cat.png")]
    told = ["--base", pico.folder(), "--ways", "qr,ties,ziplora,k-lora", "--output", tmp_path / "ways.png"]
    assert "4 ways" in run("other_ways.py", *files, *told)
    with Image.open(tmp_path / "ways.png") as strip:
        assert strip.size == (4 * pico.SIZE, pico.SIZE)
        first, *others = (strip.crop((k * pico.SIZE, 0, (k + 1) * pico.SIZE, pico.SIZE)).tobytes() for k in range(4))
    assert all(other != first for other in others)


def test_rates_are_tuned_role_by_role(tmp_path):
    told = ["--base", pico.folder(), "--rates", "0.01,1e-30", "--pairs", 1, "--seeds", 1, "--steps", 2]
    out = run("tune_rates.py", *told, "--output", tmp_path)
    assert "6 of 6 jobs done" in out, "four sums, none and oracle"
    assert len(list((tmp_path / "adapters").iterdir())) == 2 * 2 + 1, "two rates of each role, and the oracle"
    assert len(re.findall(r"\d+ \(\d+\)", out)) == 4


def test_the_method_learns_on_a_module_of_ones_own():
    out = run("own_module.py")
    count, first, last = re.search(r"(\d+) parameters trained; loss ([\d.]+) -> ([\d.]+)", out).groups()
    assert int(count) == 8 * (64 + 16)  # B alone: rank times outputs
    assert float(last) < 0.5 * float(first)


def test_models_of_transformers_learn_and_their_files_come_back(tmp_path):
    out = run("transformers_models.py", "--folder", tmp_path)
    lines = re.findall(r"(language model|vision transformer): (\d+) of (\d+) parameters; loss (\S+) -> (\S+)", out)
    assert [line[0] for line in lines] == ["language model", "vision transformer"]
    for _, learnt, of, first, last in lines:
        assert int(learnt) < 0.2 * int(of) and float(last) < 0.5 * float(first)


def test_every_example_is_run_here():
    tested = Path(__file__).read_text(encoding="utf-8")
    assert all(f'"{path.name}"' in tested for path in EXAMPLES.glob("*.py"))


def test_a_language_model_learns_two_sentences_by_peft_that_add(tmp_path):
    out = run("with_peft.py", "--folder", tmp_path)
    losses = [[float(x) for x in pair] for pair in re.findall(r"(\d+\.\d+) -> (\d+\.\d+)", out)]
    assert len(losses) == 4 and all(last < first for first, last in losses) and out.count("of rank 8") == 2
