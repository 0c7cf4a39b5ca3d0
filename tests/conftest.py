"""What holds for every test: two threads, no network, a cache of its own, quick folders first, `--update-goldens`."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest

# Set before anything imports torch, and inherited by the processes that tests start. torch reads OMP_NUM_THREADS when
# it is first imported, so tests that need no torch do not pay for it here.
os.environ.setdefault("OMP_NUM_THREADS", "2")
# What is faster on the device at hand must not decide what other tests see: those about it say otherwise.
os.environ.setdefault("GLMC_TIMING", "0")
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

QUICK_FIRST = ("house", "checkpoint", "runtime", "families", "kernels", "passes")
"""Folders of tests/ in the order they run; files directly in tests/ (whole roads) come last."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-goldens", action="store_true", help="accept what the code gives now as the golden text")


@pytest.fixture
def update_goldens(request: pytest.FixtureRequest) -> bool:
    """True when the run is to rewrite the golden files instead of comparing with them."""
    return request.config.getoption("--update-goldens")


def pytest_configure(config: pytest.Config) -> None:
    """A folder of the run, with a compiler cache that starts empty, so that no test passes thanks to an earlier run."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        return  # the workers share the folder of the process that started them
    config.glmc_cache = tempfile.mkdtemp(prefix="glmc-tests-")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.environ["TESTS_FOLDER"] = config.glmc_cache
    os.environ["GLMC_CACHE"] = os.path.join(config.glmc_cache, "compiled")


def pytest_unconfigure(config: pytest.Config) -> None:
    if hasattr(config, "glmc_cache"):
        shutil.rmtree(config.glmc_cache, ignore_errors=True)


def rank(item: pytest.Item) -> int:
    """The place of a test's folder in QUICK_FIRST; unknown folders after the known ones, loose files after those."""
    parts = item.path.relative_to(Path(__file__).parent).parts
    if len(parts) == 1:
        return len(QUICK_FIRST) + 1
    return QUICK_FIRST.index(parts[0]) if parts[0] in QUICK_FIRST else len(QUICK_FIRST)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=rank)  # stable: within a folder the order stays
