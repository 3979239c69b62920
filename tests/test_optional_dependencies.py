"""Optional dependencies: the core alone imports what it promises, and what is missing is one line with the command."""

import ast
import importlib
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from qrlora import __version__, built_in_bases, doctor, optional_dependencies

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src" / "qrlora"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
IMPORTED_AS = {"pillow": "PIL"}
AT_CALL = {  # file -> the extra that it checks itself before it imports
    "training/optimizers.py": {"optimizers"},
    "training/training_loop.py": {"tensorboard"},
    "families/quantization.py": {"quantize"},
    "comparison/workers.py": {"ray"},
    "injection/peft_methods.py": {"peft"},
    "files/peft_config.py": {"cli"},
    "world/render_sheets.py": {"world"},
    "packaged_encoders.py": {"encoders"},
}


def import_name(distribution: str) -> str:
    return IMPORTED_AS.get(distribution, distribution.replace("-", "_"))


def distributions(extra: str) -> set[str]:
    """The import names of an extra's distributions, of the core's for ""; read from pyproject.toml, not by our code."""
    lines = PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
    found: set[str] = set()
    for line in lines:
        if inner := re.match(r"qrlora\[(.*)\]", line):
            for name in inner[1].split(","):
                found |= distributions(name)
        else:
            name = re.split(r"[>=<\[; ]", line)[0]
            found.add(import_name(name))
    return found


def third_party(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - {"qrlora", "starlette", "__future__"}


def needed(path: Path) -> set[str]:
    """The extras that are checked before a file is imported."""
    parts = path.relative_to(SRC).with_suffix("").parts
    above = [".".join(parts[: k + 1]) for k in range(len(parts))]
    return {optional_dependencies.NEEDS[name] for name in above if name in optional_dependencies.NEEDS} | (
        {"cli"} if parts[0] == "cli" else set()
    )


@pytest.mark.parametrize("path", sorted(SRC.rglob("*.py")), ids=lambda path: str(path.relative_to(SRC)))
def test_a_module_imports_the_core_s_libraries_and_those_of_the_extras_checked_before(path):
    allowed = distributions("")
    for extra in needed(path) | AT_CALL.get(path.relative_to(SRC).as_posix(), set()):
        allowed |= distributions(extra)
    assert third_party(path) <= allowed


def test_the_core_depends_on_four_libraries():
    """Trainers pin diffusers, transformers and what comes with them."""
    assert distributions("") == {"torch", "numpy", "safetensors", "platformdirs"}


def test_every_module_that_needs_an_extra_exists_and_so_does_the_extra():
    for module, extra in optional_dependencies.NEEDS.items():
        path = SRC / module.replace(".", "/")
        assert path.is_dir() or path.with_suffix(".py").is_file(), module
        assert extra in PROJECT["optional-dependencies"]
    assert set(doctor.EXTRAS) <= set(PROJECT["optional-dependencies"])


@pytest.mark.parametrize("extra", ["", *PROJECT["optional-dependencies"]])
def test_requirements_are_those_of_pyproject(extra):
    assert {import_name(name) for name, _ in optional_dependencies.requirements_of_extra(extra)} == distributions(extra)


def without(monkeypatch, *names: str, **versions: str) -> None:
    """As if these distributions were absent, or of another version."""
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name in names:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions.get(name) or real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)


def fresh(monkeypatch, module: str):
    """Import a module of ours as for the first time."""
    for name in [name for name in sys.modules if name == module or name.startswith(f"{module}.")]:
        monkeypatch.delitem(sys.modules, name)
    return importlib.import_module(module)


@pytest.mark.parametrize("module", ["families", "training", "sampling", "world", "evaluation", "baselines"])
def test_without_diffusers_a_module_that_needs_it_says_so_in_one_line(monkeypatch, module):
    without(monkeypatch, "diffusers", "peft")
    with pytest.raises(optional_dependencies.MissingExtra) as caught:
        fresh(monkeypatch, f"qrlora.{module}")
    assert str(caught.value) == f'qrlora.{module} needs diffusers, peft: pip install "qrlora[diffusers]"'
    assert isinstance(caught.value, ImportError) and isinstance(caught.value, ValueError)


