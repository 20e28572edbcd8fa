"""A model of the time of one SM: what the order of its work costs, before any kernel is written.

An SM of an H100 has tensor cores, units for exponentials, and a copy engine. A warpgroup (4 warps, with 64 rows of
queries) goes through its list of actions in order. It *starts* copies and products, which run by themselves, and waits
for them where its list says so; a softmax it computes itself:

    [Load("K", 0), Wait("K", 0), Scores(0), Wait("S", 0), Softmax(0), Load("V", 0), Wait("V", 0), Output(0), …]

    timeline = run(fa2_order(tiles=16, warpgroups=2), attention_costs(D=128))
    timeline.cycles, timeline.utilisation("tensor")

This file has the orders, and what they cost on an H100; `llmsys.hardware.sm_actions` has the actions,
`llmsys.hardware.sm_timing` has `run`, and all can be imported from here. (Whether a kernel's own text is right in any
order is another question, with another answer: `llmsys.attention.hopper.simulated`.) `run` refuses orders with which a
GPU would compute nonsense, and names deadlocks. It has three rules of time:

- an engine does the work of one warpgroup in the order in which it was started;
- warpgroups that want the same engine at the same time share it evenly: schedulers pick instructions of all in turn;
- starting, waiting and passing on a turn cost nothing, and a result is there as soon as its engine is done.

By the last rule the model is an upper bound. The second is an assumption: no document says how an SM shares. By it,
warpgroups that begin in step stay in step: all multiply, then all compute exponentials. Those that begin half a step
apart stay apart, and overlap without having arranged it (`run(…, begin=…)`). Without turns, chance decides which.

Tensor core utilisation with two warpgroups, heads of 128 and no mask. Beside the model, what is known of H100s: others'
kernels, of the 989 TFLOP/s for which the model stands; and our `hopper` with its consumer's step in each of these
orders, at the clock at which it was timed (`llmsys.bench.recorded("hopper_orders")`). "Apart" is the best distance at
which two warpgroups can begin; at others, the figure is one between the two:

                           model: in step   apart   ours   others' kernels
    fa1, one_at_a_time               0.38           0.64
    fa2                              0.56    0.78          0.33   FlashAttention-2, 331 TFLOP/s
    independent                      0.56    0.99   0.64   0.58   FlashAttention-3 without turns, 570
    ping_pong                        0.99           0.65   0.63   the same with turns, 620
    overlapped_alone, no turns       0.77    0.99   0.66
    overlapped, until started        0.77    0.99   0.67   0.65 to 0.67   and with the overlap, 640 to 660
    overlapped_held                  0.99           0.67

What the model gets right: that each of the two overlaps is worth something, and that heads of 64 are held up by their
exponentials, and heads of 128 are not. What it gets wrong is how much. Turns win 1.09 times in FlashAttention-3 and
1.01 in ours, where the model has anything from 1.0 to 1.8, as chance has it. Our kernel that is written one thing after
the other, `one_at_a_time`, with a producer, is hardly slower than those that overlap, and faster than these costs allow
without overlap: the order of a program's text is not that of its instructions, for the assembler may move exponentials
past barriers, and warpgroups drift apart by themselves. Or a softmax costs less than it does here. Once warpgroups
are apart, it does not matter how long a turn lasts. The overlap within a warpgroup wins 1.03 to 1.06 times on the
GPU: presumably it fills gaps that latencies leave, and here are none. FlashAttention-2 has a second handicap: its
products are the A100's instruction, which reaches two thirds of the H100's.

(FlashAttention-2: 16k tokens, bf16, `recorded("attention")`; FlashAttention-3: fp16, 8k tokens, and the two thirds:
https://tridao.me/blog/2024/flash3/, https://arxiv.org/abs/2407.08608 section 3.)
"""

from llmsys.hardware.barrier import Deadlock, Race
from llmsys.hardware.sm_actions import (
    CLOCK,
    ENGINES,
    Action,
    Costs,
    Load,
    Output,
    Pass,
    Programs,
    Scores,
    Softmax,
    Span,
    Timeline,
    Turn,
    Wait,
)
from llmsys.hardware.sm_timing import run

__all__ = [
    "CLOCK", "ENGINES", "ORDERS", "Action", "Costs", "Deadlock", "Load", "Output", "Pass", "Programs", "Race",
    "Scores", "Softmax", "Span", "Timeline", "Turn", "Wait", "attention_costs", "fa1_order", "fa2_order",
    "overlapped_order", "ping_pong_order", "producer_order", "run",
]  # fmt: skip

FLOPS_A_CYCLE = 4096
"""Operations of an SM's four tensor cores in half precision: 989.5e12 / 132 / 1.83e9. In fp8, twice as many."""
EXPONENTIALS_A_CYCLE = 16
"""Exponentials of an SM (CUDA C++ programming guide, arithmetic instructions; arXiv:2407.08608, section 3.1)."""
LANES = 128
"""Simple fp32 operations of an SM in a cycle (the same table of the guide)."""
COPIED_A_CYCLE = 5120 / 132
"""Bytes from the L2 cache that an SM gets when all read: the width of the A100's cache, as that of the H100's is not
published, over 132 SMs. Most of K and V is there, for the SMs that work on a head read the same."""


