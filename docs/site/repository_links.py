"""Links of a page to files outside docs/ go to the repository, whose address pyproject.toml has; a dead one fails."""

import os
import re
import tomllib
from pathlib import Path

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)\s#]+)(?=[)#\s])")
"""The target of a Markdown link or image that is neither an address nor an anchor of the page."""


def on_config(config):
    """The address stands in pyproject.toml alone."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    config.repo_url = project["urls"]["Repository"]
    config.repo_name = config.repo_url.removeprefix("https://github.com/")
    config.edit_uri = ""
    return config


def on_files(files, config):
    """The icon of the package's own pages."""
    icon = ROOT / "src" / "qrlora" / "web" / "static" / "icon.svg"
    files.append(File.generated(config, "site/icon.svg", abs_src_path=str(icon)))
    return files


def on_page_markdown(markdown, page, config, files):
    """The page with each link that leaves docs/ turned into the repository's."""
    folder = Path(page.file.abs_src_path or ROOT / "docs" / page.file.src_uri).parent

    def target(found: re.Match) -> str:
        path = Path(os.path.normpath(folder / found[1]))
        if path.is_relative_to(ROOT / "docs"):
            return found[1]  # MkDocs checks these itself
        if not path.exists():
            raise PluginError(f"{page.file.src_uri}: no {found[1]} in the repository")
        kind = "tree" if path.is_dir() else "blob"
        return f"{config.repo_url}/{kind}/main/{path.relative_to(ROOT).as_posix()}"

    return LINK.sub(target, markdown)
