"""Every snippet of README and docs does what its page says, page by page in the order it stands there.

Commands of qrlora run in this process on pico stand-ins for what is large; Python runs with what the page takes for
granted; of commands that install, build or start somebody else's trainer every name is looked up. A snippet of a new
language, a command that no row here knows, or a row that no page needs any more fails.
"""

import ast
import importlib.util
import re
import shlex
import shutil
import textwrap
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from PIL import Image

import pico
from commands import run
from qrlora import files, initialisation_methods, merging

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.processes
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.M | re.S)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
TRAINERS_OWN = re.compile(r"(train_\w+|\w+_train_network)\.py|simpletuner")
"""Programs of other people, which bench/trainers.py runs where their folders are named."""


class Snippet(NamedTuple):
    line: int
    language: str
    text: str


def snippets(page: Path) -> list[Snippet]:
    """The fenced blocks of a page."""
    text = page.read_text("utf-8")
    return [Snippet(text.count("\n", 0, x.start()) + 1, x[2], x[3]) for x in FENCE.finditer(text)]


WITH_SNIPPETS = [page for page in PAGES if snippets(page)]


@pytest.fixture(scope="module")
def materials(studio, tmp_path_factory):
    """A folder with the images, adapters and tables that the pages name."""
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file, save_file
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, ViTConfig, ViTModel

    folder = tmp_path_factory.mktemp("materials")
    for name in ("my_dog.jpg", "dog.png", "ink.png", "painting.jpg"):
        Image.effect_noise((20, 20), 60).convert("RGB").save(folder / name)
    Image.effect_noise((800, 600), 60).convert("RGB").save(folder / "wide_dog.jpg")
    (folder / "paintings").mkdir()
    for name in ("sketch.png", "my_dog_mask.png", "paintings/a.png", "paintings/b.png"):
        Image.effect_noise((20, 20), 60).convert("RGB" if "mask" not in name else "L").save(folder / name)
    (folder / "paintings" / "a.txt").write_text("a dog in <s> style")
    files.save(files.load(studio / "dog.safetensors"), folder / "dog.safetensors", keys="diffusers")
    for name, source in {"lora": "dog", "painting": "cat", "ink": "cat", "mine": "cat"}.items():
        shutil.copy(studio / f"{source}.safetensors", folder / f"{name}.safetensors")
    encoder = "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora"
    text = {f"{encoder}_down.weight": torch.ones(2, 8), f"{encoder}_up.weight": torch.ones(8, 2)}
    save_file({**load_file(studio / "dog.safetensors"), **text}, folder / "portrait.safetensors")
    (folder / "mine.csv").write_text("content,style,style_shows\ndog.png,painting.jpg,cat\n")
    size = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32)
    ViTModel(ViTConfig(**size, patch_size=16), add_pooling_layer=False).save_pretrained(folder / "dino-vits16")
    clip = CLIPVisionConfig(**size, patch_size=16, projection_dim=6)
    CLIPVisionModelWithProjection(clip).save_pretrained(folder / "clip-vit-base-patch32")
    pissa = LoraConfig(r=2, lora_alpha=2, target_modules=["attn1.to_q"], init_lora_weights="pissa")
    get_peft_model(pico.sdxl().unet, pissa).save_pretrained(folder / "pissa-folder")
    return folder


