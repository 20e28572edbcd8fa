"""Ctrl-C: wherever it comes, it is raised, nothing is left behind, and the engine serves on."""

import signal
import sys
import threading

import pytest

from llmsys.serving.engine import Engine
from llmsys.serving.execution import Execution
from llmsys.serving.interrupts import Interrupts, interrupted_later
from llmsys.serving.sampling.sampling_params import SamplingParams

PROMPTS = [(5, 9, 30, 12, 44, 8, 60), (5, 9, 30, 12, 44), (9, 30)]
PLACES = 25


def ctrl_c():
    signal.raise_signal(signal.SIGINT)


def lines_of(call, *, interrupt_at: int | None = None) -> int:
    """How many lines of the engine and the cache `call` runs; at one of them comes an interrupt."""
    lines, before = 0, sys.gettrace()

    def trace(frame, event, _):
        nonlocal lines
        if "serving" not in frame.f_code.co_filename and "cache" not in frame.f_code.co_filename:
            return None
        lines += event == "line"
        if event == "line" and lines == interrupt_at:
            sys.settrace(None)
            ctrl_c()
        return trace

    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return lines


# Python itself drops what is raised while it closes a generator.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("ahead", [False, True])
def test_wherever_an_interrupt_comes_nothing_is_left_and_the_engine_serves_on(llama, ahead):
    params = SamplingParams(max_tokens=4, ignore_eos=True, n=2)
    engine = Engine(
        llama.ours, num_blocks=12, block_size=4, max_sequences=4, max_tokens_per_step=8,
        execution=Execution(ahead=ahead),
    )  # fmt: skip
    served = [response.tokens for response in engine.generate(PROMPTS, params)]  # greedy: each as transformers', below
    assert all(llama.agrees(p, tokens, max_tokens=4) for p, tokens in zip(PROMPTS, served, strict=True))
    lines = lines_of(lambda: engine.generate(PROMPTS, params))
    raised = 0
    for place in range(1, lines, lines // PLACES):
        try:
            lines_of(lambda: engine.generate(PROMPTS, params), interrupt_at=place)
        except KeyboardInterrupt:
            raised += 1
        assert engine.pool.stats.used == 0 and not engine.has_unfinished and not engine.metrics.requests, place
        assert not engine._loop._flights and signal.getsignal(signal.SIGINT) is signal.default_int_handler, place
        assert [response.tokens for response in engine.generate(PROMPTS, params)] == served, place
    assert raised > 0.8 * PLACES


def test_an_interrupt_comes_when_the_block_is_done_and_a_second_one_at_once():
    done = []
    with pytest.raises(KeyboardInterrupt), interrupted_later():
        with interrupted_later():
            ctrl_c()
            done.append("inner")
        done.append("outer")
    with pytest.raises(KeyboardInterrupt), interrupted_later():
        ctrl_c()
        done.append("first")
        ctrl_c()
        done.append("second")
    assert done == ["inner", "outer", "first"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_in_a_window_an_interrupt_comes_at_once_and_one_from_before_as_it_opens():
    interrupts = Interrupts()
    done = []
    with pytest.raises(KeyboardInterrupt), interrupts.later():
        ctrl_c()
        done.append("before")
        with interrupts.at_once():
            done.append("in the window")
    with interrupts.later():
        with pytest.raises(KeyboardInterrupt), interrupts.at_once():
            ctrl_c()
            done.append("never")
        done.append("after")
        with pytest.raises(KeyboardInterrupt), interrupts.at_once():
            with interrupts.later():  # a change that is made within the window
                ctrl_c()
                done.append("all of it")
            done.append("never")
        with interrupts.later():
            done.append("no window")
    with pytest.raises(KeyboardInterrupt), interrupts.later():
        ctrl_c()
        done.append("again")
    assert done == ["before", "after", "all of it", "no window", "again"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_in_another_thread_there_is_nothing_to_hold_back():
    went = []

    def go():
        before = signal.getsignal(signal.SIGINT)
        with interrupted_later():
            went.append(signal.getsignal(signal.SIGINT) is before)

    thread = threading.Thread(target=go)
    thread.start()
    thread.join()
    assert went == [True]
