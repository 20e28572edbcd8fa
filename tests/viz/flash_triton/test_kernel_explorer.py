"""The kernel explorer shows what the compiler says, and what follows from that for an SM."""

from xml.etree import ElementTree

import pytest

from llmsys.hardware.occupancy import RESERVED_SHARED
from llmsys.viz.flash_triton import kernel_explorer
from llmsys.viz.flash_triton.kernel_explorer import describe, explorer_of, most_telling, steps
from llmsys.viz.flash_triton.kernel_explorer_frame import draw
from llmsys.viz.flash_triton.kernel_sweep import HEADS, STAGES, WARPS, Configuration, Result, configurations

EVERY = [(head, warps, stages) for head in HEADS for warps in WARPS for stages in STAGES]


def made_up(**changes):
    """Results of a stand-in, all alike but for what a test is about."""
    numbers = {"registers": 128, "spill_bytes": 0, "shared_bytes": 56 * 1024, "wgmma": True, "serialized": False}
    return {each: Result(**numbers | changes) for each in configurations()}


@pytest.mark.parametrize(("head", "warps", "stages"), EVERY)
def test_every_choice_has_nine_steps_that_can_be_drawn_and_described(head, warps, stages):
    stepper = kernel_explorer(head=head, warps=warps, stages=stages)
    assert len({(step.at.rows, step.at.keys) for step in stepper.frames}) == 9
    for i, step in enumerate(stepper.frames):
        root = ElementTree.fromstring(stepper.svg(i))
        assert 0 <= min(float(each.get("width", 1)) for each in root.iter("{http://www.w3.org/2000/svg}rect"))
        assert f"{step.at.rows} queries × {step.at.keys} keys" in describe(step)
    assert 0 <= most_telling(stepper.frames) < 9


@pytest.mark.parametrize(("head", "warps", "stages"), EVERY)
def test_what_is_drawn_fits_and_one_more_does_not(head, warps, stages):
    for step in kernel_explorer(head=head, warps=warps, stages=stages).frames:
        n = step.fits.programs
        assert all(n * each.share <= each.whole for each in step.resources)
        assert any((n + 1) * each.share > each.whole for each in step.resources if each.name in step.limits)
        shared, registers, *_ = step.resources
        assert shared.share == step.result.shared_bytes + RESERVED_SHARED
        assert registers.share >= step.result.registers * 32 * warps
        assert step.map[step.at.rows, step.at.keys] == (step.result, n)


def test_a_bar_has_a_block_for_each_program_and_shows_the_limit():
    step = steps(made_up(), 64, 4, 3)[4]
    assert step.fits.programs == 4 and step.limits == ("shared memory", "registers")
    markup = draw(step).markup()
    assert markup.count('class="blue edged"') == 4 * len(step.resources)
    assert markup.count("one more does not fit") == 2
    assert "stop one more" in describe(step) and "4 programs fit" in describe(step)


def test_a_configuration_that_cannot_run_is_shown_with_the_reason():
    step = steps(made_up(shared_bytes=300 * 1024), 64, 4, 3)[0]
    assert "needs 300 KiB of shared memory, and a program may have 227" in describe(step)
    assert 'class="blue edged"' not in draw(step).markup() and "too large" in draw(step).markup()
    step = steps(made_up(registers=255), 64, 8, 3)[0]
    assert step.fits.programs == 1 and "registers stop one more" in describe(step)


def test_the_caption_tells_of_spills_and_of_older_instructions():
    step = steps(made_up(registers=255, spill_bytes=3184, serialized=True), 128, 4, 2)[8]
    assert (
        "no register for all it needs, and moves 3,184 bytes" in describe(step)
        and "spills 3.2 kB" in draw(step).markup()
    )
    assert "one at a time" in draw(step).markup()
    assert "is kept to 128 registers" in describe(steps(made_up(spill_bytes=8), 64, 4, 3)[0])
    assert "too small for wgmma" in describe(steps(made_up(wgmma=False), 64, 4, 3)[0])


def test_a_control_leaves_the_stepper_at_its_tile_size():
    stepper = explorer_of(made_up())
    stepper.go(5)
    stepper.set(warps=8)
    assert stepper.frame.at == Configuration(64, 64, 128, 8, 3)
    with pytest.raises(ValueError, match="head must be one of 64, 128, 256; got 96"):
        kernel_explorer(head=96)
