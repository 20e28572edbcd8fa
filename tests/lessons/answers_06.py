"""Answers to lesson 06 that have no name among its mistakes: right ones in other forms, and wrong ones, nearly right.

For each exercise RIGHT and WRONG list them; steps of the consumer, which are kernels, are texts to change in the
library's (`STEPS_RIGHT`, `STEPS_WRONG`, `STEPS_REFUSED`).
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from llmsys.course.checking.mistakes import edited
from llmsys.hardware import mbarrier, sm
from llmsys.hardware.mbarrier import Arrive, Copy, Expect, Read
from llmsys.hardware.mbarrier import Wait as WaitFor
from llmsys.hardware.sm import Load, Output, Pass, Scores, Softmax, Turn, Wait
from tests.support.verdicts import fresh

# Orders


def ordered(tiles, warpgroups, *, inner=True, turns=True):
    """A right answer, but for what is left out: the overlap within a warpgroup, or turns."""
    one = []
    for i in range(tiles):
        one += [Wait("K", i), *([Wait("V", i - 1)] if i else []), *([Turn()] if turns else []), Scores(i)]
        one += [Output(i - 1), *([] if inner else [Wait("O", i - 1)])] if i else []
        one += [Wait("S", i), *([Pass()] if turns else []), Softmax(i)]
        one += [Wait("O", i - 1)] if i and inner else []
    one += [Wait("V", tiles - 1), Output(tiles - 1), Wait("O", tiles - 1)]
    return [*(list(one) for _ in range(warpgroups)), [Load(tile, i) for i in range(tiles) for tile in "KV"]]


def tuples_for_lists(tiles, warpgroups):
    return tuple(map(tuple, ordered(tiles, warpgroups)))


def one_list_for_all(tiles, warpgroups):
    one, producer = ordered(tiles, 1)
    return [one] * warpgroups + [producer]


def waits_in_its_turn(tiles, warpgroups):
    one, producer = ordered(tiles, 1)
    for n, action in enumerate(one):
        if action == Turn():  # before the waits for K and V
            first = n - 1 if one[n - 1] == Wait("K", 0) else n - 2
            one[first : n + 1] = [action, *one[first:n]]
    return [*(list(one) for _ in range(warpgroups)), producer]


def last_product_in_its_turn(tiles, warpgroups):
    programs = ordered(tiles, warpgroups)
    return [*([*each[:-2], Turn(), *each[-2:], Pass()] for each in programs[:-1]), programs[-1]]


def values_late(tiles, warpgroups):
    """The producer brings each V after the next K; a warpgroup waits for V after its scores have been started."""
    program = [Wait("K", 0), Turn(), Scores(0), Wait("S", 0), Pass(), Softmax(0)]
    for i in range(1, tiles):
        program += [Wait("K", i), Turn(), Scores(i), Wait("V", i - 1), Output(i - 1)]
        program += [Wait("S", i), Pass(), Softmax(i), Wait("O", i - 1)]
    program += [Wait("V", tiles - 1), Output(tiles - 1), Wait("O", tiles - 1)]
    loads = [Load("K", 0)]
    for i in range(1, tiles):
        loads += [Load("K", i), Load("V", i - 1)]
    return [list(program) for _ in range(warpgroups)] + [[*loads, Load("V", tiles - 1)]]


def overlaps_alone_only(tiles, warpgroups):
    return ordered(tiles, warpgroups, inner=warpgroups == 1)


def sixteen_tiles_at_most(tiles, warpgroups):
    return ordered(tiles, warpgroups, inner=tiles <= 16)


def turns_for_even_numbers(tiles, warpgroups):
    return ordered(tiles, warpgroups, turns=tiles % 2 == 0 or tiles < 8)


def three_warpgroups_at_most(tiles, warpgroups):
    return ordered(tiles, min(warpgroups, 3))


def two_producers(tiles, warpgroups):
    *programs, producer = ordered(tiles, warpgroups)
    return [*programs, *([each for each in producer if each.tile == tile] for tile in "KV")]


def a_head_start_for_turns(tiles, warpgroups):
    """Two warpgroups are apart because the second waits for V in the beginning; if nothing else delays the first."""
    programs = ordered(tiles, warpgroups, turns=warpgroups != 2)
    return [programs[0], [Wait("V", 0), *programs[1]], programs[2]] if warpgroups == 2 else programs


def the_librarys_producer(tiles, warpgroups):
    return [*ordered(tiles, warpgroups)[:-1], sm.producer_order(tiles, warpgroups)[-1]]


@fresh
def a_table_by_warpgroups():
    table = {}

    def order(tiles, warpgroups):
        known = table.setdefault(warpgroups, {})
        return known.setdefault(tiles if len(known) < 4 else max(known), ordered(tiles, warpgroups))

    return order


@fresh
def other_the_second_time():
    asked = set()

    def order(tiles, warpgroups):
        again = (tiles, warpgroups) in asked
        asked.add((tiles, warpgroups))
        return ordered(tiles, warpgroups, inner=not again)

    return order


ORDERS_RIGHT = [ordered, tuples_for_lists, one_list_for_all, waits_in_its_turn, last_product_in_its_turn, values_late]
ORDERS_WRONG = [
    overlaps_alone_only, sixteen_tiles_at_most, turns_for_even_numbers, three_warpgroups_at_most, two_producers,
    a_head_start_for_turns, the_librarys_producer, a_table_by_warpgroups, other_the_second_time,
]  # fmt: skip


# Rings


def steps(role, ring, i, slot, use):
    """What a role does about tile i, in its slot's use number `use`."""
    if role == "producer":
        yield WaitFor(ring.empty[slot], (use + 1) % 2)
        yield Expect(ring.full[slot], ring.tile_bytes)
        yield Copy(i, slot)
    else:
        yield WaitFor(ring.full[slot], use % 2)
        yield Read(slot)
        yield Arrive(ring.empty[slot])


