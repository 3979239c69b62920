"""The code that a study's results are named by: all that they depend on, and what it does, not what it says."""

import ast
import subprocess
import sys

import pytest

import pico
from qrlora.comparison import code_digest, jobs
from test_architecture import SRC, imports
from test_training import picture


def names(paths):
    return {path.relative_to(code_digest.PACKAGE).as_posix() for path in paths}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of a few files: `maker` needs all but `alone`."""
    files = {
        "__init__": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .alone import x",
        "maker": "from .room import thing\n\ndef f():\n    from . import far",
        "room/__init__": "",
        "room/thing": "from ..base import value\nfrom .deep.low import *",
        "room/deep/__init__": "import pkg.by_name",
        "room/deep/low": "import json, os.path",
        "base": "from pkg.absolute import x",
        "absolute": '"""Says."""\nx = 1  # so',
        "by_name": "",
        "far": "from .maker import f",
        "alone": "",
    }
    for name, text in files.items():
        path = tmp_path / "pkg" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(code_digest, "PACKAGE", tmp_path / "pkg")
    return {f"{name}.py" for name in files}


def test_a_closure_holds_whatever_is_imported_on_the_way_and_nothing_else(package):
    assert names(code_digest.imported_files("maker")) == package - {"alone.py"}
    assert names(code_digest.imported_files("alone")) == {"__init__.py", "alone.py"}
    with pytest.raises(ValueError, match="no module gone"):
        code_digest.imported_files("gone")


def test_code_is_another_when_it_does_something_else_not_when_it_says_something_else(package):
    """Changed in a file that is three imports away."""
    digests = []
    for text in ('"""Says."""\nx = 1  # so\n', '"""Says more."""\n\nx = 1\n', '"""Says."""\nx = 2\n'):
        (code_digest.PACKAGE / "absolute.py").write_text(text)
        code_digest.digest_of_code.cache_clear()
        digests.append(code_digest.digest_of_code("maker"))
    code_digest.digest_of_code.cache_clear()
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("module", [jobs.TRAINING_MODULE, jobs.SAMPLING_MODULE, "reproduction.convergence"])
def test_what_the_files_of_a_closure_import_is_in_it(module):
    """By the imports that the plan of the house finds; a name behind the last dot may be no module."""
    held = names(code_digest.imported_files(module))
    for path in sorted(held - {"__init__.py"}):
        tree = ast.parse((SRC / path).read_text(encoding="utf-8"))
        for name in imports(tree, tuple(path.split("/")[:-1])):
            if name.startswith("."):
                parts = name.strip(".").split(".")
                files = {"/".join(parts) + ".py", "/".join([*parts, "__init__.py"])}
                assert files & held or not any((SRC / file).exists() for file in files), f"{path} imports {name}"


@pytest.mark.processes
def test_what_a_training_loads_is_in_its_closure(tmp_path):
    script = f"""
import sys
from qrlora.config import TrainConfig
from qrlora.training import train
words = dict(image={str(picture(tmp_path))!r}, output={str(tmp_path / "a.safetensors")!r})
train(TrainConfig(**words, base={str(pico.folder("flux"))!r}, device="cpu", method="qr-contrast", steps=1))
print(*(x.__file__ for name, x in sys.modules.items() if name.split(".")[0] == "qrlora"), sep="\\n")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = {line.removeprefix(f"{SRC}/") for line in done.stdout.splitlines()}
    assert len(loaded) > 30 and loaded <= names(code_digest.imported_files(jobs.TRAINING_MODULE))


@pytest.mark.parametrize("entry", ["timestep_spacing", "prediction_type"])
def test_a_base_that_draws_or_learns_otherwise_is_another(entry):
    """Equal weights, another entry of the scheduler."""
    from qrlora.families import open_base

    base = open_base(pico.folder(), "cpu")
    before = jobs.base_digest(base)
    assert jobs.base_digest(open_base(pico.folder(), "cpu")) == before
    scheduler = base.pipe.scheduler
    other = {"timestep_spacing": "trailing", "prediction_type": "v_prediction"}[entry]
    base.pipe.scheduler = type(scheduler).from_config(scheduler.config, **{entry: other})
    assert jobs.base_digest(base) != before
