"""Every test: one thread, no network, a basis cache of its own."""

import os

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # before the hub's library reads it
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Bases that a test computes are neither read from nor left in the user's cache."""
    monkeypatch.setenv("QRLORA_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