def test_a_library_that_a_trainer_pins_too_low_is_named_with_both_versions(monkeypatch):
    without(monkeypatch, diffusers="0.32.1", transformers="4.54.1")
    with pytest.raises(
        optional_dependencies.MissingExtra,
        match=r"^qrlora.training needs diffusers>=[\d.]+ \(0.32.1 is installed\), transformers>=[\d.]+ \(4.54.1 is "
        r'installed\): pip install "qrlora\[diffusers\]" \(in an environment of its own if ',
    ):
        fresh(monkeypatch, "qrlora.training")


@pytest.mark.parametrize(
    ("version", "bound", "enough"),
    [("0.37", "0.37.0", True), ("0.37.0.dev0", "0.37", True), ("1.10", "1.9", True), ("1.9.9", "1.10", False)]
    + [("2.13.0+cpu", "2.4", True), ("2026.1.3", "2024.4", True), ("4", "4.0.1", False), ("5.0rc1", "5.0", True)],
)
def test_versions_are_compared_as_numbers(version, bound, enough):
    assert (optional_dependencies._release_numbers(version) >= optional_dependencies._release_numbers(bound)) == enough


def test_an_extra_that_the_installed_metadata_does_not_know_is_refused():
    with pytest.raises(ValueError, match="qrlora has no extra 'difusers', it has cli, .*; install it anew"):
        optional_dependencies.require("difusers")


BARE = """
import sys

class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Nothing())
import importlib.metadata as metadata
real = metadata.version
def version(name):
    if name.lower().replace("-", "_") in {blocked} or name == "pillow":
        raise metadata.PackageNotFoundError(name)
    return real(name)
metadata.version = version
"""


def bare(script: str, *keep: str) -> subprocess.CompletedProcess[str]:
    """Run a script where the core's libraries and `keep` are there, and nothing else that any extra has."""
    there = distributions("") | {name for extra in keep for name in distributions(extra)}
    optional = {name for extra in PROJECT["optional-dependencies"] for name in distributions(extra)}
    text = BARE.format(blocked=sorted(optional - there)) + script
    return subprocess.run([sys.executable, "-c", text], capture_output=True, text=True)


@pytest.mark.processes
def test_the_core_alone_reads_merges_trains_one_s_own_module_and_writes(tmp_path):
    done = bare(f"""
import torch, qrlora
from torch import nn
model = nn.Sequential(nn.Linear(8, 8))
injected = qrlora.inject(model, targets=["0"], rank=2)
for p in injected.parameters():
    p.data.normal_()
qrlora.save(injected.extract(base="mine"), {str(tmp_path / "a.safetensors")!r})
a = qrlora.load({str(tmp_path / "a.safetensors")!r})
qrlora.save(qrlora.merge([a, a], [1.0, 0.5]), {str(tmp_path / "b.safetensors")!r})
qrlora.similarity(a, a), qrlora.compute_basis, qrlora.read_header({str(tmp_path / "b.safetensors")!r})
import qrlora.compat, qrlora.trainers
try:
    qrlora.train
except qrlora.optional_dependencies.MissingExtra as error:
    print(error)
""")
    assert done.returncode == 0, done.stderr
    assert re.match(r'qrlora.training needs .*, diffusers.*: pip install "qrlora\[diffusers\]"$', done.stdout)


