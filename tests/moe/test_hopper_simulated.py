"""The text of the Hopper products on simulated warps and engines (`llmsys.attention.hopper.simulated`): right for every
order of them, at any loads; and wrong kernels are found out."""

import math
import random
from types import FunctionType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsys.attention.hopper.fresh_modules import fresh_modules
from llmsys.attention.hopper.simulated import gluon
from llmsys.attention.hopper.simulated.gluon import Descriptor, Pointer
from llmsys.attention.hopper.simulated.processor import Deadlock, Processor, Race
from llmsys.hardware.kernel_source import underlying
from llmsys.hardware.tier import load_triton, triton_installed
from llmsys.moe.experts import group_by_expert
from llmsys.moe.experts.hopper import BLOCK_M, HopperTiles
from tests.attention.sample import examples

if triton_installed():
    load_triton()  # before torch's compiler does, in the other mode

MODULES = ("llmsys.attention.hopper.ring", "llmsys.moe.experts.hopper_kernels")
LOADS = st.lists(st.sampled_from([0, 1, 63, 64, 65, 128, 129, 200]), min_size=1, max_size=4).filter(sum)
TILES = st.sampled_from([HopperTiles(32, 32, 2), HopperTiles(32, 16, 3), HopperTiles(16, 16, 4)])
OWN = 7  # rows that are nobody's


class Ragged(Descriptor):
    """Rows that end anywhere: [2³⁰, stop, 2³⁰ − n, c] begins n rows before row `stop`, which is not there any more."""

    def __init__(self, x, block):
        super().__init__(x, [1, 1, *block])

    def inside(self, at):
        (billion, stop, end, column), (_, _, rows, columns) = (int(n) for n in at), self.block_type.shape
        assert billion == 2**30 >= end
        there, wide = (max(min(n, size), 0) for n, size in ((2**30 - end, rows), (self.x.shape[1] - column, columns)))
        first = stop - (2**30 - end)
        return (slice(first, first + there), slice(column, column + wide)), (0, 0, slice(there), slice(wide))


def as_python(function, names):
    plain = underlying(function)
    if plain is function:
        return function
    return FunctionType(plain.__code__, names | {"__name__": plain.__module__}, plain.__name__, plain.__defaults__)


def kernels(**changes):
    return fresh_modules(*MODULES, gluon=gluon, functions=changes, prepare=as_python)


def grouped(loads):
    experts = torch.repeat_interleave(torch.arange(len(loads)), torch.tensor(loads))
    experts = torch.cat([experts, torch.full((OWN,), -1)])
    return group_by_expert(experts[:, None], len(loads), block_m=BLOCK_M)


def rows(loads, columns):
    """Those of experts, and NaN for those that are nobody's."""
    x = torch.randn(sum(loads) + OWN, columns).half()
    x[sum(loads) :] = math.nan
    return x


