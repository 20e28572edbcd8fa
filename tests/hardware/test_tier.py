"""Loading Triton: the mode fits the machine, a preset is respected, and an earlier import in the other mode is
explained."""

import pytest
import torch

from llmsys.hardware import tier
from tests.hardware.fresh import run_alone, run_fresh

needs_triton = pytest.mark.skipif(not tier.triton_installed(), reason="Triton is not installed here")


@needs_triton
def test_without_a_gpu_triton_is_interpreted_and_with_one_it_is_not():
    out = run_fresh("from llmsys.hardware import tier; print(tier.interpreting(), tier.tier())")
    assert out == ("False gpu" if torch.cuda.is_available() else "True interpreter")


@needs_triton
@pytest.mark.parametrize(("preset", "interpreted"), [("1", "True cpu"), ("0", "False cuda")])
def test_a_preset_mode_is_respected(preset, interpreted):
    code = "import llmsys.hardware.tier as t; print(t.interpreting(), t.triton_device())"
    assert run_fresh(code, TRITON_INTERPRET=preset) == interpreted


@needs_triton
def test_triton_imported_first_in_the_other_mode_is_explained():
    out = run_fresh(
        """
        import os, triton                       # somebody was here before us, compiling
        from llmsys.hardware.tier import load_triton
        os.environ["TRITON_INTERPRET"] = "1"
        try: load_triton()
        except RuntimeError as error: print(error)
        """
    )
    assert "imported compiling before" in out and "Restart the kernel" in out


def test_the_library_imports_and_the_pytorch_stages_work_with_triton_blocked():
    out = run_fresh(
        """
        import sys; sys.modules["triton"] = None
        import torch, llmsys.attention, llmsys.models, llmsys.course, llmsys.viz, llmsys.bench
        from llmsys.hardware.tier import load_triton, tier
        q = torch.randn(1, 2, 5, 8)
        for name, stage in llmsys.attention.STAGES.items():
            if name not in ("flash", "hopper"): stage(q, q, q, causal=True)
        try: llmsys.attention.STAGES["flash"](q, q, q)
        except ImportError as error: assert "pip install triton" in str(error) or "dev container" in str(error)
        else: raise AssertionError("a stage in Triton ran without Triton")
        print(tier())
        try: load_triton()
        except ImportError as error: print(error)
        """
    )
    assert out.startswith("pytorch\n") and ("pip install triton" in out or "dev container" in out)


@pytest.mark.parametrize(
    ("release", "command"),
    [
        ("2.11.0+cu130", "`pip install triton~=3.6.0`"),
        ("2.13.0+cpu", "`pip install triton~=3.7.0`"),
        ("2.15.1", "`pip install triton~=3.9.0`"),
        ("2.99.0", "`pip install triton`."),
    ],
)
def test_without_triton_the_version_that_goes_with_this_torch_is_named(monkeypatch, release, command):
    monkeypatch.setattr(tier, "triton_installed", lambda: False)
    monkeypatch.setattr(tier.sys, "platform", "linux")
    monkeypatch.setattr(tier.torch, "__version__", release)
    with pytest.raises(ImportError) as error:
        tier.load_triton()
    assert command in str(error.value)


def test_importing_the_library_imports_neither_torch_nor_triton_and_sets_nothing():
    out = run_alone(
        """
        import os, sys
        before = dict(os.environ)
        import llmsys
        print("torch" in sys.modules, "triton" in sys.modules, os.environ == before)
        """
    )
    assert out == "False False True"