class Reader:
    """Who follows one page, in a folder of their own."""

    def __init__(self, page: Path, capsys, patch: pytest.MonkeyPatch) -> None:
        self.page, self.capsys, self.patch = page, capsys, patch
        self.names: dict = {}
        """What the page's Python has defined."""

    def follow(self, snippet: Snippet) -> None:
        {"bash": self.shell, "console": self.transcript, "python": self.python, "yaml": self.yaml, "text": str}[
            snippet.language
        ](snippet.text)

    def shell(self, text: str) -> None:
        for line in text.replace("\\\n", " ").splitlines():
            for words in split_commands(shlex.split(line, comments=True)):
                self.command(words)

    def transcript(self, text: str) -> None:
        """Commands after `$`, each with what it prints: of an error the words before the values, else the last line."""
        for typed in re.split(r"^\$ ", text, flags=re.M)[1:]:
            line, _, shown = typed.rstrip().partition("\n")
            error = re.match(r"error: \S+: ([^\d:]+)", shown)
            printed = self.qrlora(shlex.split(line)[1:], fails_with=error[1].strip() if error else None)
            last = shown.splitlines()[-1]
            assert error or re.sub(r"\d+", "N", last) in re.sub(r"\d+", "N", printed), printed

    def command(self, words: list[str]) -> None:
        words = [word for word in words if word != "..."]
        while re.fullmatch(r"[A-Z_]+=.*", words[0]):  # an environment variable; its value may be part of a command
            looked_up(shlex.split(words.pop(0).partition("=")[2]))
        head = words[0].removeprefix(".venv/bin/")
        if head == "qrlora":
            self.qrlora(words[1:])
        elif head in ("accelerate", "torchrun") and "qrlora" in words:
            self.qrlora(words[words.index("qrlora") + 1 :])
        else:
            {"pip": installed, "make": made}.get(head, looked_up)(words)

    def qrlora(self, words: list[str], fails_with: str | None = None) -> str:
        """What a command prints on stand-ins, with exit code 0, or 1 of a check; or the error that the page shows."""
        verb = words[0]
        if verb in ELSEWHERE:
            check_names(words)
            return ""
        words = [stand_in(word) for word in words] + ADDED.get(verb, lambda _: [])(words)
        code, out, err = run(self.capsys, *words)
        if fails_with:
            assert code == 2 and fails_with in err, err
        else:
            assert code == 0 or (verb, code) == ("check", 1), f"{shlex.join(words)}\n{out}{err}"
        return out

    def python(self, text: str) -> None:
        """A snippet after those before it; one that is a row of METHODS or of RULES is put there."""
        if not self.names:
            self.names = {"PICO": pico_base(), **GIVEN.get(self.page.stem, dict)()}
        for what, instead in IN_PYTHON:
            text = re.sub(what, instead, text)
        body = ast.parse(textwrap.dedent(text)).body
        if len(body) == 1 and isinstance(body[0], ast.Expr):
            value = eval(textwrap.dedent(text), self.names)
            if isinstance(value, initialisation_methods.Method):
                self.patch.setitem(initialisation_methods.METHODS, value.name, value)
            elif isinstance(value, dict):
                for name, rule in value.items():
                    self.patch.setitem(merging.RULES, name, rule)
        else:
            exec(textwrap.dedent(text), self.names)

    def yaml(self, text: str) -> None:
        import yaml

        from qrlora.trainers.ai_toolkit import QRLoRA

        (job,) = yaml.safe_load(text)
        assert job["type"] == QRLoRA.uid and job["network"]["linear"] == job["network"]["linear_alpha"]


def split_commands(words: list[str]) -> list[list[str]]:
    """Words of a line as the commands between `&&`."""
    commands: list[list[str]] = [[]]
    for word in words:
        commands.append([]) if word == "&&" else commands[-1].append(word)
    return [command for command in commands if command]


def installed(words: list[str]) -> None:
    """pip install: of what the constraints hold, in that version, or of a folder of ours with extras that it has."""
    pinned = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    assert words[:2] == ["pip", "install"]
    rest = iter(words[2:])
    for word in rest:
        if word in ("-c", "--index-url"):
            value = next(rest)
            assert value.startswith("https://download.pytorch.org/whl/") if word != "-c" else (ROOT / value).is_file()
        elif "==" in word:
            assert word in pinned, f"{word} is not what constraints.txt has"
        else:
            folder, _, extras = word.rstrip("]").partition("[")
            folder = "." if folder == "/path/to/qrlora" else folder
            assert (ROOT / folder / "pyproject.toml").is_file(), word
            assert set(filter(None, extras.split(","))) <= set(PROJECT["optional-dependencies"]), word


def made(words: list[str]) -> None:
    """make TARGET NAME=VALUE: a target of the Makefile."""
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.M)
    assert set(words[1:]) <= set(targets), words


