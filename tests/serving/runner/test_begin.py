"""How a graph begins: one kernel does what eight operations of PyTorch do."""

import pytest
import torch

from llmsys.hardware.compiler import Compiled, compile_kernels
from llmsys.hardware.launches import Recorder
from llmsys.hardware.tier import load_triton, triton_device, triton_installed
from llmsys.serving.runner import begin as module
from llmsys.serving.runner.begin import begin
from llmsys.serving.runner.rows import Rows

if triton_installed():
    load_triton()
    from llmsys.serving.runner.begin_kernel import begin_kernel

    DEVICE = triton_device()
pytestmark = pytest.mark.skipif(not triton_installed(), reason="needs Triton")


def drawn(seed: int, B: int, M: int):
    """Rows with anything in them, and a step of B sequences of which some fill up."""
    gen = torch.Generator().manual_seed(seed)
    rows = Rows(1000, DEVICE, rows=B + 5, width=M)
    n = max(1, B - 2)
    with torch.inference_mode():
        rows.on_device[1:] = torch.randint(-1, 1000, (B + 5, M), generator=gen).int().to(DEVICE)
        rows.newest[:] = torch.randint(-1, 50, (B + 6,), generator=gen).int().to(DEVICE)
    row = torch.zeros(B, dtype=torch.int64)
    row[:n] = torch.randperm(B + 5, generator=gen)[:n] + 1
    tokens, columns, entries = torch.zeros(3, B, dtype=torch.int32)
    tokens[:n] = torch.randint(-1, 5, (n,), generator=gen)
    columns[:] = -1
    columns[:n] = torch.randint(-1, M, (n,), generator=gen)
    entries[:n] = torch.randint(0, 1000, (n,), generator=gen)
    return rows, [x.to(DEVICE) for x in (row, tokens, columns, entries)]


@pytest.mark.parametrize(("B", "M", "block"), [(1, 1, 16), (3, 40, 16), (8, 16, 16), (5, 33, 64), (16, 7, 1024)])
@torch.inference_mode()
def test_the_kernel_begins_as_pytorch_does(monkeypatch, B, M, block):
    monkeypatch.setattr(module, "BLOCK", block)
    for seed in range(3):
        (rows, step), (others, same) = drawn(seed, B, M), drawn(seed, B, M)
        before = rows.on_device.clone()
        tokens, table = begin(rows, *step, kernel=begin_kernel)
        row, given, columns, entries = (x.tolist() for x in step)
        for i, r in enumerate(row):
            if columns[i] >= 0:
                before[r, columns[i]] = entries[i]
            newest = max(0, int(rows.newest[r]))
            assert tokens[i] == (newest if given[i] < 0 else given[i])
        assert torch.equal(rows.on_device, before) and torch.equal(table, before[step[0]])
        expected = module._begin(others, *same)
        assert torch.equal(tokens, expected[0]) and torch.equal(table, expected[1])
        assert torch.equal(rows.on_device, others.on_device)


def test_compiled_for_hopper_nothing_is_spilled(tmp_path):
    recorder = Recorder(begin_kernel)
    rows = Rows(1000, torch.device("cpu"), rows=300, width=2560)
    rows.on_device, rows.newest = rows.on_device.to("meta"), rows.newest.to("meta")
    step = [torch.empty(256, dtype=dtype, device="meta") for dtype in (torch.int64, *[torch.int32] * 3)]
    begin(rows, *step, kernel=recorder)
    (compiled,) = compile_kernels([recorder.builds[0]], cache=tmp_path)
    assert isinstance(compiled, Compiled) and compiled.spill_bytes == 0 and not compiled.warnings, str(compiled)


@pytest.mark.gpu
@torch.inference_mode()
def test_on_a_gpu_it_is_what_a_step_begins_with():
    rows, step = drawn(1, 256, 2560)
    others, same = drawn(1, 256, 2560)
    for one, other in zip(begin(rows, *step), module._begin(others, *same), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(rows.on_device, others.on_device)
