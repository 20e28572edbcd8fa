"""Forbidden functions: under whatever name one is called, the call is seen; and nothing else is stopped."""

import functools
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F

from llmsys.attention import online
from llmsys.course.checking.watch import DERIVATIVES, FUSED_ATTENTION, FUSED_SOFTMAX, Shortcut, watch


def theirs(x):
    return x + 1


def other(x):
    return x + 1


class Module:
    def forward(self, x):
        return theirs(x)

    def other(self, x):
        return x


under_another_name = theirs
wrapped = functools.wraps(theirs)(lambda x: theirs(x))
DOTTED = f"{__name__}:theirs"


@pytest.mark.parametrize("forbidden", [theirs, wrapped, DOTTED], ids=["function", "wrapper", "name"])
@pytest.mark.parametrize(
    "call",
    [
        lambda: theirs(1),
        lambda: under_another_name(1),
        lambda: wrapped(1),
        lambda: functools.partial(theirs, 1)(),
        lambda: list(map(theirs, [1])),
        lambda: Module().forward(1),
        lambda: type(theirs)(theirs.__code__, globals())(1),
    ],
)
def test_a_call_is_seen_under_any_name(forbidden, call):
    with pytest.raises(Shortcut, match="write this yourself: .*theirs was called"), watch([forbidden]):
        call()


@pytest.mark.parametrize("forbidden", [theirs, DOTTED, Module, "aten::logaddexp", "no.such.module:theirs"])
def test_nothing_else_is_stopped(forbidden):
    with watch([forbidden]) as watching:
        assert other(1) == 2 and torch.logsumexp(torch.zeros(2), 0) > 0
    assert watching.called == []


def test_swallowing_the_error_does_not_help():
    with watch([theirs]) as watching:
        try:
            theirs(1)
        except Exception:
            pass
    assert len(watching.called) == 1 and watching.called[0].endswith("theirs")


def test_methods_of_a_forbidden_class_are_seen():
    with pytest.raises(Shortcut, match="Module was called"), watch([Module]):
        Module().other(1)


def test_other_threads_are_watched():
    with watch([theirs]) as watching:
        thread = threading.Thread(target=lambda: theirs(1))
        thread.start()
        thread.join()
    assert watching.called


@pytest.mark.parametrize(
    "pattern, call",
    [
        ("aten::logaddexp", lambda x: torch.logaddexp(x, x)),
        ("aten::logaddexp", lambda x: x.logaddexp(x)),
        ("aten::softmax", lambda x: torch.softmax(x, -1)),
        ("aten::softmax", lambda x: F.softmax(x, -1)),
        ("aten::softmax", lambda x: x.softmax(-1)),
        ("aten::softmax", lambda x: torch.nn.Softmax(-1)(x)),
        ("aten::softmax", lambda x: torch.ops.aten._softmax(x, -1, False)),
        ("aten::*softmax*", lambda x: F.log_softmax(x, -1)),
        ("aten::scaled_dot_product*", lambda x: F.scaled_dot_product_attention(x, x, x)),
        ("aten::exp", lambda x: x.exp_()),
    ],
)
def test_operators_are_seen_however_they_are_called(pattern, call):
    x = torch.zeros(1, 1, 2, 4)
    with pytest.raises(Shortcut, match="write this yourself: torch's "), watch([pattern]):
        call(x)
    call(x)  # and afterwards they are free again


def test_profilers_that_were_set_before_are_put_back():
    seen = []

    def profiler(frame, event, argument):
        seen.append(event)

    before, threads_before = sys.getprofile(), threading.getprofile()
    sys.setprofile(profiler)
    threading.setprofile(profiler)
    try:
        with pytest.raises(Shortcut), watch([theirs, "aten::exp"]):
            theirs(1)
        assert sys.getprofile() is profiler and threading.getprofile() is profiler
    finally:
        sys.setprofile(before)
        threading.setprofile(threads_before)


def test_a_forbidden_function_given_as_the_answer_is_refused_without_a_call():
    assert watch([theirs]).refuses(wrapped) and watch([DOTTED]).refuses(theirs)
    assert watch([theirs]).refuses(other) is None


