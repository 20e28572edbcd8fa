"""Stage hopper's backward pass: what surrounds the kernel of `backward_kernels`.

Three launches. The first goes over the rows of queries: it computes delta and lse in base two, and writes zeros where
dQ will be summed. The second makes dK and dV, and adds up dQ. The third scales dQ and rounds it to q's dtype. Beyond
the gradients, the memory is dQ's sum in fp32 and two numbers a row: O(T). The chapter:

    backward_rows         the kernels of the first and the last launch
    backward_kernels      the kernel between them: its producer, and what its warps share in memory
    backward_consumer     its consumer: a step of five products
    backward_turns        dQ summed in a fixed order
    simulated/backward    the same kernel on a laptop

Which program adds to a row of dQ first is a matter of luck, and sums in fp32 depend on their order: dQ differs from
run to run in its last bits. dK and dV do not. With `deterministic=True`, programs wait for their turn to add
(`backward_turns`), and the same inputs give the same bits.

TFLOP/s (2.5 times the forward pass's operations) and, in brackets, the ratio to cuDNN, timed in turns with it on an
H100 80GB HBM3 (16k tokens in all, 2048 wide, bf16; torch 2.11.0+cu130, triton 3.6.0, 2026-11-24; `bench/recorded`):

    T                              1k            4k            16k
    D 64   full                    351 (1.00)    468 (1.04)    511 (1.11)
    D 64   causal                  230 (0.98)    388 (1.03)    466 (1.03)
    D 128  full                    398 (0.95)    544 (0.98)    575 (0.99)
    D 128  causal                  270 (0.94)    466 (0.99)    531 (0.94)
    D 64   full, deterministic     353 (1.00)    470 (1.05)    497 (1.08)
    D 64   causal, deterministic   192 (0.82)    353 (0.94)    443 (0.98)
    D 128  full, deterministic     352 (0.84)    473 (0.85)    498 (0.86)
    D 128  causal, deterministic   236 (0.83)    409 (0.87)    484 (0.86)

What limits it at D 128 is shared memory. In a step of 64 queries, the five products read 256 KiB of operands from it,
dS and dQ's share are written to it and read again, and the copy engine writes the next tiles: some 3,000 of its cycles,
128 bytes each, where the products need 2,560 of the tensor cores'. Counters agree (`recorded("attention_counters")`):
its data pipe is the busiest unit, 74% at 16k, full, with the tensor cores at 63%, and everything else below 40%.
cuDNN's kernel keeps its pipe at 67% and the tensor cores at 65%, so it moves less through shared memory for the same
products; ours makes up for it with a higher clock (1.80 to 1.75 GHz), for it draws less power. Without adding dQ at
all, it reached 1.01 × cuDNN at 4k and 16k, full. The first and the last launch take 0.16 ms, of which a third to clear
dQ: at 4k, causal, that is a tenth of the time.
"""

import heapq
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from llmsys.attention.flash.tiles import LOG2_E
from llmsys.attention.hopper.descriptors import descriptor, for_copy_engine, rows_descriptor, sum_descriptor
from llmsys.attention.hopper.schedule import ROWS, packed

KEYS = 128  # keys in a tile, which is the work of one program at a time
FINISH = 4096  # elements of dQ for each program of the last launch
BEGIN_AND_END = 7  # what a tile of keys costs beside its steps, in halves of a step: measured on an H100


@dataclass(frozen=True)
class HopperBackwardTiles:
    """How the backward kernel is cut into tiles.

    block_m              queries of a step, 64 or 128
    slots                tiles of queries in the ring
    consumer_registers   registers of a thread of a consumer
    other_registers      registers of a thread of the producer and of the adder, which are in one warpgroup; with those
                         of both consumers at most 65,536 in all
    """

    block_m: int
    slots: int
    consumer_registers: int
    other_registers: int


TILES = {64: HopperBackwardTiles(128, 2, 240, 24), 128: HopperBackwardTiles(64, 2, 240, 24)}
"""By D. A consumer holds 2 · 64 · D numbers of dK and dV in fp32, and 2 · 64 · block_m of S and dP: with D = 128 that
is 192 registers a thread for steps of 64 queries, with D = 64 for steps of 128."""