def attention_costs(block_m: int = 64, block_n: int = 128, D: int = 128, itemsize: int = 2) -> Costs:
    """Costs of a tile of block_n keys for a warpgroup with block_m queries, from an H100's published figures.

    itemsize: bytes of an element, 2 (fp16, bf16) or 1 (fp8). The softmax needs an exponential for each score, and 3.5
    simple operations: maximum, scale and shift in one, sum, and half a conversion; and one for each element of O.
    """
    for name, value in {"block_m": block_m, "block_n": block_n, "D": D}.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if itemsize not in (1, 2):
        raise ValueError(f"itemsize must be 1 (fp8) or 2 (fp16, bf16), got {itemsize}")
    scores = block_m * block_n
    product = 2 * scores * D / (FLOPS_A_CYCLE * 2 / itemsize)
    softmax = scores / EXPONENTIALS_A_CYCLE + (3.5 * scores + block_m * D) / LANES
    return Costs(block_n * D * itemsize / COPIED_A_CYCLE, product, softmax, product)


# Orders: functions of the number of tiles of keys and of warpgroups, which return a list of actions for each warpgroup


def fa1_order(tiles: int, warpgroups: int) -> Programs:
    """One thing after the other, and one warpgroup after the other: nothing overlaps."""
    programs: Programs = [[] for _ in range(warpgroups)]
    for i in range(tiles):
        for j, program in enumerate(programs):
            first = j == 0  # who loads for all
            program += [Turn(), *([Load("K", i)] if first else []), Wait("K", i), Scores(i), Wait("S", i), Softmax(i)]
            program += [*([Load("V", i)] if first else []), Wait("V", i), Output(i), Wait("O", i), Pass()]
    return programs


def fa2_order(tiles: int, warpgroups: int) -> Programs:
    """Warpgroups that take no notice of each other; the first starts each copy a tile ahead."""
    programs = _independent(tiles, warpgroups)
    ahead: list[Action] = [Load("K", 0), Load("V", 0)] if tiles else []
    for action in programs[0]:
        ahead.append(action)
        if isinstance(action, Scores) and action.i + 1 < tiles:
            ahead += [Load("K", action.i + 1), Load("V", action.i + 1)]
    return [ahead, *programs[1:]]


def producer_order(tiles: int, warpgroups: int) -> Programs:
    """As `fa2_order`, but all copies are started by a producer, which is the last program."""
    return [*_independent(tiles, warpgroups), _producer(tiles)]


def ping_pong_order(tiles: int, warpgroups: int) -> Programs:
    """Both products of a step, S_i and P V of the tile before, in the warpgroup's turn; its softmax after that."""
    programs: Programs = [[] for _ in range(warpgroups)]
    for program in programs:
        for i in range(tiles):
            program += [Wait("K", i), *([Wait("V", i - 1)] if i else []), Turn(), Scores(i)]
            program += [Output(i - 1), Wait("O", i - 1)] if i else []
            program += [Wait("S", i), Pass(), Softmax(i)]
        program += _last(tiles)
    return [*programs, _producer(tiles)]


def overlapped_order(tiles: int, warpgroups: int, until: str = "scores") -> Programs:
    """Ping-pong, and the softmax of tile i runs while P V of tile i − 1 does: FlashAttention-3's order.

    until: a turn lasts until the "scores" are there, or until both products are "started", as in
    `llmsys.attention.hopper.consumer` and in FlashAttention-3; "" for no turns. In the model, a warpgroup that passes
    its turn on when its products are only started shares the tensor cores with the next one. On an H100, the two are
    within about 2% of each other (`recorded("hopper_orders")`).
    """
    if until not in ("scores", "started", ""):
        raise ValueError(f'until must be "scores", "started" or "" (no turns), got {until!r}')
    programs: Programs = [[] for _ in range(warpgroups)]
    for program in programs:
        for i in range(tiles):
            program += [Wait("K", i), *([Wait("V", i - 1)] if i else []), *([Turn()] if until else []), Scores(i)]
            program += [Output(i - 1)] if i else []
            program += [Pass()] if until == "started" else []
            program += [Wait("S", i), *([Pass()] if until == "scores" else []), Softmax(i)]
            program += [Wait("O", i - 1)] if i else []
        program += _last(tiles)
    return [*programs, _producer(tiles)]


ORDERS = {
    "fa1": fa1_order,
    "fa2": fa2_order,
    "independent": producer_order,
    "ping_pong": ping_pong_order,
    "overlapped_held": overlapped_order,
}
"""The orders by name, from the first that was built to the fastest. The last three have the names of the kernels of
`llmsys.bench.hopper_orders` with these orders."""


def _independent(tiles: int, warpgroups: int) -> Programs:
    """Each warpgroup does one thing after the other, and waits for copies that somebody else starts."""
    one: list[Action] = []
    for i in range(tiles):
        one += [Wait("K", i), Scores(i), Wait("S", i), Softmax(i), Wait("V", i), Output(i), Wait("O", i)]
    return [list(one) for _ in range(warpgroups)]


def _producer(tiles: int) -> list[Action]:
    """Start the copies of all tiles of K and V, in the order in which they are needed."""
    return [Load(tile, i) for i in range(tiles) for tile in "KV"]


def _last(tiles: int) -> list[Action]:
    """The P V of the last tile, for orders that start it a step later than its scores."""
    return [Wait("V", tiles - 1), Output(tiles - 1), Wait("O", tiles - 1)] if tiles else []