def test_only_functions_can_be_forbidden():
    with pytest.raises(TypeError, match="name its operator, as in 'aten::logaddexp'"):
        watch([torch.logaddexp])


def test_the_librarys_functions_are_seen_through_their_decorators():
    a = online.Partial(torch.zeros(2), torch.ones(2))
    for forbidden in (online.merge, "llmsys.attention.online:merge"):
        with pytest.raises(Shortcut, match=r"llmsys\.attention\.online\.merge was called"), watch([forbidden]):
            online.online_softmax(torch.zeros(2, 4), 2)
        assert online.merge(a, a) is not None


def test_watching_imports_neither_what_is_forbidden_nor_the_compiler():
    program = (
        "import sys, torch\n"
        "from llmsys.course.checking.watch import watch\n"
        "with watch(['llmsys.models.sampling:greedy', 'aten::exp']):\n"
        "    torch.ones(2) + 1\n"
        "assert not {'llmsys.models', 'triton', 'torch._dynamo'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "family, call",
    [
        (FUSED_SOFTMAX, lambda x: torch.softmax(x, -1)),
        (FUSED_SOFTMAX, lambda x: F.log_softmax(x, -1)),
        (FUSED_SOFTMAX, lambda x: torch.logcumsumexp(x, -1)),
        (FUSED_SOFTMAX, lambda x: torch.logaddexp2(x, x)),
        (FUSED_SOFTMAX, lambda x: torch.distributions.Categorical(logits=x).probs),
        (FUSED_SOFTMAX, lambda x: F.cross_entropy(x[0, 0], torch.zeros(2, dtype=torch.int64))),
        (FUSED_SOFTMAX, lambda x: F.gumbel_softmax(x)),
        (FUSED_ATTENTION, lambda x: F.scaled_dot_product_attention(x, x, x)),
        (FUSED_ATTENTION, lambda x: torch.nn.MultiheadAttention(4, 1)(x[0], x[0], x[0])),
        (DERIVATIVES, lambda x: torch.autograd.grad((x.requires_grad_() * 2).sum(), x)),
        (DERIVATIVES, lambda x: x.clone().requires_grad_()),
        (DERIVATIVES, lambda x: torch.func.grad(lambda y: y.sum())(x)),
        (DERIVATIVES, lambda x: torch.func.jvp(torch.exp, (x,), (x,))),
        (DERIVATIVES, lambda x: torch.autograd.functional.jacobian(torch.exp, x)),
        (DERIVATIVES, lambda x: torch.ops.aten._softmax_backward_data(x, x, -1, torch.float32)),
    ],
)
def test_a_family_has_what_does_the_same_under_another_name(family, call):
    x = torch.zeros(1, 1, 2, 4)
    with pytest.raises(Shortcut, match="write this yourself: "), watch(family):
        call(x)


@pytest.mark.parametrize("family", [FUSED_SOFTMAX, FUSED_ATTENTION, DERIVATIVES])
def test_a_family_stops_nothing_that_an_answer_needs(family):
    x = torch.randn(2, 3)
    with watch(family) as watching:
        y = (x - x.amax(-1, keepdim=True)).exp()
        y / y.sum(-1, keepdim=True) @ torch.sigmoid(x).mT + torch.log(y.sum())
    assert watching.called == []


def test_a_module_stands_for_all_of_its_functions_and_may_be_a_pattern():
    for forbidden in (f"{__name__}:*", f"{__name__[:-3]}*:*"):
        for call in (lambda: theirs(1), lambda: Module().other(1)):
            with pytest.raises(Shortcut, match="was called"), watch([forbidden]):
                call()
        assert watch([forbidden]).refuses(other)
    with watch([f"{__name__}.within:*", "other:*"]) as watching:
        theirs(1)
    assert watching.called == []


@pytest.mark.parametrize("forbidden, call", [(theirs, lambda: theirs(1)), ("aten::exp", torch.zeros(2).exp)])
def test_a_pool_that_outlives_a_block_is_watched_by_the_next_one(forbidden, call):
    with ThreadPoolExecutor(1) as pool:
        for _ in range(2):
            with watch([forbidden]) as watching:
                pool.submit(call).exception()
            assert len(watching.called) == 1
        pool.submit(call).result()
