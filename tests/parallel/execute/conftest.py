"""Processes are dear: all tests of a worker share the warm ranks, which end with them."""

import os

import pytest
import torch

# Which is decided by the first import of triton, and torch.optim imports it.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from llmsys.parallel.ranks import close


@pytest.fixture(scope="session", autouse=True)
def no_rank_is_left():
    yield
    close()
