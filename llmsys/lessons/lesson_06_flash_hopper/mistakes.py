"""Wrong answers to lesson 06, as people write them: orders, rings and blocks. (The consumer's: `lesson_06_kernels`.)"""

import torch

from llmsys.course.checking.diagnosis import misconception
from llmsys.hardware.mbarrier import Arrive, Copy, Expect, Read
from llmsys.hardware.mbarrier import Wait as WaitFor
from llmsys.hardware.sm import Load, Output, Pass, Scores, Softmax, Turn, Wait

# 06.order


def _producer(tiles):
    return [Load(tile, i) for i in range(tiles) for tile in "KV"]


@misconception(
    "06.order",
    "Your warpgroups take no notice of each other: no turns.",
    why="They begin in step and stay in step: all multiply, then all compute exponentials, and the tensor cores wait.",
)
def no_turns(tiles, warpgroups):
    one = []
    for i in range(tiles):
        one += [Wait("K", i), *([Wait("V", i - 1)] if i else []), Scores(i), *([Output(i - 1)] if i else [])]
        one += [Wait("S", i), Softmax(i), *([Wait("O", i - 1)] if i else [])]
    one += [Wait("V", tiles - 1), Output(tiles - 1), Wait("O", tiles - 1)]
    return [*(list(one) for _ in range(warpgroups)), _producer(tiles)]


@misconception(
    "06.order",
    "You wait for P V of tile i − 1 before the softmax of tile i: turns, and no overlap within a warpgroup.",
    why="The softmax needs S_i alone. Wait for O where it is next changed, after the softmax.",
)
def waits_for_both(tiles, warpgroups):
    one = []
    for i in range(tiles):
        one += [Wait("K", i), *([Wait("V", i - 1)] if i else []), Turn(), Scores(i)]
        one += [Output(i - 1), Wait("O", i - 1)] if i else []
        one += [Wait("S", i), Pass(), Softmax(i)]
    one += [Wait("V", tiles - 1), Output(tiles - 1), Wait("O", tiles - 1)]
    return [*(list(one) for _ in range(warpgroups)), _producer(tiles)]


@misconception(
    "06.order",
    "You keep the turn during the softmax.",
    why="A turn is for the tensor cores. Who computes exponentials does not need them: pass it on before.",
)
def keeps_the_turn(tiles, warpgroups):
    one = []
    for i in range(tiles):
        one += [Wait("K", i), *([Wait("V", i - 1)] if i else []), Turn(), Scores(i), *([Output(i - 1)] if i else [])]
        one += [Wait("S", i), Softmax(i), *([Wait("O", i - 1)] if i else []), Pass()]
    one += [Wait("V", tiles - 1), Output(tiles - 1), Wait("O", tiles - 1)]
    return [*(list(one) for _ in range(warpgroups)), _producer(tiles)]


@misconception(
    "06.order",
    "The first warpgroup starts the copies, between its own work.",
    why="Whenever it waits for something else, nobody copies. A program of its own is ahead as far as slots allow.",
)
def a_warpgroup_copies(tiles, warpgroups):
    programs = []
    for j in range(warpgroups):
        one = [Load("K", 0), Load("V", 0)] if j == 0 else []
        for i in range(tiles):
            one += [Load("K", i + 1), Load("V", i + 1)] if j == 0 and i + 1 < tiles else []
            one += [Wait("K", i), *([Wait("V", i - 1)] if i else []), Turn(), Scores(i)]
            one += [Output(i - 1)] if i else []
            one += [Wait("S", i), Pass(), Softmax(i), *([Wait("O", i - 1)] if i else [])]
        programs.append([*one, Wait("V", tiles - 1), Output(tiles - 1), Wait("O", tiles - 1)])
    return programs