def looked_up(words: list[str]) -> None:
    """A program that is run elsewhere or by its owner: files, modules and networks of ours that it names are there."""
    for before, word in zip(["", *words], words, strict=False):
        if before == "-m":
            assert importlib.util.find_spec(word), word
        elif before == "--network_module":
            assert re.fullmatch(r"(qrlora\.)?networks\.lora(_\w+)?", word), word
        elif re.match(r"(tests|bench|docs|examples|recipes|\.ci|\.venv)/", word) and ".venv" not in word:
            assert (ROOT / word).exists(), word
    ours = any(re.match(r"(\.venv|tests|bench|docs|examples|\.ci)/|python|pytest|qrlora", word) for word in words)
    theirs = any(TRAINERS_OWN.fullmatch(word) for word in words) or words[:1] == ["-m"]
    assert ours or theirs, f"no row of this test knows {shlex.join(words)}"


def check_names(words: list[str]) -> None:
    """A command's verb and options exist; `train` knows its settings itself."""
    import typer

    from qrlora.cli.command_line import app

    verbs = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert words[0] in verbs, words
    command = verbs[words[0]]
    if hasattr(command, "commands"):
        assert len(words) == 1 or words[1] in command.commands, words
        command = command.commands[words[1]] if len(words) > 1 else command
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    wrong = {word.partition("=")[0] for word in words if word.startswith("--")} - known - {"--help"}
    assert not wrong or words[0] == "train", f"{words}: {wrong}"


def stand_in(word: str) -> str:
    """A word of a command, with a pico base for a real one and eight bits for four, which need a GPU."""
    for what, instead in IN_COMMANDS.items():
        if re.fullmatch(what, word):
            return instead(word) if callable(instead) else instead
    return word


def pico_base(family: str = "sdxl") -> str:
    return str(pico.folder(family))


def training(words: list[str]) -> list[str]:
    """What makes a training small, on the pico base of its recipe's family."""
    if "--settings" in words:
        return []
    recipe = next((re.search(r"_(\w+)\.toml$", word) for word in words if word.endswith(".toml")), None)
    family = {"tiny": "flux"}.get(recipe[1], recipe[1]) if recipe else "sdxl"
    base = [] if any(word.startswith("base=") for word in words) else [f"base={pico_base(family)}"]
    small = ["steps=1", "rank=2", "resolution=16", "dtype=float32", "device=cpu", "preview_every=0", "overwrite=true"]
    return [*base, *small]


IN_COMMANDS = {
    r"my_sdxl_finetune\.safetensors|tiny-sdxl": lambda _: pico_base(),
    r"base=(my_sdxl_finetune\.safetensors|tiny-sdxl)": lambda _: f"base={pico_base()}",
    r"base=tiny-sd3": lambda _: f"base={pico_base('sd3')}",
    r"sdxl|flux-dev": lambda _: pico_base(),
    r"crop=\d+,\d+,\d+": "crop=2,2,16",
    r"quantize=nf4": "quantize=int8",
    r"nf4": "int8",
    r"dino-vits16,clip-vit-base-patch32": "./dino-vits16,./clip-vit-base-patch32",
}
"""What is too large for a test, or needs a GPU -> what stands in for it."""

SMALL = ["--steps", "1", "--device", "cpu"]
ADDED = {
    "train": training,
    "generate": lambda _: [*SMALL, "--count", "1", "--overwrite"],
    "grid": lambda _: [*SMALL, "--overwrite"],
    "decompose": lambda _: [*SMALL, "--things", "cat,tree", "--styles", "neon,sketch", "--overwrite"],
    "demo": lambda _: [*SMALL, "--base", pico_base("flux"), "--count", "1", "--overwrite"],
    "compare": lambda _: [
        *SMALL,
        "--base",
        pico_base("flux"),
        "--pairs",
        "1",
        "--seeds",
        "1",
        "--workers",
        "1",
        "--overwrite",
    ],
    "estimate": lambda _: ["--run", "count", "--resolution", "16"],
    "reproduce": lambda _: [*SMALL, "--base", pico_base("flux"), "--pairs", "1", "--overwrite"],
    "merge": lambda _: ["--overwrite"],
    "inspect": lambda _: ["--overwrite"],
    "convert": lambda _: ["--overwrite"],
}
"""Verb -> the words that make a command of it small."""

ELSEWHERE = {"survey": "test_survey_serving.py", "studio": "test_studio_browser.py"}
"""Verbs that a page's own materials do not feed -> the tests that run them."""


def given_a_pipeline() -> dict:
    from diffusers import StableDiffusionXLPipeline

    return {"pipe": StableDiffusionXLPipeline.from_pretrained(pico.folder())}


