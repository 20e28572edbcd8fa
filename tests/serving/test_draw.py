"""Drawing in two launches: the sampler's tokens, row by row, by the kernels in the interpreter and by the formula."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsys.hardware import sanitizer
from llmsys.hardware.compiler import Compiled, compile_kernels
from llmsys.hardware.launches import Recorder
from llmsys.hardware.tier import interpreting, load_triton, triton_device, triton_installed
from llmsys.serving.sampling import draw, sampler
from llmsys.serving.sampling.draw import Kernels, draw_tokens
from llmsys.serving.sampling.sampler import Draw, choose
from llmsys.serving.sampling.sampling_params import SamplingParams
from tests.support.size import SEED, sized
from tests.support.waiting import nothing_waits

if triton_installed():
    load_triton()
    from llmsys.serving.sampling.draw_kernels import draw_kernel, parts_kernel
DEVICE = triton_device() if triton_installed() else torch.device("cpu")
FORMS = ["torch", *(["triton"] if triton_installed() else [])]
LARGEST_U = 1 - 2.0**-52


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """So that a small row has several."""
    monkeypatch.setattr(draw, "PART", 16)


def numbers(*values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, device=DEVICE)


def row_of_each(seed, rows, V, dtype=torch.float32):
    """Logits, some of which are −∞ or equal, temperatures of which some are 0, and random numbers."""
    random = np.random.default_rng(seed)
    logits = torch.from_numpy(random.normal(size=(rows, V)) * 3).to(dtype)
    logits[torch.from_numpy(random.random((rows, V)) < 0.2)] = -math.inf
    logits[torch.arange(rows), torch.from_numpy(random.integers(0, V, rows))] = 1.5  # one is finite
    logits[0] = logits[0].clamp(-2, 2).round()
    temperature = torch.from_numpy(random.choice([0.0, 0.0, 0.3, 1.0, 7.0], size=rows))
    return [x.to(DEVICE) for x in (logits, temperature, torch.from_numpy(random.random(rows)))]


def assert_right(tokens, logits, temperature, u, slack=2e-6):
    """Greedy tokens are the first of the largest; of others u lies in the token's piece of [0, 1), but for rounding."""
    assert tokens.dtype == torch.int32 and tokens.shape == u.shape
    for token, x, T, r in zip(tokens.tolist(), logits.double(), temperature.tolist(), u.tolist(), strict=True):
        if T == 0:
            assert token == int((x == x.max()).nonzero()[0])
            continue
        p = torch.softmax(x / T, dim=0)
        end = float(p[: token + 1].sum())
        assert p[token] > 0 and end - float(p[token]) - slack <= r < end + slack


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=sized(short=10, full=200), deadline=None)
@given(
    seed=st.integers(0, 2**32), rows=st.integers(1, 4), V=st.sampled_from([1, 2, 15, 16, 17, 37, 64, 100]),
    dtype=st.sampled_from([torch.float32, torch.float16]),
)  # fmt: skip
def test_greedy_rows_have_the_first_of_the_largest_and_others_the_token_in_whose_piece_u_lies(
    form, seed, rows, V, dtype
):
    logits, temperature, u = row_of_each(seed, rows, V, dtype)
    tokens = draw_tokens(logits, temperature, u, form=form)
    assert_right(tokens, logits, temperature, u)
    # A row's token is its own affair, to the bit.
    alone = [draw_tokens(logits[i : i + 1], temperature[i : i + 1], u[i : i + 1], form=form) for i in range(rows)]
    assert torch.equal(torch.cat(alone), tokens)


@pytest.mark.parametrize("form", FORMS)
def test_the_sampler_chooses_the_same_tokens(form):
    rows, V = 40, 53
    random = np.random.default_rng(SEED)
    logits = torch.from_numpy(random.normal(size=(rows, V))).float().to(DEVICE)
    draws = [
        Draw(SamplingParams(temperature=float(random.choice([0, 0.5, 1, 2]))), i, int(random.integers(2**62)))
        for i in range(rows)
    ]
    u = sampler.uniform([each.seed for each in draws], [each.position for each in draws])
    temperature = numbers(*(each.params.temperature for each in draws))
    chosen = [choice.token for choice in choose(logits, draws).fetch()]
    assert draw_tokens(logits, temperature, torch.from_numpy(u).to(DEVICE), form=form).tolist() == chosen


@pytest.mark.parametrize("form", FORMS)
def test_logits_that_are_not_finite_make_no_token_and_the_other_rows_theirs(form):
    logits = torch.linspace(-3, 3, 40, device=DEVICE).repeat(8, 1)
    good = draw_tokens(logits, numbers(*[0, 1] * 4), numbers(*[0.4] * 8), form=form)
    for row, value in ((0, math.nan), (1, math.nan), (2, math.inf), (3, math.inf)):
        logits[row, 25] = value
    logits[4:6] = -math.inf
    got = draw_tokens(logits, numbers(*[0, 1] * 4), numbers(*[0.4] * 8), form=form)
    assert got.tolist() == [-1] * 6 + good[6:].tolist() and good[6] == 39


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("u", [0.0, 0.5, LARGEST_U])
def test_what_cannot_come_does_not_at_the_ends_either(form, u):
    logits = torch.full((4, 70), -math.inf, device=DEVICE)
    logits[0, 33] = -1000.0
    logits[1, [5, 40, 41]] = 2.0
    logits[2, [3, 60]] = torch.tensor([0.0, -300.0], device=DEVICE)  # whose weight is 0 in fp32
    logits[3] = -1e38
    logits[3, 0] = 1e38
    tokens = draw_tokens(logits, numbers(1, 1, 1, 1), numbers(u, u, u, u), form=form).tolist()
    assert tokens == [33, {0.0: 5, 0.5: 40, LARGEST_U: 41}[u], 3, 0]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("temperature", [1e-300, 1e-30, 0.0])
