"""How much the order matters in which a consumer of the hopper kernel does its work, on a Hopper GPU.

The kernels of `hopper_orders_kernels` differ in one function, the step. All are timed in turn on the same inputs, with
so many heads that every SM has the same number of tiles: what is left is the step. Beside them FA2 and cuDNN.

A row's `cycles` are those that an SM spends on a tile of 128 keys for all its consumers, each with 64 queries; `tensor`
is the part of them that the products alone need. The clock is that of a kernel which counts cycles, timed in turn with
the others: under load, a GPU lowers it. `model` is what `llmsys.hardware.sm` says of the same order, for consumers that
begin in step.
"""

from collections.abc import Callable
from functools import partial

import torch

from llmsys.bench.attention import NO_GPU, check_output
from llmsys.bench.attention_peers import fused
from llmsys.bench.record import Record, new_record
from llmsys.bench.timing import interleaved
from llmsys.hardware.sm import (
    FLOPS_A_CYCLE,
    Programs,
    attention_costs,
    fa1_order,
    fa2_order,
    overlapped_order,
    ping_pong_order,
    producer_order,
    run,
)

T, HEADS = 4224, 36  # 9 tiles of 128 queries, or 6 of 192, for each of 132 SMs
PEERS = ("FA2", "cuDNN")
COUNTED = 2_000_000  # cycles that the kernel counts which measures the clock
MODEL: dict[str, Callable[[int, int], Programs]] = {
    "FA2": fa2_order,
    "one_at_a_time": fa1_order,
    "independent": producer_order,
    "ping_pong": ping_pong_order,
    "overlapped_alone": partial(overlapped_order, until=""),
    "overlapped_held": overlapped_order,
    "overlapped": partial(overlapped_order, until="started"),
}
"""Name of a kernel -> the order of the model that is nearest to it. (`one_at_a_time` has a producer; `fa1_order` has
none, and waits for its copies, too. What runs is not in that order: `hopper_orders_kernels.step_one_at_a_time`.)"""


def predicted(D: int, consumers: int) -> dict[str, float]:
    """The model's cycles for a tile of keys, in each order, with as many tiles as are timed."""
    tiles, costs = T // 128, attention_costs(D=D)
    return {name: run(order(tiles, consumers), costs).cycles / tiles for name, order in MODEL.items()}


def measure(quick: bool = False) -> Record:
    """Time every order with heads of 64 and 128. Without a Hopper GPU nothing is measured."""
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
        return new_record("hopper_orders", [], {"hopper": NO_GPU if not torch.cuda.is_available() else "no Hopper GPU"})
    from llmsys.attention.hopper.schedule import THREE, TWO

    rows = []
    for D, tiles in ((64, TWO[64]), (64, THREE), (128, TWO[128])):
        rows += _compare(D, tiles, repeats=5 if quick else 30)
    return new_record("hopper_orders", rows, {})


def table(record: Record):
    """The record as a rich table: a line an order, cycles a tile and the part of them that the products need."""
    from rich.table import Table

    shapes = list(dict.fromkeys((row["D"], row["consumers"]) for row in record.rows))
    heads = [f"D {D}, {consumers} consumers" for D, consumers in shapes]
    what = "cycles a tile (by the model), part of them that the tensor cores need, TFLOP/s"
    shown = Table("order", *heads, title=f"{record.benchmark} on {record.device}", caption=what)
    for name in dict.fromkeys(row["name"] for row in record.rows):
        here = {(row["D"], row["consumers"]): row for row in record.rows if row["name"] == name}
        shown.add_row(name, *[_figures(here[shape]) for shape in shapes])
    return shown


def _figures(row: dict) -> str:
    model = f" ({row['model']:.0f})" if row["model"] else ""
    return f"{row['cycles']:.0f}{model}, {row['tensor']:.2f}, {row['tflops']:.0f}"


def _compare(D: int, tiles, repeats: int) -> list[dict]:
    from llmsys.attention.hopper.forward import launch
    from llmsys.bench.hopper_orders_kernels import KERNELS

    sets = [tuple(torch.randn(1, HEADS, T, D, device="cuda").bfloat16() for _ in range(3)) for _ in range(3)]
    peers = fused()
    functions: dict[str, Callable] = {name: partial(peers[name], causal=False) for name in PEERS}
    for name, kernel in KERNELS.items():
        functions[name] = lambda q, k, v, kernel=kernel: launch(q, k, v, False, D**-0.5, kernel, tiles)[0]
    for name, function in functions.items():
        check_output(name, function(*sets[0]), *sets[0], False)
    timings = interleaved(functions | {"clock": _count_cycles}, sets, repeats=repeats, warmup=3)
    clock = COUNTED / timings.pop("clock").median
    flops = 4 * HEADS * T * T * D
    sms = torch.cuda.get_device_properties(0).multi_processor_count
    steps = HEADS * (T // tiles.block_m) * (T // tiles.block_n) / sms
    model = predicted(D, tiles.consumers)
    return [
        {
            "name": name, "T": T, "H": HEADS, "D": D, "consumers": tiles.consumers, "dtype": "bfloat16",
            "ms": round(timing.median * 1e3, 5), "spread": round(timing.spread, 4), "mhz": round(clock / 1e6),
            "tflops": float(f"{flops / timing.median / 1e12:.4g}"), "cycles": round(timing.median * clock / steps, 1),
            "tensor": round(flops / FLOPS_A_CYCLE / sms / (timing.median * clock), 4),
            "model": round(model[name], 1) if name in model else None,
        }
        for name, timing in timings.items()
    ]  # fmt: skip


def _count_cycles(*inputs) -> None:
    torch.cuda._sleep(COUNTED)  # torch's tests use it: a kernel of one thread that reads the SM's clock
