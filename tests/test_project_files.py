"""What stands around the code agrees with it: version, address, licences, workflows, citation, the notebook."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from PIL import Image

import pico
from qrlora import __version__
from qrlora.built_in_bases import built_in_bases

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
BASES = ROOT / "packages" / "qrlora-bases"
NOTEBOOK = ROOT / "examples" / "qrlora.ipynb"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def test_the_version_stands_in_one_place_and_its_changelog_section_is_dated():
    for folder in (ROOT, BASES):
        built = tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))
        assert "version" in built["project"]["dynamic"] and "version" not in built["project"]
        path = folder / built["tool"]["hatch"]["version"]["path"]
        assert path.resolve() == (ROOT / "src" / "qrlora" / "__init__.py").resolve()
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert re.search(rf"^## {re.escape(__version__)} - \d{{4}}-\d\d-\d\d$", changelog, re.M)
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text("utf-8")


def test_every_file_that_names_the_project_s_address_names_that_of_pyproject():
    """One place to set it: whoever moves the project is told by this test where else it stands."""
    home = PROJECT["urls"]["Repository"]
    name = home.removeprefix("https://github.com/")
    assert f"repository-code: {home}\n" in (ROOT / "CITATION.cff").read_text("utf-8")
    assert tomllib.loads((BASES / "pyproject.toml").read_text("utf-8"))["project"]["urls"]["Repository"] == home
    notebook = NOTEBOOK.read_text("utf-8")
    assert f"git+{home}" in notebook and f"colab.research.google.com/github/{name}/blob/main/{'examples'}" in notebook
    assert all(url.startswith(home) or "arxiv.org" in url for url in PROJECT["urls"].values())


def test_the_data_package_has_the_licences_of_the_code_s():
    for path in [ROOT / "LICENSE", ROOT / "NOTICE", *(ROOT / "LICENSES").iterdir()]:
        assert (BASES / path.relative_to(ROOT)).read_bytes() == path.read_bytes(), path.name


def test_taef2_from_which_the_vaes_began_is_credited_beside_every_base_under_its_licence():
    for folder in (ROOT, BASES):
        notice, licence = (folder / "NOTICE").read_text("utf-8"), folder / "LICENSES" / "MIT-TAESD.txt"
        credited = re.search(r"TAEF2.*?copyright 2023 Ollin Boer Bohan, MIT\s+License \(see (\S+)\)", notice, re.S)
        assert credited is not None and folder / credited[1] == licence
        assert "MIT License\n\nCopyright (c) 2023 Ollin Boer Bohan\n" in licence.read_text("utf-8")
    assert built_in_bases()
    for base in built_in_bases().values():
        card = (base / "README.md").read_text("utf-8")
        assert "TAEF2 (MIT, copyright 2023 Ollin Boer Bohan)" in card and "NOTICE" in card, base.name


def test_notice_names_files_that_exist_and_every_licence_is_named_in_it():
    notice = (ROOT / "NOTICE").read_text("utf-8")
    named = re.findall(r"\b(?:src|docs|LICENSES)/[\w./-]*\w", notice)
    assert named and all((ROOT / name).is_file() for name in named)
    assert {f"LICENSES/{path.name}" for path in (ROOT / "LICENSES").iterdir()} <= set(named)
    assert "[NOTICE](NOTICE)" in (ROOT / "README.md").read_text("utf-8")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_names_files_targets_and_extras_that_exist(path):
    text = path.read_text("utf-8")
    targets = set(re.findall(r"^([a-z]+):", make_text(), re.M))
    assert set(re.findall(r"run: make (\w+)", text)) <= targets
    for name in re.findall(r"\b(?:tests|packages|src)/[\w./-]+", text):
        assert (ROOT / name).exists(), name
    extras = {x for names in re.findall(r"[}.)]\"?\[([a-z,]+)\]", text) for x in names.split(",")}
    assert extras <= set(PROJECT["optional-dependencies"])
    assert "contents: write" not in text and "secrets." not in text


def test_every_file_that_is_named_for_running_exists():
    """After a rename, too: in make's targets, in the scripts of checks and in what says which script shows a figure."""
    numeric = re.search(r"^NUMERIC := .*addprefix (tests/test_),\$\(addsuffix (\.py),([\w ]+)\)", make_text(), re.M)
    assert numeric is not None
    start, end, names = numeric.groups()
    assert names.split() and all((ROOT / f"{start}{name}{end}").is_file() for name in names.split())
    sources = [ROOT / "Makefile", ROOT / ".ci" / "run", *PAGES]
    sources += [path for folder in ("src", "bench", "docs", "testing") for path in (ROOT / folder).rglob("*.py")]
    for path in sources:
        for name in re.findall(
            r"(?<![\w/.-])(?:python|bash) ((?:bench|tests|examples)/[\w./-]+\.(?:py|sh))", path.read_text("utf-8")
        ):
            assert (ROOT / name).is_file(), f"{path.relative_to(ROOT)} names {name}"