@pytest.mark.processes
def test_the_extra_for_commands_alone_merges_converts_checks_and_inspects(tmp_path):
    """`inspect` of two files leaves out the plot and says so."""
    done = bare(
        f"""
import torch, qrlora
from torch import nn
from qrlora.adapter import Adapter, Header, Pair
name = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
for k in "ab":
    pair = Pair(torch.randn(2, 640), torch.randn(640, 2))
    header = Header(rank=2, family="sdxl", component="unet", base="x", method="lora")
    qrlora.save(Adapter({{name: pair}}, header), {str(tmp_path)!r} + f"/{{k}}.safetensors")
import os
os.chdir({str(tmp_path)!r})
from qrlora.cli import main
for words in (["merge", "a.safetensors", "b.safetensors", "-o", "m.safetensors", "--rule", "stack"],
              ["convert", "m.safetensors", "d.safetensors", "--keys", "diffusers"],
              ["check", "a.safetensors"], ["inspect", "a.safetensors"], ["inspect", "a.safetensors", "b.safetensors"],
              ["doctor"]):
    try:
        main(words)
    except SystemExit as end:
        assert not end.code, words
main(["generate", "a <c>", "a.safetensors"])
""",
        "cli",
    )
    assert done.returncode == 2, done.stderr
    assert (tmp_path / "m.safetensors").is_file() and (tmp_path / "d.safetensors").is_file()
    lines = done.stderr.strip().splitlines()
    assert any('needs matplotlib, pillow: pip install "qrlora[plots]"' in " ".join(lines[k : k + 3]) for k in range(9))
    assert 'pip install "qrlora[diffusers]"' in " ".join(lines[-3:]) and "Traceback" not in done.stderr


def test_a_command_whose_extra_is_missing_names_itself_and_all_that_it_needs_at_once(tmp_path):
    """Not a module that the user never asked for, nor one extra after the other."""
    (tmp_path / "cat.png").write_bytes(b"")
    commands = (
        "train image=cat.png",
        "generate p a.safetensors",
        "grid a b",
        "decompose a b",
        "demo",
        "video p a.safetensors",
    )
    commands += ("compare", "reproduce table4", "estimate sdxl", "bases", "bases a b")
    done = bare(
        f"""
import os, sys
os.chdir({str(tmp_path)!r})
from qrlora.cli import main
for words in {commands!r}:
    try:
        main(words.split())
    except SystemExit as end:
        print("exit code", end.code, file=sys.stderr)
""",
        "cli",
    )
    said = " ".join(done.stderr.split())
    for words in commands:
        line = rf'error: qrlora {words.split()[0]} needs [^:]*diffusers[^:]*: pip install "qrlora\[diffusers\]"'
        assert re.search(line, said), words
    assert said.count("exit code 2") == len(commands) and "qrlora[plots]" not in said and "Traceback" not in said


@pytest.mark.processes
def test_without_the_extra_for_commands_there_is_one_line_and_a_doctor():
    script = "import sys; sys.argv = ['qrlora', {!r}]\nfrom qrlora.__main__ import main\nmain()"
    done = bare(script.format("merge"))
    assert done.returncode == 2 and not done.stdout
    assert done.stderr == 'error: the command line needs regex, rich, typer: pip install "qrlora[cli]"\n'
    done = bare(script.format("doctor"))
    assert done.returncode == 0 and "\nproblem: every command but doctor needs regex, rich, typer: pip" in done.stdout


def test_without_the_data_package_its_bases_and_drawings_name_it(monkeypatch):
    from qrlora.families.base_location import locate_base
    from qrlora.world import drawings

    monkeypatch.setattr(built_in_bases, "data_package", lambda: None)
    monkeypatch.setattr(drawings, "data_package", lambda: None)
    monkeypatch.setattr(drawings, "full_sheet_folder", lambda: Path("nowhere"))
    command = "pip install packages/qrlora-bases"
    assert f"`{command}`" in (ROOT / "docs/install.md").read_text() and (ROOT / command.split()[-1]).is_dir()
    line = re.escape(f"comes in a package of its own: {command} (in the repository of qrlora {__version__})")
    with pytest.raises(FileNotFoundError, match=f"^tiny-sdxl {line}$"):
        locate_base("tiny-sdxl")
    assert locate_base("tiny-flux").is_dir()
    with pytest.raises(FileNotFoundError, match=f"^the sheet of drawings by twemoji {line}$"):
        drawings.sheet_file("twemoji")


def test_every_base_of_the_data_package_is_found():
    assert set(built_in_bases.built_in_bases()) == {"tiny-flux", *built_in_bases.SEPARATE}