def given_a_model() -> dict:
    """A model of one's own with its data, and one for PEFT."""
    from peft import LoraConfig, get_peft_model

    import qrlora

    model = torch.nn.ModuleDict({"q_proj": torch.nn.Linear(16, 16), "v_proj": torch.nn.Linear(16, 16)})
    model.forward = lambda x: model["v_proj"](model["q_proj"](x))  # type: ignore[method-assign]
    batches = [(torch.randn(4, 16), torch.randn(4, 16)) for _ in range(2)]
    return {"torch": torch, "model": model, "batches": batches, "qrlora": qrlora} | {
        "LoraConfig": LoraConfig,
        "get_peft_model": get_peft_model,
    }


GIVEN = {
    "strengths": given_a_pipeline,
    "python": given_a_model,
    "trainers": given_a_model,
    "add_a_method": lambda: {**vars(initialisation_methods)},
    "add_a_rule": lambda: {**vars(merging.sum_and_stack)},
    "add_a_backbone": lambda: {**vars(pico), "NAME": pico.sdxl},
}
"""Page -> the names that its Python takes for granted."""

IN_PYTHON = [
    (r'"stabilityai/stable-diffusion-xl-base-1\.0"', "PICO"),
    (r'"tiny-flux"', "PICO"),
    (r"target_modules=\.\.\.", 'target_modules=["q_proj"]'),
    (r"r=64, lora_alpha=64", "r=4, lora_alpha=4"),
    (r', variant="fp16"', ""),
    (r'\.to\("cuda"\)', ""),
    (r'output="(dog|ink)\.safetensors"', r'output="\1.safetensors", overwrite=True'),
]
"""What is too large for a test in Python -> what stands in for it."""


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")  # PEFT's, at every second file
@pytest.mark.parametrize("page", WITH_SNIPPETS, ids=lambda page: page.stem)
def test_the_snippets_of_a_page_do_what_it_says(page, materials, tmp_path, capsys, monkeypatch):
    shutil.copytree(materials, tmp_path, dirs_exist_ok=True)
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    monkeypatch.chdir(tmp_path)
    reader = Reader(page, capsys, monkeypatch)
    for snippet in snippets(page):
        try:
            reader.follow(snippet)
        except BaseException as error:
            error.add_note(f"the snippet in line {snippet.line} of {page.name}:\n{snippet.text}")
            raise


def test_every_stand_in_is_still_needed():
    text = "\n".join(snippet.text for page in PAGES for snippet in snippets(page))
    for what in (*IN_COMMANDS, *(what for what, _ in IN_PYTHON), *(f"qrlora {verb}" for verb in (*ADDED, *ELSEWHERE))):
        assert re.search(what, text), what


@pytest.mark.parametrize(
    ("snippet", "why"),
    [
        (Snippet(1, "", "make demo"), "a language"),
        (Snippet(1, "bash", "make dmeo"), "a target"),
        (Snippet(1, "bash", "qrlora trian image=dog.png"), "a verb"),
        (Snippet(1, "bash", "qrlora merge dog.safetensors --rul sum"), "an option"),
        (Snippet(1, "bash", 'pip install ".[diffuser]"'), "an extra"),
        (Snippet(1, "bash", "pip install torch==1.0.0"), "a version"),
        (Snippet(1, "bash", "python bench/stpe.py"), "a file"),
        (Snippet(1, "bash", "rm -rf out"), "a program"),
        (Snippet(1, "python", "import qrlora\nqrlora.trian()"), "a function"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_a_snippet_with_a_slip_is_caught(snippet, why, materials, tmp_path, capsys, monkeypatch):
    shutil.copytree(materials, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises((AssertionError, KeyError, AttributeError)):
        Reader(ROOT / "README.md", capsys, monkeypatch).follow(snippet)


def test_commands_in_the_text_name_verbs_and_options_that_exist():
    """`qrlora VERB --option` between backticks, in tables and sentences."""
    for page in PAGES:
        if page.stem != "log":  # of what was, with its names of then
            for typed in re.findall(r"`qrlora ([a-z][^`]*)`", FENCE.sub("", page.read_text("utf-8"))):
                check_names(typed.split())