def make_text() -> str:
    return (ROOT / "Makefile").read_text("utf-8")


def cells() -> list[str]:
    notebook = json.loads(NOTEBOOK.read_text("utf-8"))
    assert notebook["nbformat"] == 4 and not any(cell.get("outputs") for cell in notebook["cells"])
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


@pytest.mark.processes
def test_the_notebook_makes_an_image_and_a_file_on_a_stand_in_for_its_base(tmp_path):
    """As it stands but for its base, which is pico's, with fewer and smaller steps; its shell lines are run as such."""
    for name in ("content", "style"):
        Image.effect_noise((40, 40), 80).convert("RGB").save(tmp_path / f"{name}.png")
    lines = []
    for cell in cells():
        for line in cell.splitlines():
            if line.startswith("%pip"):
                continue
            if line.startswith("!"):
                words = [sys.executable, "-m", *line[1:].split()]
                line = f"import subprocess; subprocess.run({words!r}, check=True)"
            lines.append(line)
    text, count = re.subn(r'^BASE = ".*"$', f"BASE = {str(pico.folder())!r}", "\n".join(lines), flags=re.M)
    text, settings = re.subn(r"^SETTINGS = .*$", "SETTINGS = dict(steps=2)", text, flags=re.M)
    assert (count, settings) == (1, 1)
    done = subprocess.run([sys.executable, "-c", text], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {"merged.safetensors", "merged-0.png", "merged-1.png"} <= {path.name for path in tmp_path.iterdir()}


def test_the_notebook_s_own_drawings_and_settings_are_there():
    """What the rehearsal replaces: the drawings for who uploads nothing, and settings of a training."""
    from qrlora import TrainConfig

    (setup,) = (cell for cell in cells() if "SETTINGS =" in cell)
    (settings,) = re.findall(r"^SETTINGS = (dict\(.*?\))", setup, re.M)
    TrainConfig(image=Path("a.png"), output=Path("a.safetensors"), **eval(settings))
    assert "true_image" in setup
    from qrlora.world.ground_truth import true_image

    assert true_image("robot", "plain").size == true_image("panda", "dusk").size == (128, 128)


LINK = re.compile(r"\]\((?!\w+:|#)([^)\s#]+)")


def test_every_link_and_picture_of_a_page_leads_to_a_file():
    for page in PAGES:
        for target in LINK.findall(re.sub(r"^( *)```.*?^\1```$", "", page.read_text("utf-8"), flags=re.M | re.S)):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_site_has_every_page_and_every_public_name():
    import qrlora

    navigation = (ROOT / "mkdocs.yml").read_text("utf-8").partition("\nnav:\n")[2]
    assert set(re.findall(r"(\w+\.md)$", navigation, re.M)) == {path.name for path in (ROOT / "docs").glob("*.md")}
    shown = "".join(path.read_text("utf-8") for path in (ROOT / "docs").glob("api*.md"))
    assert {name for name in qrlora.__all__ if f"::: qrlora.{name}\n" not in shown} == set()
