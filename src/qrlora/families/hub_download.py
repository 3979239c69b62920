"""Base models from the hub: OWNER/NAME, or OWNER/NAME@REVISION for a branch, tag or commit of it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

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
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        with _silence_retries():
            return list_repo_files(repository, revision=revision)
    except (OfflineModeIsEnabled, _transport_error()):
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
def hub_or_cache() -> Iterator[None]:
    """Use the hub if it answers, else what its cache holds: without a network its client tries again for half a minute
    or more before it says so. A slow network answers; who has one that takes longer than the hub's own limit sets
    HF_HUB_ETAG_TIMEOUT, in seconds."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _hub_answers()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _hub_answers() -> bool:
    """Whether the hub, or the proxy on the way to it, answers one request, with whatever; so does one that is late."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except _transport_error() as error:
        return type(error).__name__ in ("ReadTimeout", "ProxyError")
    return True


def _transport_error() -> type[Exception]:
    """What the hub client's HTTP library raises for all that goes wrong on the way: its name has changed twice."""
    from huggingface_hub.errors import HfHubHTTPError

    return cast(type[Exception], HfHubHTTPError.__bases__[0])


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
