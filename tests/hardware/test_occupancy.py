"""Programs per SM, against cases worked out by hand with the rules of NVIDIA's calculator."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsys.hardware.occupancy import SMS, occupancy, registers_of_warp

KIB = 1024


@pytest.mark.parametrize(
    ("registers", "shared", "warps", "programs", "limit"),
    [
        (32, 0, 4, 16, "registers"),  # 1024 registers a warp, 64 warps: all limits but that of 32 programs meet
        (16, 0, 1, 32, "programs"),  # 64 warps would fit, 32 programs is the most
        (33, 0, 4, 12, "registers"),  # 33 · 32 = 1056 → 1280; 16384 // 1280 = 12 warps a partition, 48 in all
        (168, 80 * KIB, 4, 2, "shared memory"),  # 3 · 81 KiB > 228 KiB; registers would allow 3
        (168, 48 * KIB, 4, 3, "registers"),  # 5376 a warp: 3 a partition; 4 · 49 KiB < 228 KiB
        (128, 227 * KIB, 8, 1, "shared memory"),
        (128, 227 * KIB + 1, 8, 0, "shared memory"),  # more than a program may have, though an SM has it
        (255, 0, 4, 2, "registers"),  # 8160 → 8192: two warps a partition
        (255, 0, 16, 0, "registers"),  # 16 · 8192 is twice the register file
        (24, 113 * KIB, 4, 2, "shared memory"),  # 113 + 1 KiB reserved, twice, is 228 KiB to the byte
        (24, 113 * KIB + 1, 4, 1, "shared memory"),
        (24, 56 * KIB, 4, 4, "shared memory"),
        (40, 100, 3, 16, "registers"),  # 1280 a warp: 48 warps; as 3 of them are a program, 16 programs
    ],
)
def test_cases_worked_out_by_hand_for_hopper(registers, shared, warps, programs, limit):
    found = occupancy(registers=registers, shared_bytes=shared, num_warps=warps)
    assert (found.programs, found.limits[limit]) == (programs, programs)
    assert found.limits[found.limit] == programs == min(found.limits.values())
    assert found.warps == programs * warps and found.fraction == found.warps / 64


def test_the_same_kernel_on_other_gpus():
    on = {target: occupancy(registers=64, shared_bytes=40 * KIB, num_warps=4, target=target) for target in SMS}
    assert {target: found.programs for target, found in on.items()} == {
        "sm_80": 4, "sm_86": 2, "sm_89": 2, "sm_90": 5, "sm_100": 5,
    }  # fmt: skip
    assert on["sm_89"].fraction == 8 / 48


@given(st.integers(1, 255), st.integers(0, 232_448), st.sampled_from([1, 2, 4, 8, 16]))
def test_so_many_programs_fit_on_an_sm_and_one_more_does_not(registers, shared, warps):
    sm, found = SMS["sm_90"], occupancy(registers=registers, shared_bytes=shared, num_warps=warps)

    def fits(programs):
        rounded = -(-shared // 128) * 128
        return (
            programs * warps <= 64 and programs <= 32
            and programs * (rounded + 1024) <= sm.shared_bytes
            and -(-programs * warps // 4) * registers_of_warp(registers) <= sm.registers // 4
        )  # fmt: skip

    if found.programs:
        assert fits(found.programs)
    assert not fits(found.programs + 1) or registers_of_warp(registers) * max(warps, 4) > sm.registers


def test_impossible_arguments_are_named():
    with pytest.raises(ValueError, match="target must be one of sm_80, .*'sm_7'"):
        occupancy(registers=1, shared_bytes=0, num_warps=1, target="sm_7")
    with pytest.raises(ValueError, match="registers must be at least 1, got 0"):
        occupancy(registers=0, shared_bytes=0, num_warps=1)
    with pytest.raises(ValueError, match="num_warps must be at least 1, got 0"):
        occupancy(registers=1, shared_bytes=0, num_warps=0)
