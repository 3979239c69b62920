"""Every test: one thread, no network, a seed and a basis cache of its own."""

import os
import zlib

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # both before the libraries that read them are imported, here or by a test
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Bases that the tests compute are neither read from nor left in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QRLORA_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        yield


@pytest.fixture(autouse=True)
def own_seed(request):
    """Random numbers depend on the test's name alone, not on which tests ran before it in the same process."""
    import torch

    torch.manual_seed(zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture(scope="session")
def studio(tmp_path_factory):
    """A folder with two pictures and the two adapters that `qrlora train` makes of them."""
    from PIL import Image

    import pico
    from qrlora import cli

    folder = tmp_path_factory.mktemp("studio")
    for name in ("dog", "cat"):
        Image.effect_noise((20, 20), 60).convert("RGB").save(folder / f"{name}.png")
    common = [f"base={pico.folder()}", "rank=4"]
    roles = {"dog": ["role=content"], "cat": ["role=style", "prompt=a cat in <s> style"]}
    for name, settings in roles.items():
        places = [f"image={folder / name}.png", f"output={folder / name}.safetensors"]
        with pytest.raises(SystemExit) as end:
            cli.main(["train", *common, *settings, *places])
        assert not end.value.code
    return folder
