"""Wrong answers to lesson 06, as people write them: orders, rings and blocks of eight bits. Of each exercise a right
answer stands first; most mistakes are that one, in which a line or two read otherwise. (Those of the consumer's step
are kernels: `kernel_mistakes`.)
"""

import torch

from llmsys.course.checking.diagnosis import misconception
from llmsys.course.checking.mistakes import Mistakes
from llmsys.hardware.mbarrier import Arrive, Copy, Expect, Read
from llmsys.hardware.mbarrier import Wait as WaitFor
from llmsys.hardware.sm import Load, Output, Pass, Scores, Softmax, Turn, Wait

# (a) the order of the work


def overlapped(tiles, warpgroups):
    """A right answer."""
    one = []
    for i in range(tiles):
        one += [Wait("K", i)]
        one += [Wait("V", i - 1)] if i else []
        one += [Turn(), Scores(i)]
        one += [Output(i - 1)] if i else []
        one += [Wait("S", i), Pass(), Softmax(i)]
        one += [Wait("O", i - 1)] if i else []
    one += [Wait("V", tiles - 1), Output(tiles - 1), Wait("O", tiles - 1)]
    return [*(list(one) for _ in range(warpgroups)), loads(tiles)]


def loads(tiles):
    """The program that starts all copies."""
    return [Load(tile, i) for i in range(tiles) for tile in "KV"]


OUTPUT_DONE = '        one += [Wait("O", i - 1)] if i else []\n'
LAST_OUTPUT = '    one += [Wait("V", tiles - 1), Output(tiles - 1), Wait("O", tiles - 1)]\n'

wrong = Mistakes("06.order", overlapped)

wrong(
    "no_turns",
    "Your warpgroups take no notice of each other: no turns.",
    ("Turn(), ", ""),
    ("Pass(), ", ""),
    why="They begin in step and stay in step: all multiply, then all compute exponentials, and the tensor cores wait.",
)
wrong(
    "waits_for_both",
    "You wait for P V of tile i − 1 before the softmax of tile i: turns, and no overlap within a warpgroup.",
    ("[Output(i - 1)] if i", '[Output(i - 1), Wait("O", i - 1)] if i'),
    (OUTPUT_DONE, ""),
    why="The softmax needs S_i alone. Wait for O where it is next changed, after the softmax.",
)
wrong(
    "keeps_the_turn",
    "You keep the turn during the softmax.",
    ("Pass(), ", ""),
    (OUTPUT_DONE, OUTPUT_DONE + "        one += [Pass()]\n"),
    why="A turn is for the tensor cores. Who computes exponentials does not need them: pass it on before.",
)


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
    return [*(list(one) for _ in range(warpgroups)), loads(tiles)]


wrong(
    "no_last_output",
    "Your last tile's P V is missing.",
    (LAST_OUTPUT, "    if tiles == 1:\n    " + LAST_OUTPUT),
    why="In a loop that is shifted by half a step, one P V is left when it ends.",
)


wrong(
    "values_first",
    "Your producer loads V of a tile before its K.",
    ("loads(tiles)]", '[Load(tile, i) for i in range(tiles) for tile in "VK"]]'),
    why="K is wanted first, a step before V: until it has come, nobody has anything to do.",
)
wrong(
    "producer_first",
    "Your producer is the first program of the list.",
    (
        "[*(list(one) for _ in range(warpgroups)), loads(tiles)]",
        "[loads(tiles), *(list(one) for _ in range(warpgroups))]",
    ),
    why="It is to be the last, after the warpgroups: they are counted from 0.",
)
wrong(
    "a_load_too_many",
    "Your producer loads a tile more than there is.",
    ("loads(tiles)]", '[*loads(tiles), Load("K", tiles)]]'),
    why="Tiles are numbered from 0 to tiles − 1. What is loaded ahead of need has to exist.",
)


# (b) the ring


def both_roles(role, ring, tiles):
    """A right answer."""
    for i in range(tiles):
        slot, use = i % ring.slots, i // ring.slots
        if role == "producer":
            yield WaitFor(ring.empty[slot], (use + 1) % 2)
            yield Expect(ring.full[slot], ring.tile_bytes)
            yield Copy(i, slot)
        else:
            yield WaitFor(ring.full[slot], use % 2)
            yield Read(slot)
            yield Arrive(ring.empty[slot])