def multiply(x, weight, groups, tiles, *, seed=0, programs=2, module=None):
    module = module or kernels()
    OUT, IN = weight.shape[1:]
    out = torch.full((len(x), OUT), math.nan).half()
    transposed, half = weight.stride(2) == 1, BLOCK_M // 2
    stored = weight if transposed else weight.transpose(1, 2)
    block = [1, tiles.columns, tiles.inner] if transposed else [1, tiles.inner, tiles.columns]
    for program in range(programs):
        Processor(program, programs, random.Random(f"{seed} {program}"))
        module.grouped_matmul_hopper_kernel(
            Descriptor(x, [half, tiles.inner]), Descriptor(stored, block), Ragged(out, [half, tiles.piece]),
            *map(Pointer, (groups.starts, groups.tile_expert, groups.tile_row, groups.tiles)),
            -(-OUT // tiles.columns), -(-IN // tiles.inner),
            TRANSPOSED=transposed, SLOTS=tiles.slots, GROUP=2, REGISTERS=0,
        )  # fmt: skip
    return out


def weight_gradient(dout, x, groups, tiles, *, seed=0, programs=2, module=None):
    module = module or kernels()
    OUT, IN = dout.shape[1], x.shape[1]
    found, half = torch.full((groups.experts, OUT, IN), math.nan).half(), BLOCK_M // 2
    for program in range(programs):
        Processor(program, programs, random.Random(f"{seed} {program}"))
        module.weight_gradient_hopper_kernel(
            Ragged(dout, [tiles.inner, half]), Ragged(x, [tiles.inner, tiles.columns]),
            Descriptor(found, [1, half, tiles.piece]), Pointer(groups.starts), Pointer(groups.by_load),
            -(-OUT // BLOCK_M), -(-IN // tiles.columns), groups.experts, SLOTS=tiles.slots, REGISTERS=0,
        )  # fmt: skip
    return found


def each_experts(groups):
    starts = groups.starts.tolist()
    return enumerate(slice(a, b) for a, b in zip(starts, starts[1:], strict=False))


@settings(max_examples=examples(12))
@given(loads=LOADS, tiles=TILES, IN=st.sampled_from([8, 64, 72]), OUT=st.sampled_from([8, 40]), seed=st.integers(0, 99))
def test_products_are_each_experts_in_any_order_of_warps(loads, tiles, IN, OUT, seed):
    torch.manual_seed(seed)
    groups, x, weight = grouped(loads), rows(loads, IN), torch.randn(len(loads), OUT, IN).half()
    for matrices in (weight, weight.transpose(1, 2).contiguous().transpose(1, 2)):
        out = multiply(x, matrices, groups, tiles, seed=seed, programs=1 + seed % 3)
        for e, at in each_experts(groups):
            right = x[at].float() @ weight[e].float().t()
            torch.testing.assert_close(out[at].float(), right, atol=2e-2, rtol=2e-3)
        assert out[sum(loads) :].isnan().all()  # not written


@settings(max_examples=examples(8))
@given(loads=LOADS, tiles=TILES, seed=st.integers(0, 99))
def test_gradients_are_each_experts_in_any_order_of_warps(loads, tiles, seed):
    torch.manual_seed(seed)
    groups, x, dout = grouped(loads), rows(loads, 40), rows(loads, 136)
    found = weight_gradient(dout, x, groups, tiles, seed=seed, programs=1 + seed % 3)
    for e, at in each_experts(groups):
        right = dout[at].float().t() @ x[at].float()
        torch.testing.assert_close(found[e].float(), right, atol=5e-2, rtol=2e-3)  # zeros for one without rows


def forgets_to_give_back(self, i):
    pass


def gives_back_before(original):
    def take(self, i):
        slot = original(self, i)
        self.give_back(i)
        return slot

    return take


def test_a_slot_that_is_never_given_back_is_a_deadlock():
    module = kernels()
    module.Slots.give_back = forgets_to_give_back
    with pytest.raises(Deadlock, match="load_rows"):
        multiply(
            rows([200], 200), torch.randn(1, 40, 200).half(), grouped([200]), HopperTiles(32, 32, 2), module=module
        )


def test_a_slot_that_is_given_back_before_its_product_is_done_is_a_race():
    loads, found = [200, 129], []
    for seed in range(10):
        module = kernels()
        module.Slots.take = gives_back_before(module.Slots.take)
        module.Slots.give_back, real = (lambda self, i: None), module.Slots.give_back
        module.Slots.take = lambda self, i, real=real, take=module.Slots.take: (take(self, i), real(self, i))[0]
        weight = torch.randn(2, 40, 300).half()
        try:
            multiply(rows(loads, 300), weight, grouped(loads), HopperTiles(32, 32, 2), module=module, seed=seed)
        except Race as error:
            found.append(str(error))
    assert found and all("still reads" in error for error in found)


def without_fence(tile, staging, desc, at):
    gluon.tma.store_wait(0)
    staging.reshape(tile.shape).store(tile)
    gluon.tma.async_copy_shared_to_global(desc, at, staging)


def without_waiting(tile, staging, desc, at):
    staging.reshape(tile.shape).store(tile)
    gluon.fence_async_shared()
    gluon.tma.async_copy_shared_to_global(desc, at, staging)


def test_a_result_that_is_copied_without_a_fence_is_a_race():
    module = kernels(write=without_fence)
    with pytest.raises(Race, match="no fence"):
        multiply(rows([70], 64), torch.randn(1, 40, 64).half(), grouped([70]), HopperTiles(32, 32, 2), module=module)


def test_a_result_that_is_overwritten_while_it_is_copied_is_wrong_in_some_order():
    x, weight, groups = rows([300], 64), torch.randn(1, 40, 64).half(), grouped([300])
    right = x[:300].float() @ weight[0].float().t()
    wrong = 0
    for seed in range(10):
        module = kernels(write=without_waiting)
        out = multiply(x, weight, groups, HopperTiles(32, 16, 2), seed=seed, programs=1, module=module)
        wrong += not torch.allclose(out[:300].float(), right, atol=2e-2, rtol=2e-3)
    assert wrong
