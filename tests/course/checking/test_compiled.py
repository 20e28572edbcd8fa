"""Kernels that run in the interpreter, and what a GPU's compiler says of them."""

import pytest
import torch

from llmsys.course.checking.answer import Call
from llmsys.course.checking.checks import exercise_check, run_check
from llmsys.course.checking.compiled import chosen, refusals
from llmsys.course.checking.mistakes import edited
from llmsys.course.checking.runner import LocalRunner, Run
from llmsys.hardware import compiler
from llmsys.hardware.tier import interpreting, load_triton, triton_installed

if not triton_installed():
    pytest.skip("needs Triton", allow_module_level=True)
triton, tl = load_triton()
if not interpreting():
    pytest.skip("kernels are compiled here", allow_module_level=True)

NOTHING = float("-inf")
FAR_BELOW = tl.constexpr(float("-inf"))
TABLE = [1.0, 2.0]
HALF = tl.float16


@triton.jit
def largest(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    """The largest element of x (n,)."""
    m = float("-inf")
    for start in range(0, n, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + at, mask=at < n, other=float("-inf"))
        m = tl.maximum(m, tl.max(x, axis=0))
    tl.store(y_ptr, m)


def launch(kernel):
    def call(x, *, block=16, back=False):
        y = torch.empty(1, dtype=x.dtype)
        kernel[(1,)](x, y, len(x), BLOCK=block)
        return y[0]

    return call


BEGIN = 'm = float("-inf")'
LOOP = "        at = start"
REFUSED = [  # changes that the interpreter runs, a part of what the compiler says, and the line that it shows
    (((LOOP, f"        if start >= n:\n            break\n{LOOP}"),), "unsupported AST node type: Break", "break"),
    (((BEGIN, "m = NOTHING"),), "Cannot access global variable NOTHING", "m = NOTHING"),
    (((BEGIN, "m = -1\n    m = m * 2000000"),), "Loop-carried variable m has initial type", "for start in range"),
    (((BEGIN, "m = TABLE[0] * float('-inf')"),), "Cannot access global variable TABLE", "m = TABLE[0]"),
    (((BEGIN, "m = float('-inf')\n    found = {}"),), "unsupported AST node type: Dict", "found = {}"),
    (((BEGIN, "m = float('-inf')\n    with open('/dev/null'):\n        pass"),), "", "with open"),
]
ACCEPTED = [
    (),
    ((BEGIN, "m = FAR_BELOW"),),
    ((BEGIN, "m = tl.full((), 1.0, HALF).to(tl.float32) * FAR_BELOW"),),
]


@pytest.mark.parametrize("changes, says, line", REFUSED)
def test_what_the_interpreter_alone_runs_is_refused_with_the_compilers_words_and_the_line(changes, says, line):
    kernel = edited(largest, "largest", *changes)
    x = torch.randn(20)
    assert LocalRunner(kernel, adapt=launch, kernel=True).run((x,), {}).value == x.max()
    (said,) = refusals(kernel, launch, [((x,), {})])
    assert says in said.message and len(said.message) < 300 and "Error(" not in said.message
    assert line in said.source and said.line == 1 + next(
        n for n, each in enumerate(edited_text(kernel).splitlines()) if line in each
    )


def edited_text(kernel):
    import linecache

    return "".join(linecache.getlines(kernel.fn.__code__.co_filename))


@pytest.mark.parametrize("changes", ACCEPTED)
def test_what_a_gpu_can_run_is_not_refused(changes):
    kernel = edited(largest, "largest", *changes)
    assert refusals(kernel, launch, [((torch.randn(20),), {}), ((torch.randn(20).half(),), {})]) == [None, None]


def test_the_property_whose_call_is_refused_does_not_hold_and_the_others_do():
    """In float32 m is of one type; in float16 it changes its type in the loop."""

    @exercise_check("97.largest", adapt=launch, kernel=True)
    def check(answer):
        for dtype in (torch.float32, torch.float16):
            with answer.property(f"{dtype}", why="Halves are what tensor cores multiply."):
                x = answer.randn(20).to(dtype)
                answer.matches(x.max(), x)

    kernel = edited(largest, "largest", (BEGIN, "m = tl.full((), FAR_BELOW, tl.float32)"),
                    ("tl.max(x, axis=0))", "tl.max(x, axis=0)).to(x.dtype)"))  # fmt: skip
    result = run_check(check, check.local_runner(kernel))
    assert [each.passed for each in result.properties] == [True, False] and result.failure.kind == "compile"
    assert "runs in the interpreter, a GPU's compiler refuses it: Loop-carried variable m" in repr(result)
    assert "of the cell: for start in range" in repr(result) and "Halves are what" not in repr(result)


def test_few_calls_are_compiled_and_they_have_every_type_and_both_sides_of_every_option():
    calls = [
        Call((torch.zeros(3, dtype=dtype),), {"causal": causal} if causal else {}, Run())
        for dtype, causal in ((torch.float32, False), (torch.float32, True), (torch.float16, False))
    ]
    picked = [calls[n] for n in chosen(calls)]
    assert len(picked) == 2 and {call.args[0].dtype for call in picked} == {torch.float32, torch.float16}
    assert {bool(call.kwargs.get("causal")) for call in picked} == {True, False}
    assert chosen(calls[:1]) == [0] and chosen([]) == []


def test_nothing_is_said_where_the_compiler_cannot_work(monkeypatch):
    """Without an assembler every kernel fails, the library's own too."""
    broken = compiler.CompileError("largest does not compile: Cannot find ptxas")
    monkeypatch.setattr("llmsys.course.checking.compiled.compile_kernels", lambda builds, **_: [broken for _ in builds])
    assert refusals(largest, launch, [((torch.randn(20),), {})]) == [None]
    monkeypatch.undo()
    monkeypatch.setattr("llmsys.course.checking.compiled.compile_kernels", no_process)
    assert refusals(largest, launch, [((torch.randn(20),), {})]) == []


def no_process(builds, **_):
    raise OSError("no more processes")


def test_a_kernel_whose_text_is_not_to_be_had_is_not_compiled():
    def within(minus_infinity):
        @triton.jit
        def kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
            tl.store(y_ptr, minus_infinity)

        return kernel

    assert refusals(within(FAR_BELOW), launch, [((torch.randn(3),), {})]) == []
    namespace = {"triton": triton, "tl": tl}
    exec("def kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr):\n    pass", namespace)
    assert refusals(namespace["kernel"], launch, [((torch.randn(3),), {})]) == []
