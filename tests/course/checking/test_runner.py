"""One call of a learner's function: whatever it does, a Run comes of it, and its figures are right."""

import gc
import math
import os
import signal
import sys
import threading
import time

import pytest
import torch

from llmsys.course.checking import limits
from llmsys.course.checking.compare import compare, plain
from llmsys.course.checking.runner import PRINTED_LIMIT, Finding, LocalRunner, Raised, Run, resolve
from llmsys.hardware.tier import load_triton, triton_installed


class Yes(torch.Tensor):
    """A tensor that says yes to everything."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return True


class Odd(BaseException):
    pass


def run(function, *args, forbids=(), **kwargs) -> Run:
    return LocalRunner(function, forbids=forbids).run(args, kwargs)


def theirs(x):
    return x + 1


def test_a_value_comes_back_as_plain_data():
    got = run(lambda x, n: {"pair": (x.T, [n])}, torch.ones(2, 3), n=3)
    assert compare(got.value, {"pair": (torch.ones(3, 2), [3])}) is None
    assert got.error is None and not got.refused and not got.called and not got.modified


@pytest.mark.parametrize(
    "error", [ValueError("no"), SystemExit(3), Odd("odd"), RecursionError(), NotImplementedError(), GeneratorExit()]
)
def test_whatever_is_raised_is_reported(error):
    def function(x):
        raise error

    got = run(function, 1)
    assert got.value is None and got.error.type == type(error).__name__ and got.error.message == str(error)
    assert got.error.source == "raise error"


def test_a_keyboard_interrupt_is_not_swallowed():
    def function():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(function)


def test_an_error_points_at_the_learners_line_and_not_into_torch():
    def function(x):
        y = x + 1
        return helper(y)

    def helper(y):
        return y @ torch.zeros(7)

    got = run(function, torch.zeros(3))
    assert got.error.type == "RuntimeError" and got.error.source == "return y @ torch.zeros(7)"


def test_a_forged_tensor_is_refused():
    got = run(lambda x: x.as_subclass(Yes), torch.zeros(2))
    assert got.value is None and "not a subclass" in got.refused


def test_arguments_are_copies_and_changing_them_is_seen():
    x = torch.zeros(3)
    got = run(lambda x, y, *, z: (x.add_(1), z.append(1)) and None, x, 2, z=[3])
    assert got.modified == ("its argument number 1", "its argument z") and x.sum() == 0
    x[0] = math.nan
    assert run(lambda x: x * 2, x).modified == ()


def test_a_flood_of_output_is_kept_short(capfd):
    def function():
        for _ in range(1000):
            print("x" * 1000)
            sys.stderr.write("y" * 1000)

    got = run(function)
    assert len(got.printed) < PRINTED_LIMIT + 100 and "characters more" in got.printed
    assert capfd.readouterr() == ("", "")


def test_a_forbidden_call_is_reported_however_it_ends():
    def function(x):
        try:
            return theirs(x)
        except RuntimeError:
            return x + 1

    assert run(function, 1, forbids=[theirs]).called == (f"{__name__}.theirs",)
    assert run(theirs, 1, forbids=[f"{__name__}:theirs"]).called == (f"{__name__}.theirs",)
    assert run(lambda x: x, theirs(1), forbids=[theirs]).called == ()


def test_reads_and_allocations_are_metered():
    def two_passes(x, pair, *, y):
        return ((x - x.amax()).sum() + y.sum() + pair[1].sum()).expand(3).clone()

    x = torch.randn(5, 10)
    got = run(two_passes, x, (torch.ones(1), torch.ones(2)), y=torch.ones(3))
    assert got.reads == {0: 2, "1.0": 0, "1.1": 1, "y": 1}
    assert (got.largest_bytes, got.largest_shape) == (200, (5, 10))


def test_the_checks_own_calls_are_not_counted():
    runner = LocalRunner(lambda x: x.clone(), forbids=[theirs, "aten::exp"])
    first = runner.run((torch.ones(4),), {})
    assert theirs(1) == 2 and torch.ones(1).exp() > 1
    assert runner.run((torch.ones(4),), {}).reads == first.reads == {0: 1}


def test_an_answer_is_adapted_by_name():
    assert resolve("math:gcd") is math.gcd and resolve(math.gcd) is math.gcd
    runner = LocalRunner(theirs, adapt=f"{__name__}:twice")
    assert runner.run((1,), {}).value == 3


def twice(function):
    return lambda x: function(function(x))


def test_a_run_crosses_as_plain_data():
    full = Run(
        value=(torch.ones(2), None),
        reads={0: 2.0, "1.0": 0.5},
        largest_shape=(2, 3),
        findings=(Finding("load outside", "3 lanes"),),
        error=Raised("ValueError", "no", 3, "raise"),
    )
    for each in (full, Run()):
        fields = plain(each.to_plain())  # raises where something is not plain
        again = Run.from_plain(fields)
        assert compare(again.value, each.value) is None
        assert (again.findings, again.error, again.reads) == (each.findings, each.error, each.reads)


@pytest.mark.skipif(not triton_installed(), reason="needs Triton")
def test_kernels_run_under_the_sanitizer():
    from llmsys.hardware import sanitizer
    from llmsys.lessons.lesson_02_online_softmax import kernel_mistakes as wrong

    if not sanitizer.available():
        pytest.skip("kernels are compiled here, or the interpreter is another")
    launch = "llmsys.lessons.lesson_02_online_softmax.checks.softmax_kernel:launch"
    runner = LocalRunner(wrong.store_without_a_mask, adapt=launch, kernel=True)
    got = runner.run((torch.randn(2, 5),), {"block": 8})
    assert sanitizer.STORE in {finding.kind for finding in got.findings}
    assert got.bytes_loaded["x_ptr"] == 2 * 2 * 5 * 4  # two passes over 2 rows of 5 fp32
    assert runner.run((torch.randn(2, 8),), {"block": 8}).findings == ()


@pytest.mark.skipif(not triton_installed(), reason="needs Triton")
def test_a_kernel_that_is_not_written_yet_is_not_launched():
    """Compiled, a stub would be an error about the statement `raise`."""

    triton, tl = load_triton()

    @triton.jit
    def stub(x_ptr):
        raise NotImplementedError

    @triton.jit
    def written(x_ptr):
        if x_ptr is None:
            raise NotImplementedError

    launched = []

    def run(kernel):
        return LocalRunner(kernel, adapt=lambda kernel: launched.append, kernel=True).run((1,), {})

    assert run(stub).error.type == "NotImplementedError" and not launched
    assert run(written).error is None and launched == [1]


@pytest.mark.skipif(not triton_installed(), reason="needs Triton")
def test_an_answer_that_is_no_kernel_is_not_launched():
    triton, _ = load_triton()

    class Launchable:
        def __getitem__(self, grid):
            return lambda *args, **options: None

    def plain_function(x_ptr):
        pass

    class Disguised(Launchable):
        __module__ = "triton.runtime.jit"
        fn = plain_function

    launched = []
    for answer, says in (
        (Launchable(), "it is a Launchable, and no kernel"),
        (Disguised(), "it is a Disguised, and no kernel"),
        (plain_function, "plain_function is no kernel: @triton.jit is missing above it"),
    ):
        error = LocalRunner(answer, adapt=lambda kernel: launched.append, kernel=True).run((1,), {}).error
        assert error.type == "TypeError" and says in error.message and not launched


def state():
    """What a call installs, and what an interrupted one must not leave behind."""
    from torch.overrides import _get_current_function_mode_stack
    from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

    found = [sys.getprofile(), threading.getprofile(), sys.stdout, sys.stderr]
    found += [_get_current_function_mode_stack(), _get_current_dispatch_mode_stack()]
    found += [signal.getsignal(number) for number in (signal.SIGALRM, signal.SIGPROF)]
    found += [signal.getitimer(timer)[0] for timer in (signal.ITIMER_REAL, signal.ITIMER_PROF)]
    if triton_installed():
        from triton.runtime import interpreter

        found += [vars(interpreter.InterpreterBuilder)["create_masked_load"], interpreter.GridExecutor.__call__]
    return found


def interrupted_after(seconds, call):
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
    gc.disable()  # in a callback of the collector, as hypothesis has one, an interruption is ignored
    # A run that a shell put into the background ignores Ctrl-C, and Python then leaves it so.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            call()
    finally:
        timer.join()
        signal.signal(signal.SIGINT, before)
        gc.enable()


@pytest.mark.parametrize("seconds", [0.02, 0.3])
def test_control_c_leaves_nothing_installed(seconds):
    def endless(x):
        while True:
            x = x + 1

    before = state()
    runner = LocalRunner(endless, forbids=[theirs, "aten::exp"], seconds=60)
    interrupted_after(seconds, lambda: [runner.run((torch.ones(3),), {}) for _ in range(1000)])
    assert state() == before
    assert run(lambda x: x + 1, torch.ones(1), forbids=["aten::exp"]).error is None


@pytest.mark.skipif(not triton_installed(), reason="needs Triton")
def test_control_c_in_a_kernel_leaves_the_interpreter_as_it_was():
    from llmsys.hardware.tier import interpreting
    from llmsys.lessons.lesson_02_online_softmax.kernel_mistakes import softmax_kernel

    if not interpreting():
        pytest.skip("kernels are compiled here")
    launch = "llmsys.lessons.lesson_02_online_softmax.checks.softmax_kernel:launch"
    runner = LocalRunner(softmax_kernel, adapt=launch, kernel=True, seconds=60)
    x, before = torch.randn(400, 100), state()
    interrupted_after(0.3, lambda: runner.run((x,), {"block": 4}))
    assert state() == before
    got = runner.run((x[:2],), {"block": 64})
    assert got.error is None and not got.findings and compare(got.value, torch.softmax(x[:2], -1)) is None


def test_a_call_that_takes_too_long_is_stopped_and_so_are_those_after_it(monkeypatch):
    def slow(x):
        while x:
            try:
                pass
            except Exception:  # keeps nothing from stopping it
                pass

    monkeypatch.setattr(limits, "CLOCK", 300)  # on a busy machine, too
    runner = LocalRunner(slow, seconds=0.2)
    before = state()
    assert runner.run((0,), {}).error is None
    error = runner.run((1,), {}).error
    assert (error.type, error.message[:45]) == ("time limit", "it took longer than 0.2 s of processor time, ")
    assert runner.run((0,), {}).error == error and state() == before


def test_a_call_that_only_waits_is_stopped_by_the_clock():
    error = LocalRunner(lambda: time.sleep(60), seconds=0.05).run((), {}).error
    assert error.type == "time limit" and "0.25 s by the clock" in error.message


def test_a_timer_that_was_running_goes_on_afterwards():
    rung = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(True))
    signal.setitimer(signal.ITIMER_REAL, 0.15)
    try:
        LocalRunner(lambda: time.sleep(0.02), seconds=60).run((), {})
        assert not rung and 0 < signal.getitimer(signal.ITIMER_REAL)[0] < 0.15
        time.sleep(0.3)
        assert rung
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