@misconception(
    "06.order",
    "You start P V of tile i before its softmax has been computed.",
    why="P is what the softmax makes. What can run beside softmax i is P V of tile i − 1.",
)
def output_too_early(tiles, warpgroups):
    one = []
    for i in range(tiles):
        one += [Wait("K", i), Scores(i), Wait("S", i), Wait("V", i)]
        one += [Softmax(i), Output(i), Wait("O", i)] if i == 0 else [Output(i), Softmax(i), Wait("O", i)]
    return [*(list(one) for _ in range(warpgroups)), _producer(tiles)]


@misconception(
    "06.order",
    "Your last tile's P V is missing.",
    why="In a loop that is shifted by half a step, one P V is left when it ends.",
)
def no_last_output(tiles, warpgroups):
    one = []
    for i in range(tiles):
        one += [Wait("K", i), *([Wait("V", i - 1)] if i else []), Turn(), Scores(i), *([Output(i - 1)] if i else [])]
        one += [Wait("S", i), Pass(), Softmax(i), *([Wait("O", i - 1)] if i else [])]
    if tiles == 1:
        one += [Wait("V", 0), Output(0), Wait("O", 0)]
    return [*(list(one) for _ in range(warpgroups)), _producer(tiles)]


# 06.ring


@misconception(
    "06.ring",
    "Your parities never change: every round waits for the phase that ended long ago.",
    why="A slot's second use is its barriers' second phase: the parity is that of the use, i // slots.",
)
def one_parity(role, ring, tiles):
    for i in range(tiles):
        slot = i % ring.slots
        if role == "producer":
            yield WaitFor(ring.empty[slot], 1)
            yield Expect(ring.full[slot], ring.tile_bytes)
            yield Copy(i, slot)
        else:
            yield WaitFor(ring.full[slot], 0)
            yield Read(slot)
            yield Arrive(ring.empty[slot])


@misconception(
    "06.ring",
    "Your producer waits for the same parity as the consumer: for slots that nobody has filled yet.",
    why="All slots are empty at the beginning. Waiting for parity 1 of a new barrier does not wait: that phase "
    "counts as ended.",
)
def producer_waits_at_first(role, ring, tiles):
    for i in range(tiles):
        slot, use = i % ring.slots, i // ring.slots
        if role == "producer":
            yield WaitFor(ring.empty[slot], use % 2)
            yield Expect(ring.full[slot], ring.tile_bytes)
            yield Copy(i, slot)
        else:
            yield WaitFor(ring.full[slot], use % 2)
            yield Read(slot)
            yield Arrive(ring.empty[slot])


@misconception(
    "06.ring",
    "Your parity is that of the tile, i % 2, and not of the slot's use.",
    why="A barrier knows nothing of tiles. Its phase goes on once for each use of its slot: i // slots.",
)
def parity_of_the_tile(role, ring, tiles):
    for i in range(tiles):
        slot = i % ring.slots
        if role == "producer":
            yield WaitFor(ring.empty[slot], (i + 1) % 2)
            yield Expect(ring.full[slot], ring.tile_bytes)
            yield Copy(i, slot)
        else:
            yield WaitFor(ring.full[slot], i % 2)
            yield Read(slot)
            yield Arrive(ring.empty[slot])


@misconception(
    "06.ring",
    "Your consumer does not give slots back.",
    why="The producer waits for an arrival at empty before it fills the slot again. It waits for ever.",
)
def never_given_back(role, ring, tiles):
    for i in range(tiles):
        slot, use = i % ring.slots, i // ring.slots
        if role == "producer":
            yield WaitFor(ring.empty[slot], (use + 1) % 2)
            yield Expect(ring.full[slot], ring.tile_bytes)
            yield Copy(i, slot)
        else:
            yield WaitFor(ring.full[slot], use % 2)
            yield Read(slot)


@misconception(
    "06.ring",
    "Your consumer gives the slot back before it has read it.",
    why="As soon as the last consumer has arrived, the producer may fill the slot: sometimes before you have read it.",
)
def given_back_too_early(role, ring, tiles):
    for i in range(tiles):
        slot, use = i % ring.slots, i // ring.slots
        if role == "producer":
            yield WaitFor(ring.empty[slot], (use + 1) % 2)
            yield Expect(ring.full[slot], ring.tile_bytes)
            yield Copy(i, slot)
        else:
            yield WaitFor(ring.full[slot], use % 2)
            yield Arrive(ring.empty[slot])
            yield Read(slot)


