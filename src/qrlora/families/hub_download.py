"""Base models from the hub: OWNER/NAME, or OWNER/NAME@REVISION for a branch, tag or commit of it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

NAME = re.compile(r"(?P<repository>[^/~.][^/]*/[^/@]+)(?:@(?P<revision>.+))?")


def parse_hub_name(name: str) -> tuple[str, str | None] | None:
    """(OWNER/NAME, revision or None for the repository's main branch); None: no name of a hub's."""
    found = NAME.fullmatch(name)
    return (found["repository"], found["revision"]) if found and not name.endswith(".safetensors") else None


def fetch_index(repository: str, revision: str | None) -> Path:
    """A pipeline's `model_index.json`, fetched if it is not here, in the folder that will hold the rest."""
    from huggingface_hub import hf_hub_download

    with _silence_retries():
        return Path(hf_hub_download(repository, "model_index.json", revision=revision))


def repository_files(repository: str, revision: str | None, folder: Path) -> list[str]:
    """Names of the files of a repository on the hub; of those that were fetched into a folder, if the hub cannot be
    reached."""
    from huggingface_hub import list_repo_files
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    # the HTTP library's own base of all that goes wrong on the way; the hub's client has changed that library twice
    unreachable: Any = HfHubHTTPError.__bases__[0]
    try:
        with _silence_retries():
            return list_repo_files(repository, revision=revision)
    except (OfflineModeIsEnabled, unreachable):
        return folder_files(folder)


def folder_files(folder: Path) -> list[str]:
    """Names of a pipeline's files in a folder, as "unet/config.json"."""
    return [path.relative_to(folder).as_posix() for path in folder.glob("*/*") if path.is_file()]


def fetch_pipeline(repository: str, revision: str | None, variant: str, absent: Mapping[str, None]) -> Path:
    """The folder of a pipeline in the hub's cache, with all that it lacked fetched: weights as safetensors, of one
    variant where a component has it, without the components that are absent."""
    import diffusers

    options = {"revision": revision, "variant": variant or None, "use_safetensors": True, **absent}
    return Path(diffusers.DiffusionPipeline.download(repository, **options))


@contextlib.contextmanager
def _silence_retries() -> Iterator[None]:
    """Silence the hub client: five lines about retries tell a person without network less than our one."""
    from huggingface_hub.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
