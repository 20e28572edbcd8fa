"""What every test gets: shapes in signatures checked at run time, and GPU tests left out where there is no GPU."""

import os

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

os.environ.setdefault("MPLBACKEND", "agg")

# The first call of anything imports half of torch: time is not what these tests test. In CI, the same examples always.
settings.register_profile("llmsys", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("llmsys")

# jaxtyping's annotations are promises until something checks them: here beartype does, in every call of every test.
# (Files of Triton kernels are left out: @triton.jit must meet the function as it was written.)
install_import_hook(
    [
        *(f"llmsys.attention.{stage}" for stage in "naive online tiled sdpa auto backward rotary".split()),
        "llmsys.cache",
        "llmsys.models",
        "llmsys.training",
    ],
    "beartype.beartype",
)


def pytest_collection_modifyitems(items):
    import torch

    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))
