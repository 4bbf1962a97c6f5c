"""Triton kernels run under its interpreter here: the variable is set before triton is imported."""

from __future__ import annotations

import os
import sys

os.environ["TRITON_INTERPRET"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as cores: threads only wait
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["MASKDSL_VERIFY"] = "1"  # the IR is checked between stages

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--refresh-goldens", action="store_true", help="write the files under tests/golden anew"
    )


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Kernels are emitted anew, and the user's cache is left alone."""
    os.environ["MASKDSL_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True, scope="session")
def _quick_interpreter() -> None:
    """Where the tests collected use it."""
    if "torch" in sys.modules:
        from quick_interpreter import install

        install()
