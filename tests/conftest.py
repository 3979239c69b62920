"""Every test: one thread, no network, a seed and a basis cache of its own."""

import ctypes
import os
import signal
import sys
import zlib

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # both before the libraries that read them are imported, here or by a test
os.environ.setdefault("OMP_NUM_THREADS", "1")
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job hands on that it is ignored


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


@pytest.fixture(params=[True, False], ids=["fast bfloat16", "slow bfloat16"])
def with_and_without_fast_bfloat16(request, monkeypatch):
    """What a search does depends on it: it has to be right on either kind of machine, whatever this one is."""
    monkeypatch.setattr("qrlora.lanczos.has_fast_bfloat16", lambda device: request.param)


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


@pytest.fixture
def two_steps(monkeypatch):
    """Settings of a pre-training on few latents, under a digest of their own, whichever sheets are here."""
    from few_latents import few_latents
    from qrlora.world import pretrain

    monkeypatch.setattr(pretrain, "set_training_set", lambda run, excerpt: setattr(run, "training_set", "few latents"))
    monkeypatch.setattr(pretrain, "load_or_build_training_set", lambda run, path: few_latents(run.base))
    return pretrain.PretrainingSettings(samples=24, batch_size=6, warmup=1)


@pytest.fixture(scope="session")
def postgresql():
    """The URL of a PostgreSQL server on loopback; skips where there is none. CI installs it."""
    import servers

    if servers.postgres_folder() is None:
        pytest.skip("no PostgreSQL here")
    with servers.postgres("fsync=off") as url:
        yield url


OVERRIDE = 1 << 1 | 1 << 2
"""CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH: what makes permissions mean nothing to root."""


@pytest.fixture
def permissions_count():
    """Root obeys permissions as everybody does; linux(7) capabilities."""
    if os.name != "posix" or os.geteuid() != 0:
        yield
        return
    if sys.platform != "linux":
        pytest.skip("root is refused nothing here")
    libc = ctypes.CDLL(None, use_errno=True)
    head, before, less = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)(), (ctypes.c_uint32 * 6)()
    assert libc.capget(head, before) == 0
    ctypes.memmove(less, before, ctypes.sizeof(before))
    less[0] &= ~OVERRIDE  # the effective ones; they stay permitted, to be taken back
    assert libc.capset(head, less) == 0
    yield
    assert libc.capset(head, before) == 0


@pytest.fixture
def small_disk():
    """The operating system refuses files above 64 kB, as a full disk does."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
