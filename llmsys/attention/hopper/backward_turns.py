"""Sums in a fixed order: how programs of the hopper backward kernel wait for their turn to add to dQ.

A tile of queries has a counter in memory: how many tiles of keys have added to its dQ. Whose turn comes after n others
waits until the counter says n, adds, waits until the sum is in memory, and counts on. All of that is the work of one
warp (`add_in_turn`): the consumers leave their shares in shared memory, and go on.

Who waits for others must not keep them from running. Each program goes down its list in the order in which
`backward_schedule` has handed out the tiles, and a tile waits only for some that were handed out before: the first of
all tiles that are not done never waits. For that, all programs must be on the GPU, and there are as many as SMs.
"""

from llmsys.attention.hopper.gluon import gl, gluon, tma


@gluon.jit
def add_in_turn(work, shares, dq_desc, counters_ptr):
    """The adder: have the copy engine add the shares of dQ to memory, each when it is its turn."""
    if shares.IN_TURN:
        BLOCK_M: gl.constexpr = shares.ds.shape[2]
        i = 0  # steps so far, over all tiles of keys
        tile = work.tiles.first_tile()
        for r in range(work.tiles.count()):
            b, h, key = work.tiles.place(tile)
            tile = work.tiles.next_tile(r)
            first = work.first_row(key, BLOCK_M)
            for g in range(work.G):
                head = h * work.G + g
                counters = counters_ptr + (b * work.tiles.Hq + head) * ((work.Tq + BLOCK_M - 1) // BLOCK_M)
                for row in range(first, work.Tq, BLOCK_M):
                    shares.wait_for_share(i, 0)
                    wait_for_count(counters + row // BLOCK_M, turn_of(work, key, row, BLOCK_M))
                    shares.start_to_add(0, dq_desc, b, head, row)
                    shares.wait_for_share(i, 1)
                    shares.start_to_add(1, dq_desc, b, head, row)
                    tma.store_wait(0)  # the copy engine has read both
                    shares.give_share_back(0)
                    shares.give_share_back(1)
                    count_on(counters + row // BLOCK_M)
                    i += 1


@gluon.jit
def turn_of(work, key, row, BLOCK_M: gl.constexpr):
    """How many tiles of keys add to that tile of queries before the one that begins at `key`.

    With a causal mask the last goes first. Its walk begins at a late row, and when a program comes to a row, those of
    later keys have been there.
    """
    KEYS: gl.constexpr = work.tiles.BLOCK_N
    if work.CAUSAL:
        seen = gl.minimum(row + BLOCK_M + work.Tk - work.Tq, work.Tk)  # keys
        return (seen - 1) // KEYS - key // KEYS
    else:
        return key // KEYS


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
def count_on(counter_ptr):
    """Wait until what this warp has given to the copy engine is in memory, and not only read; then count."""
    gl.inline_asm_elementwise(
        "cp.async.bulk.wait_group 0; mov.u32 $0, 0;", "=r", [], dtype=gl.int32, is_pure=False, pack=1
    )
    gl.atomic_add(counter_ptr, 1, sem="release")
