"""Sums in a fixed order: how programs of the hopper backward kernel wait for their turn to add to dQ.

A tile of 64 rows or columns of dQ, which one consumer adds to in one step, has a counter in memory: how many tiles of
keys have added to it. Who comes after n others waits until it says n, adds, waits until the sum is in memory, and
counts on. The wait for memory is put off: it ends when the next share is about to go out, a step later.

A tile's turn is its place in the order in which programs take tiles of keys (`backward_schedule`), so that nobody waits
for what comes later.
"""

from llmsys.attention.hopper_gluon import aggregate, gl, gluon, wait_for_warpgroup

NOBODY = gl.constexpr(0)
"""The counter that nobody waits for."""


@aggregate
class Turns:
    """Counters (1 + B · Hq · tiles of queries · 2), int32, which begin at zero; nothing is done if not DETERMINISTIC."""

    counters_ptr: gl.tensor
    Hq: gl.tensor
    Tq: gl.tensor
    Tk: gl.tensor
    CAUSAL: gl.constexpr
    DETERMINISTIC: gl.constexpr
    BLOCK_M: gl.constexpr
    KEYS: gl.constexpr

    @gluon.constexpr_function
    def __init__(self, counters_ptr, Hq, Tq, Tk, CAUSAL, DETERMINISTIC, BLOCK_M, KEYS):
        self.counters_ptr = counters_ptr
        self.Hq = Hq
        self.Tq = Tq
        self.Tk = Tk
        self.CAUSAL = gl.constexpr(CAUSAL)
        self.DETERMINISTIC = gl.constexpr(DETERMINISTIC)
        self.BLOCK_M = gl.constexpr(BLOCK_M)
        self.KEYS = gl.constexpr(KEYS)

    @gluon.jit
    def counter(self, b, head, row, J: gl.constexpr):
        """The number of the counter of consumer J's half of the tile of queries at `row`."""
        tiles = (self.Tq + self.BLOCK_M - 1) // self.BLOCK_M
        return 1 + ((b * self.Hq + head) * tiles + row // self.BLOCK_M) * 2 + J

    @gluon.jit
    def wait(self, counter, key, row):
        """Wait until all tiles of keys have added whose turn is before that of the tile at `key`."""
        turn = key // self.KEYS
        if self.CAUSAL:  # the last of those that this tile of queries sees is the first
            seen = gl.minimum(row + self.BLOCK_M + self.Tk - self.Tq, self.Tk)
            turn = (seen - 1) // self.KEYS - turn
        wait_for_count(self.counters_ptr + counter, turn)

    @gluon.jit
    def pass_on(self, counter):
        """All that this consumer has added is in memory, and who waits for this counter may go on."""
        wait_for_sums()
        wait_for_warpgroup()
        gl.atomic_add(self.counters_ptr + counter, 1, sem="release")


@gluon.jit
def wait_for_count(counter_ptr, count):
    """Wait until the counter says so, and let the copy engine know of what was added before."""
    gl.inline_asm_elementwise(
        """{
            .reg .pred early;
        again:
            ld.acquire.gpu.global.s32 $0, [$1];
            setp.lt.s32 early, $0, $2;
            @early bra again;
            fence.proxy.async;
        }""",
        "=r,l,r", [counter_ptr, count], dtype=gl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@gluon.jit
def wait_for_sums():
    """Wait until what this consumer's thread has given to the copy engine is in memory, and not only on its way."""
    gl.inline_asm_elementwise(
        "cp.async.bulk.wait_group 0; mov.u32 $0, 0;", "=r", [], dtype=gl.int32, is_pure=False, pack=1
    )