EXPECT = "            yield Expect(ring.full[slot], ring.tile_bytes)\n"
COPY = "            yield Copy(i, slot)\n"
READ = "            yield Read(slot)\n"
GIVE_BACK = "            yield Arrive(ring.empty[slot])\n"

wrong = Mistakes("06.ring", both_roles)

wrong(
    "one_parity",
    "Your parities never change: every round waits for the phase that ended long ago.",
    ("(use + 1) % 2", "1"),
    ("use % 2", "0"),
    why="A slot's second use is its barriers' second phase: the parity is that of the use, i // slots.",
)
wrong(
    "producer_waits_at_first",
    "Your producer waits for the same parity as the consumer: for slots that nobody has filled yet.",
    ("(use + 1) % 2", "use % 2"),
    why="All slots are empty at the beginning. Waiting for parity 1 of a new barrier does not wait: that phase "
    "counts as ended.",
)
wrong(
    "parity_of_the_tile",
    "Your parity is that of the tile, i % 2, and not of the slot's use.",
    ("i // ring.slots", "i"),
    why="A barrier knows nothing of tiles. Its phase goes on once for each use of its slot: i // slots.",
)
wrong(
    "never_given_back",
    "Your consumer does not give slots back.",
    (GIVE_BACK, ""),
    why="The producer waits for an arrival at empty before it fills the slot again. It waits for ever.",
)
wrong(
    "given_back_too_early",
    "Your consumer gives the slot back before it has read it.",
    (READ + GIVE_BACK, GIVE_BACK + READ),
    why="As soon as the last consumer has arrived, the producer may fill the slot: sometimes before you have read it.",
)
wrong(
    "bytes_not_announced",
    "Your producer arrives at full without announcing the bytes.",
    (EXPECT + COPY, COPY + "            yield Arrive(ring.full[slot])\n"),
    why="Then the phase ends at once, and the tile is read while it is being copied.",
)


wrong(
    "never_arrives_at_full",
    "Your producer does not announce the bytes of its copy.",
    (EXPECT, ""),
    why="A phase of full needs the producer's arrival, and that is Expect. A copy alone does not end it.",
)
wrong(
    "consumer_does_not_wait_at_first",
    "Your consumer waits for the parity that has ended from the start.",
    ("use % 2", "(use + 1) % 2"),
    why="So it reads a slot that nobody has filled. The first copy ends full's phase 0: its parity is 0.",
)
wrong(
    "bytes_of_another_tile",
    "Your producer announces 16,384 bytes, whatever tile it copies.",
    ("ring.tile_bytes", "16_384"),
    why="ring.tile_bytes says how many a tile has. Where it has more, the phase ends before they have come.",
)
wrong(
    "a_round_at_a_time",
    "Your producer waits until all slots are empty, and then fills them all.",
    ("            yield WaitFor(ring.empty[slot], (use + 1) % 2)\n",
     "            for each in ring.empty if slot == 0 else ():\n                yield WaitFor(each, (use + 1) % 2)\n"),
    why="A slot that has been given back lies idle until the last one of its round has been, too.",
)  # fmt: skip
wrong(
    "waits_for_its_copy",
    "Your producer waits for its own copy before it starts the next one.",
    (COPY, COPY + "            yield WaitFor(ring.full[slot], use % 2)\n"),
    why="Copies take long to begin: with several slots, several of them are under way at once.",
)
wrong(
    "last_round_kept",
    "Your consumer gives a slot back only if another tile comes into it.",
    (GIVE_BACK, "            if i + ring.slots < tiles:\n    " + GIVE_BACK),
    why="Another tile does come, of the next queries: the producer will wait for the slot.",
)


# (c) blocks of eight bits


def quantized(x, rows=128):
    """A right answer."""
    T = x.shape[-2]
    blocks = torch.nn.functional.pad(x.float(), (0, 0, 0, -T % rows)).unflatten(-2, (-1, rows))
    sizes = torch.where(blocks.isfinite(), blocks.abs(), 0.0)
    amax = sizes.amax((-2, -1))
    scales = torch.where(amax == 0, 1.0, (amax / 448).clamp(min=torch.finfo(torch.float32).tiny))
    codes = (blocks / scales[..., None, None]).clamp(-448, 448).to(torch.float8_e4m3fn)
    return codes.flatten(-3, -2)[..., :T, :], scales