def backward(
    q: Float[Tensor, "B Hq Tq D"],
    k: Float[Tensor, "B Hkv Tk D"],
    v: Float[Tensor, "B Hkv Tk D"],
    o: Float[Tensor, "B Hq Tq D"],
    lse: Float[Tensor, "B Hq Tq"],
    do: Float[Tensor, "B Hq Tq D"],
    dlse: Float[Tensor, "B Hq Tq"] | None,
    causal: bool,
    scale: float,
    deterministic: bool = False,
) -> tuple[Float[Tensor, "B Hq Tq D"], Float[Tensor, "B Hkv Tk D"], Float[Tensor, "B Hkv Tk D"]]:
    """dq, dk and dv, contiguous, in q's dtype. The arguments are those that the forward pass has checked.

    Parameters
    ----------
    o, lse
        What the forward pass returned for q, k and v.
    do, dlse
        The gradients of both; dlse is None where lse was not used.
    deterministic
        Whether the same inputs must give the same bits every time.
    """
    from llmsys.attention.hopper.backward_kernels import hopper_backward_kernel  # Triton: not before now
    from llmsys.attention.hopper.backward_rows import hopper_finish_kernel, hopper_rows_kernel

    B, Hq, Tq, D = q.shape
    Hkv, Tk = k.shape[1:3]
    dq, dk, dv = q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)
    do = for_copy_engine(do)
    if q.numel() == 0 or k.numel() == 0:
        return dq.zero_(), dk.zero_(), dv.zero_()
    tiles = TILES[D]
    steps = -(-Tq // tiles.block_m)
    # The kernel counts these in 32 bits. They suffice: with 2^31 of them, q alone would have 128 GiB.
    rows = lse.new_empty(B * Hq * steps * 2 * tiles.block_m)
    dq_sum = lse.new_empty(q.shape)
    programs = min(B * Hkv * -(-Tk // KEYS), torch.cuda.get_device_properties(q.device).multi_processor_count)
    schedule = backward_schedule(B, Hq, Hkv, Tq, Tk, causal, tiles, programs, deterministic, q.device)
    counters = torch.zeros(B * Hq * steps if deterministic else 0, dtype=torch.int32, device=q.device)
    with torch.cuda.device_of(q):
        hopper_rows_kernel[(steps, B * Hq)](
            o, do, lse.contiguous(), None if dlse is None else dlse.contiguous(), rows, dq_sum,
            *o.stride()[:3], *do.stride()[:3], Hq, Tq, D=D, BLOCK_M=tiles.block_m, num_warps=4,
        )  # fmt: skip
        hopper_backward_kernel[(programs,)](
            descriptor(q, tiles.block_m), descriptor(k, KEYS), descriptor(v, KEYS), descriptor(do, tiles.block_m),
            rows_descriptor(rows, 2 * tiles.block_m), sum_descriptor(dq_sum),
            descriptor(dk, ROWS), descriptor(dv, ROWS), schedule, counters,
            Hq, Hq // Hkv, Tq, Tk, scale, scale * LOG2_E,
            CAUSAL=causal, IN_TURN=deterministic, SLOTS=tiles.slots,
            CONSUMER_REGISTERS=tiles.consumer_registers, OTHER_REGISTERS=tiles.other_registers, num_warps=4,
        )  # fmt: skip
        hopper_finish_kernel[(-(-dq.numel() // FINISH),)](dq_sum, dq, scale, dq.numel(), BLOCK=FINISH, num_warps=4)
    return dq, dk, dv


@torch.library.custom_op("llmsys::hopper_backward", mutates_args=())
def hopper_backward(
    q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, do: Tensor, dlse: Tensor | None,
    causal: bool, scale: float, deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """`backward` as an operator of torch, which `torch.compile` takes as it is."""
    return backward(q, k, v, o, lse, do, dlse, causal, scale, deterministic)


@hopper_backward.register_fake
def _(q, k, v, o, lse, do, dlse, causal, scale, deterministic):
    return tuple(x.new_empty(x.shape) for x in (q, k, v))


@lru_cache(maxsize=256)
def backward_schedule(
    B: int, Hq: int, Hkv: int, Tq: int, Tk: int, causal: bool, tiles: HopperBackwardTiles, programs: int,
    in_turn: bool = False, device: torch.device | str = "cpu",
) -> Tensor:  # fmt: skip
    """Which program has which tiles of keys, and in which order: a table as `schedule.hopper_schedule` makes it.

    Each tile goes to the program that will be free first. With a causal mask, the first keys are seen by the most
    queries, so their tiles take longest and go first. As many heads go together as there are programs for, so that
    their queries stay in the L2 cache. Without a mask, a head at a time.

    `in_turn`: programs add to dQ in the order of this table's tiles (`backward_turns`). The tiles of a head are then
    a chain, each about a step behind the one before, and as many heads go together as keep the GPU busy.
    """
    lists = [[] for _ in range(programs)]
    free = [(0, program) for program in range(programs)]
    a_head = -(-Tk // KEYS)
    group = max(1, programs // a_head) if causal or in_turn else 1
    for start in range(0, B * Hkv, group):
        for n in reversed(range(a_head)) if causal and in_turn else range(a_head):
            first = max(n * KEYS - (Tk - Tq), 0) // tiles.block_m if causal else 0
            cost = 2 * (Hq // Hkv) * (-(-Tq // tiles.block_m) - first) + BEGIN_AND_END
            for head in range(start, min(start + group, B * Hkv)):
                time, program = heapq.heappop(free)
                lists[program].append(packed(*divmod(head, Hkv), n))
                heapq.heappush(free, (time + cost, program))
    rounds = max(map(len, lists)) + 1
    table = [[len(x) for x in lists], *([x[r] if r < len(x) else 0 for x in lists] for r in range(rounds))]
    return torch.tensor(table, dtype=torch.int64, device=device)
