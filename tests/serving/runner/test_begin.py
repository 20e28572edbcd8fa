"""How a decode step in a graph begins and ends: the kernels and PyTorch's form do as the host would."""

import pytest
import torch

from llmsys.hardware.compiler import Compiled, compile_kernels
from llmsys.hardware.launches import Recorder
from llmsys.hardware.tier import load_triton, triton_device, triton_installed
from llmsys.serving.runner import begin as module
from llmsys.serving.runner.begin import Buffered, Kernels, begin, end
from llmsys.serving.runner.rows import Rows
from llmsys.serving.sampling.sampler import uniform

KERNELS = None
if triton_installed():
    load_triton()
    from llmsys.serving.runner.begin_kernel import begin_kernel, end_kernel

    KERNELS = Kernels(begin_kernel, end_kernel)
DEVICE = triton_device() if triton_installed() else torch.device("cpu")
FORMS = ["torch", *(["triton"] if triton_installed() else [])]
PAGE = 3


def drawn(seed: int, B: int, M: int) -> tuple[Rows, Buffered]:
    """Rows with anything in them, and a step of B sequences of which some fill up."""
    gen = torch.Generator().manual_seed(seed)
    rows = Rows(1000, DEVICE, rows=B + 5, width=M)
    n = max(1, B - 2)
    with torch.inference_mode():
        rows.on_device[1:] = torch.randint(-1, 1000, (B + 5, M), generator=gen).int().to(DEVICE)
        rows.newest[:] = torch.randint(-1, 50, (B + 6,), generator=gen).int().to(DEVICE)
    row, seeds = torch.zeros(2, B, dtype=torch.int64)
    row[:n] = torch.randperm(B + 5, generator=gen)[:n] + 1
    seeds[:] = torch.randint(-(2**63), 2**63 - 1, (B,), generator=gen)
    computed, tokens, columns, entries = torch.zeros(4, B, dtype=torch.int32)
    computed[:n] = torch.randint(0, M * PAGE, (n,), generator=gen)
    tokens[:n] = torch.randint(-1, 5, (n,), generator=gen)
    columns[:] = -1
    columns[:n] = torch.where(torch.rand(n, generator=gen) < 0.5, computed[:n] // PAGE, -1)
    entries[:n] = torch.randint(0, 1000, (n,), generator=gen)
    return rows, Buffered(*(x.to(DEVICE) for x in (row, seeds, computed, tokens, columns, entries)))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("B", "M", "block"), [(1, 1, 16), (3, 40, 16), (8, 16, 16), (5, 33, 64), (16, 7, 1024)])
@torch.inference_mode()
def test_a_step_is_what_the_host_would_make_of_it_and_then_the_next_one(monkeypatch, form, B, M, block):
    monkeypatch.setattr(module, "BLOCK", block)
    if form == "torch":
        monkeypatch.setattr(module, "_triton_can", lambda tensor: False)
    kernels = KERNELS if form == "triton" else None
    for seed in range(3):
        rows, step = drawn(seed, B, M)
        before, newest = rows.on_device.cpu().clone(), rows.newest.cpu().clone()
        row, seeds, computed, given, columns, entries = (x.tolist() for x in step)
        begun = begin(rows, step, PAGE, kernels=kernels)
        for i, r in enumerate(row):
            if columns[i] >= 0:
                before[r, columns[i]] = entries[i]
            here = r > 0
            slot = int(before[r, computed[i] // PAGE]) * PAGE + computed[i] % PAGE
            token = max(0, int(newest[r])) if given[i] < 0 else given[i]
            found = [x[i].item() for x in begun[:5]]
            u = uniform([seeds[i]], [computed[i] + 1])[0]
            assert found == [token, computed[i], slot if here else -1, computed[i] + 1 if here else 0, u]
        assert torch.equal(rows.on_device.cpu(), before) and torch.equal(begun.table.cpu(), before[row])
        end(rows, step, torch.arange(-1, B - 1, dtype=torch.int32, device=DEVICE), kernels=kernels)
        for i, r in enumerate(row):
            if r > 0:
                newest[r] = i - 1
                assert (step.computed[i], step.tokens[i]) == (computed[i] + 1, -1)
            else:
                assert (step.computed[i], step.tokens[i]) == (0, 0)
        assert torch.equal(rows.newest.cpu()[1:], newest[1:]) and (step.columns == -1).all()
        assert begun.positions.tolist() == computed  # not what came later


@pytest.mark.gpu
def test_on_a_gpu_a_step_is_what_the_host_would_make_of_it(monkeypatch):
    test_a_step_is_what_the_host_would_make_of_it_and_then_the_next_one(monkeypatch, "triton", 256, 1500, 1024)


@pytest.mark.skipif(not triton_installed(), reason="needs Triton")
def test_compiled_for_hopper_nothing_is_spilled(tmp_path):
    recorders = Kernels(Recorder(begin_kernel), Recorder(end_kernel))
    rows = Rows(1000, torch.device("cpu"), rows=300, width=2560)
    rows.on_device, rows.newest = rows.on_device.to("meta"), rows.newest.to("meta")
    step = Buffered(*(torch.empty(256, dtype=torch.int64 if i < 2 else torch.int32, device="meta") for i in range(6)))
    begin(rows, step, 16, kernels=recorders)
    end(rows, step, step.tokens, kernels=recorders)
    for compiled in compile_kernels([each.builds[0] for each in recorders], cache=tmp_path):
        assert isinstance(compiled, Compiled) and compiled.spill_bytes == 0 and not compiled.warnings, str(compiled)
