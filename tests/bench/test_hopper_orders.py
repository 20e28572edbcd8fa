"""The hopper kernel in other orders: right on simulated warps, compiled for Hopper, and timed on one."""

import importlib.util

import pytest
import torch

from llmsys.attention import naive_attention
from llmsys.attention.hopper.fresh_modules import FORWARD, fresh_modules
from llmsys.attention.hopper.schedule import ROWS, TWO, HopperTiles
from llmsys.attention.hopper.simulated import gluon
from llmsys.attention.hopper.simulated.forward import simulate
from llmsys.bench.hopper_orders import HEADS, MODEL, T, measure, predicted, table
from llmsys.bench.low_precision import eager_attention
from llmsys.bench.record import new_record
from llmsys.hardware.compiler import Build, Compiled, compile_kernels
from tests.attention.sample import sample

NAMES = ["one_at_a_time", "independent", "ping_pong", "overlapped_alone", "overlapped_held", "overlapped"]


@pytest.fixture(scope="module")
def simulated() -> dict:
    """The kernels as plain Python, over the simulated processor."""
    return fresh_modules(*FORWARD, "llmsys.bench.hopper_orders_kernels", gluon=gluon).KERNELS


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("consumers", [2, 3])
def test_every_step_computes_attention_in_any_order_of_warps(simulated, name, consumers):
    assert list(simulated) == NAMES
    torch.manual_seed(4)
    q, k, v = (torch.randn(1, 2, 250, 64).half() for _ in range(3))
    exact, exact_lse = naive_attention(q.double(), k.double(), v.double(), return_lse=True)
    eager = (eager_attention(q, k, v).double() - exact).abs().max()
    for seed in range(3):
        tiles = HopperTiles(consumers, 64, 2, 0, 0)
        o, lse = simulate(q, k, v, kernel=simulated[name], tiles=tiles, programs=1, seed=seed)
        assert (o.double() - exact).abs().max() <= 2 * eager + 1e-5
        torch.testing.assert_close(lse, exact_lse, atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
def test_compiled_for_hopper_every_step_is_another_kernel_without_spills(tmp_path):
    tiles, layout = TWO[128], "NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=4, "
    layout += "transposed=False, fp4_padded=False, cga_layout=[])"
    rows, keys = (f"tensordesc<bf16[1,1,{n},128],{layout}>" for n in (ROWS, tiles.block_n))
    signature = {"q_desc": rows, "k_desc": keys, "v_desc": keys, "o_desc": rows, "lse_ptr": "*fp32"}
    signature |= {"schedule_ptr": "*i32", "scale_log2": "fp32", **dict.fromkeys(("Hq", "G", "Tq", "Tk"), "i32")}
    constants = {
        "CAUSAL": False, "CONSUMERS": 2, "SLOTS": tiles.slots,
        "CONSUMER_REGISTERS": tiles.consumer_registers, "PRODUCER_REGISTERS": tiles.producer_registers,
    }  # fmt: skip
    module = "llmsys.bench.hopper_orders_kernels"
    names = sample(NAMES, 1, always=["one_at_a_time"])
    kernels = compile_kernels([Build(f"{module}:{name}", signature, constants) for name in names], cache=tmp_path)
    for name, kernel in zip(names, kernels, strict=True):
        assert isinstance(kernel, Compiled), kernel
        assert kernel.spill_bytes == 0 and kernel.wgmma and "setmaxnreg" in kernel.ptx, (name, kernel)
    assert len({kernel.ptx for kernel in kernels}) == len(names)  # each has its own step


def test_the_model_ranks_every_order_and_every_sm_has_the_same_work():
    for consumers in (2, 3):
        assert HEADS * T % (64 * consumers * 132) == 0 and T % (64 * consumers) == 0 == T % 128
        cycles = predicted(128, consumers)
        assert cycles["one_at_a_time"] > cycles["independent"] > cycles["ping_pong"] >= cycles["overlapped_held"]
        assert cycles["independent"] > cycles["overlapped"] >= cycles["overlapped_held"]
    assert set(MODEL) - {"FA2"} == set(NAMES)


def test_a_table_has_a_line_for_each_order():
    row = {"T": T, "H": HEADS, "D": 64, "consumers": 2, "ms": 1.0, "cycles": 1234.4, "tensor": 0.5, "tflops": 400.0}
    rows = [row | {"name": "cuDNN", "model": None}, row | {"name": "overlapped", "model": 1100.0}]
    columns = table(new_record("hopper_orders", rows, {})).columns
    assert list(columns[0].cells) == ["cuDNN", "overlapped"]
    assert list(columns[1].cells) == ["1234, 0.50, 400", "1234 (1100), 0.50, 400"]


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0), reason="needs a Hopper GPU"
)
def test_all_orders_are_timed_on_a_hopper_gpu():
    record = measure(quick=True)
    assert {row["name"] for row in record.rows} == {*NAMES, "FA2", "cuDNN"}
    assert all(0 < row["tensor"] < 1 and 900 < row["mhz"] < 2100 for row in record.rows)
