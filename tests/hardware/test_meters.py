"""The meters count what operations do to memory, and nothing else."""

import subprocess
import sys

import pytest
import torch

from llmsys.hardware.meters import largest_allocation, reads_of


def test_a_view_allocates_nothing_and_reads_nothing():
    x = torch.randn(8, 16)
    with largest_allocation() as allocated, reads_of(x) as reads:
        x[2:].T[None].expand(3, 16, 6)
    assert (allocated.bytes, allocated.shape) == (0, ())
    assert reads.elements == 0 and reads.passes == 0


def test_the_largest_of_several_allocations_is_kept():
    x = torch.randn(4, 10)
    with largest_allocation() as allocated:
        y = x @ x.T  # (4, 4)
        z = (x[:, :, None] * x[:, None, :]).sum()  # (4, 10, 10)
        y.mul_(2), z
    assert allocated.shape == (4, 10, 10) and allocated.bytes == 4 * 10 * 10 * 4


def test_a_score_matrix_is_seen_where_it_is_made_and_only_there():
    q, k, v = (torch.randn(1, 2, 64, 8) for _ in range(3))
    with largest_allocation() as naive:
        torch.softmax(q @ k.mT, -1) @ v
    with largest_allocation() as fused:
        torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert naive.bytes == 2 * 64 * 64 * 4
    assert fused.bytes < naive.bytes


@pytest.mark.parametrize(
    ("read", "elements"),
    [
        (lambda x: x.sum(), 24),
        (lambda x: x[1].sum(), 6),
        (lambda x: x[:, ::2].amax(), 12),
        (lambda x: x * x, 48),
        (lambda x: torch.cat([x[:1], x[:1]]), 12),
        (lambda x: x.clone(), 24),
        (lambda x: x.t().contiguous(), 24),
        (lambda x: x[2].unsqueeze(0).expand(5, 6).sum(), 30),
        (lambda x: x.new_full((5,), 0.0), 0),
        (lambda x: torch.empty_like(x), 0),
        (lambda x: x.copy_(torch.ones(4, 6)), 0),
        (lambda x: x.fill_(1.0), 0),
        (lambda x: torch.add(torch.ones(4, 6), 1.0, out=x), 0),
        (lambda x: x.add_(1.0), 24),
        (lambda x: x.shape, 0),
        (lambda x: torch.softmax(x, -1), 24),
        (lambda x: x[0, 0].item(), 1),
    ],
)
def test_what_counts_as_reading(read, elements):
    x = torch.randn(4, 6)
    with reads_of(x) as reads:
        read(x)
    assert reads.elements == elements


def test_only_the_tensor_asked_about_counts_under_autograd_too():
    x, other = torch.randn(4, 6, requires_grad=True), torch.randn(4, 6)
    with reads_of(other) as reads:
        (x * 2).sum().backward()
    assert reads.elements == 0
    with reads_of(x) as reads:
        (x * other).sum()
    assert reads.passes == 1


def test_an_empty_tensor_has_no_passes():
    with reads_of(torch.empty(0)) as reads:
        pass
    assert reads.passes == 0


def test_metering_does_not_import_triton_or_the_compiler():
    """torch would, for a dispatch mode of its usual kind, and so fix Triton's mode before `load_triton` can."""
    program = (
        "import sys, torch\n"
        "from llmsys.hardware.meters import largest_allocation, reads_of\n"
        "x = torch.ones(3)\n"
        "with largest_allocation(), reads_of(x):\n"
        "    x + x\n"
        "assert not {'triton', 'torch._dynamo'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
