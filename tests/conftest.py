"""What every test gets: shapes in signatures checked at run time, GPU tests left out where there is no GPU, long tests
left out unless they are asked for (tests/support/size.py), and an account of the processor time."""

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

from tests.support.size import DATE, FULL

pytest_plugins = ["tests.support.processor_time"]

os.environ.setdefault("MPLBACKEND", "agg")

# Who starts a run in the background of a script has it ignore Ctrl-C, which is what some tests press.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The first call of anything imports half of torch: time is not what these tests test. In CI, the same examples always.
settings.register_profile("llmsys", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("llmsys")

# jaxtyping's annotations are promises until something checks them: here beartype does, in every call of every test.
# (Files of Triton kernels are left out: @triton.jit must meet the function as it was written.)
install_import_hook(
    [
        *(f"llmsys.attention.{stage}" for stage in "naive online tiled sdpa auto backward rotary".split()),
        *(f"llmsys.attention.latent.{part}" for part in ("forms", "paged")),
        "llmsys.cache",
        *(f"llmsys.models.{path.stem}" for path in (Path(__file__).parents[1] / "llmsys/models").glob("*.py")),
        *(f"llmsys.models.deepseek.{part}" for part in ("model", "sizes")),
        "llmsys.models.fused.forward",
        "llmsys.models.few_kernels.forward",
        "llmsys.models.mixture.model",
        *(f"llmsys.moe.{stage}" for stage in "router losses balance layer".split()),
        *(f"llmsys.moe.experts.{stage}" for stage in "reference groups rows matmul".split()),
        "llmsys.serving.sampling.sampler",
        "llmsys.training",
    ],
    "beartype.beartype",
)


def pytest_report_header():
    return "the full form: all mutations, seeds and lessons" if FULL else f"drawn by LLMSYS_TESTS_DATE={DATE}"


def pytest_collection_modifyitems(items):
    import torch

    without_gpu = not torch.cuda.is_available()
    for item in items:
        if without_gpu and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))
        if not FULL and item.get_closest_marker("long"):
            item.add_marker(pytest.mark.skip(reason="long: `make test-all` runs it"))