def test_the_coldest_are_greedy_and_the_hottest_draw_evenly(form, temperature):
    logits, _, u = row_of_each(SEED, 3, 50)
    logits[0, 31] = 9.0  # its largest was one of several
    cold = draw_tokens(logits, numbers(*[temperature] * 3), u, form=form)
    assert cold.tolist() == logits.argmax(1).tolist()
    hot = draw_tokens(torch.randn(5, 50, device=DEVICE), numbers(*[1e300] * 5), numbers(0.01, 0.21, 0.41, 0.61, 0.99))
    assert hot.tolist() == [0, 10, 20, 30, 49]


@pytest.mark.parametrize("form", FORMS)
def test_tokens_are_written_where_they_are_wanted_from_rows_that_lie_apart(form):
    logits, temperature, u = row_of_each(SEED + 1, 4, 37)
    wide = torch.full((4, 3 * 40), math.nan, device=DEVICE)
    wide[:, 40:77] = logits
    out = torch.full((6,), 99, dtype=torch.int32, device=DEVICE)
    got = draw_tokens(wide[:, 40:77], temperature.float(), u, out[1:5], form=form)
    assert_right(got, logits, temperature, u)
    assert got.data_ptr() == out[1:].data_ptr() and out[[0, 5]].tolist() == [99, 99]
    columns = logits.T.contiguous().T
    assert torch.equal(draw_tokens(columns, temperature.float(), u, form=form), got)
    assert draw_tokens(logits[:0], temperature[:0], u[:0], form=form).shape == (0,)


def test_the_formula_waits_for_nothing():
    arguments = row_of_each(SEED, 3, 50)
    with nothing_waits():
        draw_tokens(*arguments, form="torch")


@pytest.mark.skipif("triton" not in FORMS or not interpreting(), reason="the sanitizer watches the interpreter")
def test_every_logit_is_read_once_and_of_drawn_rows_one_part_again():
    logits, _, u = row_of_each(SEED, 3, 37)
    with sanitizer.watch(logits=logits) as report:
        draw_tokens(logits, numbers(0, 1, 1), torch.tensor([0.5, 0.0, 0.0], dtype=torch.float64), form="triton")
    assert report.ok and not report.undecided, report
    again = report.bytes_loaded["logits"] - logits.nbytes
    assert again == 2 * 16 * 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(logits=torch.zeros(40)), "logits must be floating-point numbers"),
        (dict(temperature=torch.zeros(3)), "temperature must be torch.float32 or torch.float64 of shape"),
        (dict(u=torch.zeros(2)), "u must be torch.float64"),
        (dict(out=torch.zeros(2, dtype=torch.int64)), "out must be torch.int32"),
        (dict(out=torch.zeros(4, dtype=torch.int32)[::2]), "out must be contiguous"),
        (dict(form="cuda"), 'form must be "triton", "torch" or None'),
        (dict(form="triton", logits=torch.zeros(2, 40, dtype=torch.float64)), "logits must be float32, float16"),
    ],
)
def test_refusals_name_the_argument(change, message):
    arguments = dict(logits=torch.zeros(2, 40), temperature=torch.zeros(2), u=torch.zeros(2).double())
    with pytest.raises(ValueError, match=message):
        draw_tokens(**arguments | change)


@pytest.mark.skipif("triton" not in FORMS, reason="needs Triton")
@pytest.mark.parametrize("V", [49_152, 151_936])
def test_compiled_for_hopper_nothing_is_spilled_and_an_sm_has_bytes_enough_in_flight(monkeypatch, tmp_path, V):
    monkeypatch.undo()
    N = 4
    kernels = Kernels(Recorder(parts_kernel), Recorder(draw_kernel))
    shapes = dict(logits=(N, V), temperature=(N,), u=(N,))
    dtypes = dict(logits=torch.bfloat16, temperature=torch.float32, u=torch.float64)
    draw_tokens(
        **{name: torch.empty(shapes[name], dtype=dtypes[name], device="meta") for name in shapes}, kernels=kernels
    )
    parts, rows = compile_kernels([each.builds[0] for each in kernels], cache=tmp_path)
    for kernel in (parts, rows):
        assert isinstance(kernel, Compiled) and kernel.spill_bytes == 0 and not kernel.warnings, str(kernel)
    assert parts.occupancy().programs * draw.PART * 2 >= 24 * 1024, str(parts)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("V", [49_152, 151_936, 131_071])
def test_on_a_gpu_one_graph_serves_other_logits_temperatures_and_numbers(monkeypatch, V, dtype):
    monkeypatch.undo()
    N = 9
    fresh = [row_of_each(seed, N, V, dtype) for seed in range(3)]
    static = [x.clone() for x in fresh[0]]
    out = draw_tokens(*static)  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        draw_tokens(*static, out)
    for arguments in fresh:
        for x, new in zip(static, arguments, strict=True):
            x.copy_(new)
        out.fill_(-7)
        graph.replay()
        assert_right(out, *arguments, slack=1e-5)
        found = draw_tokens(*arguments, form="torch")
        greedy = arguments[1] == 0
        assert torch.equal(found[greedy], out[greedy])