@misconception(
    "06.ring",
    "Your producer arrives at full without announcing the bytes.",
    why="Then the phase ends at once, and the tile is read while it is being copied.",
)
def bytes_not_announced(role, ring, tiles):
    for i in range(tiles):
        slot, use = i % ring.slots, i // ring.slots
        if role == "producer":
            yield WaitFor(ring.empty[slot], (use + 1) % 2)
            yield Copy(i, slot)
            yield Arrive(ring.full[slot])
        else:
            yield WaitFor(ring.full[slot], use % 2)
            yield Read(slot)
            yield Arrive(ring.empty[slot])


# 06.quantize_blocks


def _quantize(x, rows=128, wrong=""):
    T = x.shape[-2]
    blocks = torch.nn.functional.pad(x.float(), (0, 0, 0, -T % rows)).unflatten(-2, (-1, rows))
    size = blocks.abs() if wrong in ("infinite", "nan") else torch.where(blocks.isfinite(), blocks.abs(), 0.0)
    if wrong == "signed":
        size = blocks
    amax = size.amax((-2, -1))
    if wrong == "tensor":
        amax = amax.amax().expand_as(amax)
    if wrong == "row":
        amax = size.amax(-1)[..., 0]
    scales = amax / (240.0 if wrong == "240" else 448.0)
    if wrong == "inverse":
        return _codes(blocks / torch.where(scales > 0, scales, 1.0)[..., None, None], T), 1 / scales
    if wrong != "zeros":
        scales = torch.where(scales == 0, 1.0, scales)
    scaled = blocks / scales[..., None, None]
    return _codes(scaled, T, clamp=wrong != "unclamped"), scales


def _codes(scaled, T, clamp=True):
    scaled = scaled.clamp(-448, 448) if clamp else scaled
    return scaled.to(torch.float8_e4m3fn).flatten(-3, -2)[..., :T, :]


def _quantize_blocks(name, message, *, why, wrong):
    def function(x, rows=128):
        return _quantize(x, rows, wrong)

    function.__name__ = name
    misconception("06.quantize_blocks", message, why=why)(function)


_quantize_blocks(
    "one_scale_a_tensor",
    "You use one scale for the whole tensor.",
    why="A single large number then takes the small codes of all others away. Each block has a scale of its own.",
    wrong="tensor",
)
_quantize_blocks(
    "scale_of_the_first_row",
    "Your scale is that of the block's first row.",
    why="What is larger in the other rows saturates: the maximum goes over both dimensions of the block.",
    wrong="row",
)
_quantize_blocks(
    "without_the_sign",
    "You take the largest number of a block, and not the largest in size.",
    why="−3 is as far from 0 as 3 is: amax is the maximum of |x|.",
    wrong="signed",
)
_quantize_blocks(
    "inverse_scale",
    "You return 1 / scale: what the numbers were multiplied with.",
    why="Whoever reads the codes multiplies them by the scale: x ≈ codes · scale.",
    wrong="inverse",
)
_quantize_blocks(
    "zero_scale",
    "A block of zeros gets the scale 0.",
    why="0 / 0 is NaN. The scale of such a block may be anything but 0: 1.",
    wrong="zeros",
)
_quantize_blocks(
    "infinite_scale",
    "Infinity and NaN count for your scale.",
    why="One infinite number makes the scale infinite, and all others of the block 0. Take the maximum of finite ones.",
    wrong="infinite",
)
_quantize_blocks(
    "largest_of_another_format",
    "You divide by 240, the largest number of another 8-bit format.",
    why="torch.float8_e4m3fn goes up to 448: it gives up infinity for another power of two.",
    wrong="240",
)