def walk_with_phases(role, ring, tiles):
    phase, slot = [0] * ring.slots, 0
    for i in range(tiles):
        yield from steps(role, ring, i, slot, phase[slot])
        phase[slot] ^= 1
        slot = (slot + 1) % ring.slots


def no_wait_in_the_first_round(role, ring, tiles):
    for i in range(tiles):
        slot, use = i % ring.slots, i // ring.slots
        wait, expect, copy = steps(role, ring, i, slot, use)
        yield from [expect, copy] if role == "producer" and not use else [wait, expect, copy]


def copies_before_it_announces(role, ring, tiles):
    for i in range(tiles):
        wait, first, second = steps(role, ring, i, i % ring.slots, i // ring.slots)
        yield from [wait, second, first] if role == "producer" else [wait, first, second]


def waits_for_all_in_the_end(role, ring, tiles):
    for i in range(tiles):
        yield from steps(role, ring, i, i % ring.slots, i // ring.slots)
    for i in range(max(tiles - ring.slots, 0), tiles if role == "producer" else 0):
        yield WaitFor(ring.empty[i % ring.slots], i // ring.slots % 2)


def three_slots_at_most(role, ring, tiles):
    slots = min(ring.slots, 3)
    for i in range(tiles):
        yield from steps(role, ring, i, i % slots, i // slots)


def four_uses_at_most(role, ring, tiles):
    for i in range(tiles):
        yield from steps(role, ring, i, i % ring.slots, min(i // ring.slots, 4))


def one_tile_at_a_time(role, ring, tiles):
    for i in range(tiles):
        wait, *rest = steps(role, ring, i, i % ring.slots, i // ring.slots)
        if role == "producer" and i:
            wait = WaitFor(ring.empty[(i - 1) % ring.slots], (i - 1) // ring.slots % 2)
        yield from [wait, *rest]


def given_back_a_tile_later(role, ring, tiles):
    for i in range(tiles):
        *rest, last = steps(role, ring, i, i % ring.slots, i // ring.slots)
        yield from [*rest, last] if role == "producer" else rest
        if role == "consumer" and i:
            yield Arrive(ring.empty[(i - 1) % ring.slots])
    if role == "consumer":
        yield Arrive(ring.empty[(tiles - 1) % ring.slots])


def the_librarys_roles(role, ring, tiles):
    yield from (mbarrier.producer if role == "producer" else mbarrier.consumer)(ring, tiles)


@fresh
def one_counter_for_all_warps():
    counter = {"tiles": 0}

    def warp(role, ring, tiles):
        counter["tiles"] = 0
        while (i := counter["tiles"]) < tiles:
            yield from steps(role, ring, i, i % ring.slots, i // ring.slots)
            counter["tiles"] += 1

    return warp


@fresh
def places_by_the_number_of_tiles():
    known = {}

    def warp(role, ring, tiles):
        for i, place in enumerate(known.setdefault(tiles, [(i % ring.slots, i // ring.slots) for i in range(tiles)])):
            yield from steps(role, ring, i, *place)

    return warp


@fresh
def phases_that_are_kept():
    phase = {}

    def warp(role, ring, tiles):
        mine = phase if role == "producer" else dict.fromkeys(range(ring.slots), 0)
        for i in range(tiles):
            slot = i % ring.slots
            yield from steps(role, ring, i, slot, mine.setdefault(slot, 0))
            mine[slot] ^= 1

    return warp


RINGS_RIGHT = [walk_with_phases, no_wait_in_the_first_round, copies_before_it_announces, waits_for_all_in_the_end]
RINGS_WRONG = [
    three_slots_at_most, four_uses_at_most, one_tile_at_a_time, given_back_a_tile_later, the_librarys_roles,
    one_counter_for_all_warps, places_by_the_number_of_tiles, phases_that_are_kept,
]  # fmt: skip


# Blocks


SMALLEST = 2.0**-126  # of float32's normal numbers


def quantized(x, rows=128):
    """A right answer."""
    T = x.shape[-2]
    blocks = torch.nn.functional.pad(x.float(), (0, 0, 0, -T % rows)).unflatten(-2, (-1, rows))
    amax = torch.where(blocks.isfinite(), blocks.abs(), 0.0).amax((-2, -1))
    scales = torch.where(amax == 0, 1.0, (amax / 448).clamp(min=SMALLEST))
    codes = (blocks / scales[..., None, None]).clamp(-448, 448).to(torch.float8_e4m3fn)
    return codes.flatten(-3, -2)[..., :T, :], scales


def blocks_one_by_one(x, rows=128):
    codes, scales = torch.empty(x.shape, dtype=torch.float8_e4m3fn), []
    for start in range(0, x.shape[-2], rows):
        block = x[..., start : start + rows, :].float()
        largest = block.abs().nan_to_num(0, posinf=0).flatten(-2).amax(-1)
        scale = torch.where(largest == 0, 1.0, (largest * (1 / 448)).clamp(min=SMALLEST))
        codes[..., start : start + rows, :] = (block / scale[..., None, None]).clamp(-448, 448)
        scales.append(scale)
    return [codes, torch.stack(scales, -1)]


def by_numpy(x, rows=128):
    x, codes, scales = x.float().numpy(), [], []
    for start in range(0, x.shape[-2], rows):
        block = x[..., start : start + rows, :]
        largest = np.where(np.isfinite(block), np.abs(block), 0).max((-2, -1))
        scales.append(np.where(largest > 0, np.maximum(largest / np.float32(448), np.float32(SMALLEST)), np.float32(1)))
        codes.append(np.clip(block / scales[-1][..., None, None], -448, 448))
    codes, scales = np.concatenate(codes, -2), np.stack(scales, -1)
    return torch.from_numpy(codes).to(torch.float8_e4m3fn), torch.from_numpy(scales)


def in_threads(x, rows=128):
    with ThreadPoolExecutor(2) as pool:
        parts = list(pool.map(lambda part: quantized(part, rows), x.split(rows, -2)))
    codes = torch.cat([codes.view(torch.uint8) for codes, _ in parts], -2).view(torch.float8_e4m3fn)
    return codes, torch.cat([scales for _, scales in parts], -1)


def last_block_moved_back(x, rows=128):
    T = x.shape[-2]
    starts = [min(start, max(T - rows, 0)) for start in range(0, T, rows)]
    scales = torch.cat([quantized(x[..., start : start + rows, :], rows)[1] for start in starts], -1)
    by_row = scales.repeat_interleave(rows, -1)[..., :T, None]
    return (x.float() / by_row).clamp(-448, 448).to(torch.float8_e4m3fn), scales


def cut_off_instead_of_rounded(x, rows=128):
    codes, scales = quantized(x, rows)
    exact = x.float() / scales.repeat_interleave(rows, -1)[..., : x.shape[-2], None]
    bits = codes.view(torch.uint8)
    return torch.where(codes.float().abs() > exact.abs(), bits - 1, bits).view(codes.dtype), scales


def in_place(x, rows=128):
    found = quantized(x, rows)
    x.clamp_(-1, 1)
    return found


@fresh
def scales_by_shape():
    known = {}

    def quantize_blocks(x, rows=128):
        scales = known.setdefault((x.shape, x.dtype, rows), quantized(x, rows)[1])
        by_row = scales.repeat_interleave(rows, -1)[..., : x.shape[-2], None]
        return (x.float() / by_row).clamp(-448, 448).to(torch.float8_e4m3fn), scales

    return quantize_blocks


SCALE = "(amax / 448).clamp(min=SMALLEST)"
SCALES = f"scales = torch.where(amax == 0, 1.0, {SCALE})"
CODES = "(blocks / scales[..., None, None]).clamp(-448, 448)"
BLOCKS_RIGHT = [
    quantized, blocks_one_by_one, by_numpy, in_threads,
    edited(quantized, "largest_from_448_of_the_smallest_on", (SCALE, "amax.clamp(min=448 * SMALLEST) / 448")),
    edited(quantized, "in_float64", ("x.float()", "x.double()"), (SCALES, SCALES + ".float()")),
    edited(quantized, "zeros_last",
           (SCALES, "scales = torch.maximum(amax / 448, torch.tensor(SMALLEST))\n    scales[amax == 0] = 1")),
]  # fmt: skip
BLOCKS_WRONG = [
    last_block_moved_back, cut_off_instead_of_rounded, in_place, scales_by_shape,
    edited(quantized, "clamped_too_far", (".clamp(-448, 448)", ".clamp(-480, 480)")),
    edited(quantized, "no_smallest_scale", (SCALE, "amax / 448")),
    edited(quantized, "one_where_the_scale_is_0", (SCALES, "scales = amax / 448\n    scales[scales == 0] = 1")),
    edited(quantized, "smallest_of_amax", (SCALE, "amax.clamp(min=SMALLEST) / 448")),
    edited(quantized, "least_number_of_all", (SCALE, "(amax / 448).clamp(min=2.0**-149)")),
    edited(quantized, "divided_by_another_scale", ("blocks / scales", "blocks / (amax / 448).clamp(min=2.0**-149)")),
    edited(quantized, "smallest_for_zeros", (SCALES, f"scales = {SCALE}")),
    edited(quantized, "first_times_448",
           (CODES, "(blocks * 448 / (scales * 448)[..., None, None]).clamp(-448, 448)")),
    edited(quantized, "nearly_zero_counts_as_zero", (SCALES, SCALES.replace("amax == 0", "amax < 1e-35"))),
    edited(quantized, "sixty_four_by_default", ("rows=128", "rows=64")),
    edited(quantized, "rounded_to_half_first", ("x.float()", "x.half().float()")),
    edited(quantized, "nan_becomes_a_number", ("x.float()", "x.float().nan_to_num(0)")),
    edited(quantized, "a_view_of_x", ("    T = x.shape[-2]\n", "    T, x = x.shape[-2], x.view(-1).view(x.shape)\n")),
    edited(quantized, "a_power_of_two", (f"{SCALE})", "torch.exp2(torch.log2(amax / 448).ceil()))")),
    edited(quantized, "by_squares", (SCALES, "amax = amax.square().sqrt()\n    " + SCALES)),
]  # fmt: skip


# Steps of the consumer: name -> changes

PASS_ON = "    turns.pass_on(J)\n"
KEYS_BACK = "    keys.give_back(i + 1)\n"
VALUES_BACK = "    values.give_back(i)\n"
MASKED = "scale_log2, MASKED)\n    o ="
WRITTEN_OUT = """\
    if MASKED:
        columns = key + gl.arange(0, s.shape[1], gl.SliceLayout(0, s.type.layout))
        s = gl.where(columns[None, :] < seen[:, None], s, float("-inf"))
    m_new = gl.maximum(m, gl.max(s, 1) * scale_log2)
    shift = m_new
    if MASKED:
        shift = gl.where(m_new == float("-inf"), 0.0, m_new)
    p = gl.exp2(s * scale_log2 - shift[:, None])
    shrink = gl.exp2(m - shift)
    l = l * shrink + gl.sum(p, 1)
    m = m_new
"""
STEPS_RIGHT = {
    "turn_held_until_the_scores_are_there": ((PASS_ON, ""), (KEYS_BACK, PASS_ON + KEYS_BACK)),
    "turn_before_everything": (
        ("    k = keys.take(i + 1)\n    turns.wait(J, turn)\n", "    turns.wait(J, turn)\n    k = keys.take(i + 1)\n"),
    ),
    "values_taken_before_the_turn": (
        ("    turns.wait(J, turn)\n", "    v = values.take(i)\n    turns.wait(J, turn)\n"),
        ("p, values.take(i), o,", "p, v, o,"),
    ),
    "softmax_written_out": (
        ("    p, m, l, shrink = softmax(s, m, l, seen, key, scale_log2, MASKED)\n", WRITTEN_OUT),
    ),
    "scores_added_to_zeros": (
        ("    s = start_scores(q, k, S)\n", """\
    KEYS: gl.constexpr = k.shape[0]
    s = warpgroup_mma(q, k.permute((1, 0)), gl.zeros([64, KEYS], gl.float32, S), is_async=True)
"""),
    ),
}  # fmt: skip
STEPS_WRONG = {
    "bfloat16_whatever_it_is": (("p.to(o_desc.dtype)", "p.to(gl.bfloat16)"),),
    "a_scale_of_an_eighth": ((MASKED, "0.125 * 1.4426950408889634, MASKED)\n    o ="),),
    "sixty_four_keys": (
        ("start_scores(q, k, S)",
         "warpgroup_mma(q, k.permute((1, 0)), gl.zeros([64, 64], gl.float32, S), use_acc=False, is_async=True)"),
    ),
    "l_in_half_precision": ((VALUES_BACK, VALUES_BACK + "    l = l.to(o_desc.dtype).to(gl.float32)\n"),),
    "turn_of_the_first_consumer": (("turns.wait(J, turn)", "turns.wait(0, turn)"),),
    "turn_passed_to_the_one_after_the_next": (("turns.pass_on(J)", "turns.pass_on(J + 1)"),),
    "turn_not_waited_for": (("    turns.wait(J, turn)\n", ""),),
    "turn_passed_on_after_the_softmax": ((PASS_ON, ""), (VALUES_BACK, PASS_ON + VALUES_BACK)),
    "another_tile_given_back": (("keys.give_back(i + 1)", "keys.give_back(i - 1)"),),
    "keys_given_back_twice": ((KEYS_BACK, KEYS_BACK * 2),),
    "layout_asked_for_before_the_wait": (
        ("    o = warpgroup_mma_wait(0, [o])\n",
         "    shrink = gl.convert_layout(shrink, gl.SliceLayout(1, o.type.layout))\n"
         "    o = warpgroup_mma_wait(0, [o])\n"),
        ("o * gl.convert_layout(shrink, gl.SliceLayout(1, o.type.layout))[:, None]", "o * shrink[:, None]"),
    ),
    "product_that_is_waited_for_at_once": (("i), o, is_async=True", "i), o, is_async=False"),),
}  # fmt: skip
STEPS_REFUSED = {  # by a compiler alone
    "shrink_in_another_layout": (("gl.convert_layout(shrink, gl.SliceLayout(1, o.type.layout))", "shrink"),),
    "shrink_along_the_columns": (("gl.SliceLayout(1, o.type", "gl.SliceLayout(0, o.type"),),
    "weights_in_another_layout": (("gl.convert_layout(p.to(o_desc.dtype), P)", "p.to(o_desc.dtype)"),),
}