SIZES = "sizes = torch.where(blocks.isfinite(), blocks.abs(), 0.0)"
AMAX = "amax = sizes.amax((-2, -1))"
SCALE = "(amax / 448).clamp(min=torch.finfo(torch.float32).tiny)"

wrong = Mistakes("06.quantize_blocks", quantized)

wrong(
    "one_scale_a_tensor",
    "You use one scale for the whole tensor.",
    (AMAX, "amax = sizes.amax().expand(blocks.shape[:-2])"),
    why="A single large number then takes the small codes of all others away. Each block has a scale of its own.",
)
wrong(
    "scale_of_the_first_row",
    "Your scale is that of the block's first row.",
    (AMAX, "amax = sizes.amax(-1)[..., 0]"),
    why="What is larger in the other rows saturates: the maximum goes over both dimensions of the block.",
)
wrong(
    "without_the_sign",
    "You take the largest number of a block, and not the largest in size.",
    (SIZES, "sizes = blocks"),
    why="−3 is as far from 0 as 3 is: amax is the maximum of |x|.",
)
wrong(
    "inverse_scale",
    "You return 1 / scale: what the numbers were multiplied with.",
    ("[..., :T, :], scales", "[..., :T, :], 1 / scales"),
    why="Whoever reads the codes multiplies them by the scale: x ≈ codes · scale.",
)
wrong(
    "zero_scale",
    "A block of zeros gets the scale 0.",
    (f"torch.where(amax == 0, 1.0, {SCALE})", "amax / 448"),
    why="0 / 0 is NaN. The scale of such a block may be anything but 0: 1.",
)
wrong(
    "infinite_scale",
    "Infinity and NaN count for your scale.",
    (SIZES, "sizes = blocks.abs()"),
    why="One infinite number makes the scale infinite, and all others of the block 0. Take the maximum of finite ones.",
)
wrong(
    "largest_of_another_format",
    "You divide by 240, the largest number of another 8-bit format.",
    ("amax / 448", "amax / 240"),
    why="torch.float8_e4m3fn goes up to 448: it gives up infinity for another power of two.",
)
wrong(
    "not_clamped",
    "You do not clamp before the cast.",
    (".clamp(-448, 448)", ""),
    why="Depending on its version, torch's cast makes NaN or 448 of what is above 448. Infinity is.",
)
wrong(
    "smallest_scale",
    "You keep scales from becoming small, by a number like 1e-12.",
    (SCALE, "amax.clamp(min=1e-12) / 448"),
    why="Where all numbers of a block are smaller than that, their codes are too small, or all of them are 0.",
)
wrong(
    "scale_of_few_bits",
    "Your scale may be smaller than float32's smallest normal number, or 0.",
    (SCALE, "amax / 448"),
    why="Below 1.2e-38 float32 has ever fewer bits, and of 1e-43 / 448 it has none. Then 0 / 0 in the block is NaN.",
)
wrong(
    "tiny_scale_for_zeros",
    "A block of zeros gets the smallest scale instead of 1.",
    (f"torch.where(amax == 0, 1.0, {SCALE})", SCALE),
    why="Its codes are 0 with any scale; which one it is, is agreed upon: 1.",
)
wrong(
    "multiplied_with_the_inverse",
    "You multiply with 448 / amax.",
    ("(blocks / scales[..., None, None])", "(blocks * torch.where(amax == 0, 1.0, 448 / amax)[..., None, None])"),
    why="Of a block of numbers near 10⁻³⁷ or below, that is more than float32 can hold. Divide by the scale.",
)
wrong(
    "rows_as_by_default",
    "You take blocks of 128 rows, whatever `rows` says.",
    ("    T = x.shape[-2]\n", "    rows, T = 128, x.shape[-2]\n"),
    why="128 is only the default.",
)
wrong(
    "scale_in_half_precision",
    "You round the scale to x's type.",
    (f"{SCALE})", f"{SCALE}).to(x.dtype).float()"),
    why="Of bfloat16's 8 bits, the scale is then off by up to 1/256, and so are all numbers of the block.",
)
