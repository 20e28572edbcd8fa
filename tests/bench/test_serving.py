"""The benchmark of serving: what it asks, how it tells the parts of a step apart, and that what fails is listed."""

import gc
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from llmsys.bench.decode import random_model
from llmsys.bench.record import new_record, recorded
from llmsys.bench.serving import peer, run, steps
from llmsys.bench.serving.execution import ALL, NONE, PARTS, ways
from llmsys.bench.serving.run import FULL, SINGLE, Run, p99, sizes
from llmsys.bench.serving.serve import Served, Waits, repeated, serve
from llmsys.bench.serving.show import of, table
from llmsys.bench.serving.steps import ATTENTION, AttentionClock, attention_us, busy_us, largest, no_attention, split
from llmsys.bench.serving.workloads import Asked, conversations, equal, least_seconds, mixed
from llmsys.models.decode_cost import bytes_per_token, weights_of_step
from llmsys.models.shapes import SHAPES
from llmsys.serving import POLICIES, Engine

TINY = replace(
    SHAPES["SmolLM2-135M"], name="tiny", layers=2, width=48, heads=6, kv_heads=3, head_dim=8, ffn=64, vocab=97
)


@pytest.fixture(scope="module")
def model():
    return random_model(TINY, 64)


@pytest.fixture(scope="module")
def quick():
    return Run(sizes(torch.cuda.is_available(), quick=True)).all()


# What is asked


def test_the_workload_is_nano_vllms():
    asked = mixed(256, shortest=100, longest=1024, vocab=151_936)
    assert sum(len(each.prompt) for each in asked) == 142_827 and sum(each.output for each in asked) == 133_966
    assert asked == mixed(256, shortest=100, longest=1024, vocab=49_152), "no vocabulary changes it"
    assert max(map(max, (each.prompt for each in asked))) == 10_000 and not any(each.at for each in asked)


def test_the_least_time_is_that_of_reading_step_by_step():
    asked, shape = mixed(5, shortest=3, longest=9, vocab=97), SHAPES["Qwen3-0.6B"]
    weights, read = weights_of_step(shape, batch=5)[0], 0.0
    for step in range(max(each.output for each in asked)):
        read += weights
        read += sum(len(p) + step for p, output, _ in asked if step < output) * bytes_per_token(shape)
    assert least_seconds(asked, shape, bandwidth=1e12, dtype="bfloat16") == pytest.approx(read / 1e12)


def test_conversations_come_at_random_at_the_rate_that_was_asked_for():
    asked = conversations(400, rate=20.0, vocab=97)
    assert asked[0].at == 0 and [each.at for each in asked] == sorted(each.at for each in asked)
    assert 399 / asked[-1].at == pytest.approx(20, rel=0.1)
    gaps = [b.at - a.at for a, b in zip(asked, asked[1:], strict=False)]
    assert sum(gap > 1 / 20 for gap in gaps) / 399 == pytest.approx(math.exp(-1), abs=0.06)
    short = conversations(400, rate=20.0, vocab=97, shorter=32)
    assert all(max(1, len(a.prompt) // 32) == len(b.prompt) and a.at == b.at for a, b in zip(asked, short, strict=True))


# Requests through an engine


class Clock:
    """A clock on which a step takes a second, and nothing else takes time but sleep."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr("time.sleep", self.sleep)

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def engine(self, model, **settings) -> Engine:
        engine = Engine(model, num_blocks=40, max_tokens_per_step=8, max_sequences=4, clock=self, **settings)
        once = engine.runner.launch

        def launch(*plan, **how):
            self.now += 1
            return once(*plan, **how)

        engine.runner.launch = launch
        return engine


def test_a_request_waits_from_when_it_comes_and_not_from_when_the_engine_looks(model, monkeypatch):
    engine = Clock(monkeypatch).engine(model)
    waits = Waits(engine)
    asked = [Asked([1, 2, 3], 4), Asked([4, 5], 2, at=0.25), Asked([6] * 10, 2, at=10.5)]
    served = serve(engine, asked, "x", waits=waits)
    # Steps end at 1, 2 (with the second one, that came at 0.25), 3, 4; after a pause at 11.5 (a piece), 12.5 and 13.5.
    assert served.first == pytest.approx([1, 1.75, 2]) and served.per_token == pytest.approx([1, 1, 1])
    assert served.waits == pytest.approx([1] * 5)
    assert (served.seconds, served.output_tokens, served.steps) == (pytest.approx(13.5), 8, 7)
    assert served.speed == pytest.approx(8 / 13.5)


def test_an_answer_that_is_too_short_is_no_result(model):
    engine = Engine(model, num_blocks=40)
    with pytest.raises(RuntimeError, match="x-0 has 0 tokens of 3"):
        engine.runner.cache.kernel = lambda q, keys, values, **step: q * math.nan
        serve(engine, [Asked([1, 2], 3)], "x")
    assert gc.get_freeze_count() == 0, "what the collector did not see during the run it sees again"


def test_a_workload_is_repeated_until_patience_is_over_and_the_median_comes_first(monkeypatch):
    took = iter([3.0, 1.0, 2.0])
    names = []

    def fake(engine, asked, name):
        names.append(name)
        return Served(next(took), 6, 1, [], [], [], [])

    monkeypatch.setattr("llmsys.bench.serving.serve.serve", fake)
    found = repeated(None, [], "w", repeats=3, patience=9.0)
    assert found[0].seconds == 2.0 and len(found) == 3 and len(set(names)) == 3, "each with a name of its own"
    took = iter([3.0, 1.0])
    assert [each.seconds for each in repeated(None, [], "w", repeats=2, patience=9.0)] == [1.0, 3.0], (
        "the first is cold"
    )
    took = iter([3.0, 1.0, 2.0])
    assert [each.seconds for each in repeated(None, [], "w", repeats=3, patience=2.5)] == [3.0]


def test_of_a_hundred_values_the_p99_is_the_last_but_one():
    assert p99([*range(100)]) == 98 and p99([5.0]) == 5.0 and p99([2.0, 1.0]) == 2.0


# The parts of a step


def test_time_in_which_kernels_overlap_counts_once():
    spans = [("a", 0.0, 4.0), ("b", 2.0, 3.0), ("c", 3.5, 6.0), ("a", 10.0, 11.0)]
    assert busy_us(spans) == 7.0 and busy_us(reversed(spans)) == 7.0 and busy_us([]) == 0.0
    assert largest(spans, 2) == [("a", 2.5, 1.0), ("c", 1.25, 0.5), ("b", 0.5, 0.5)]


def test_of_the_time_in_which_kernels_overlap_each_has_its_share():
    assert attention_us([("split_kernel", 0.0, 4.0), ("norm", 4.0, 6.0), ("merge_kernel", 6.0, 7.0)]) == 5.0
    spans = [("norm", 0.0, 4.0), ("attention_kernel", 2.0, 8.0), ("attention_kernel", 3.0, 5.0), ("head", 4.0, 6.0)]
    shares = 1 / 2 + 2 / 3 + 2 / 3 + 1 / 2 + 2.0  # of 2–3, 3–4, 4–5, 5–6, 6–8
    assert attention_us(spans) == attention_us(spans[::-1]) == pytest.approx(shares) and attention_us([]) == 0.0


def test_attentions_kernels_are_known_by_name_and_others_are_not():
    for name in ("paged_decode_kernel", "split_kernel", "merge_kernel", "ragged_kernel", "flash_fwd_splitkv_kernel"):
        assert ATTENTION.search(name)
    for name in ("write_pages_kernel", "nvjet_hsh_64x8_64x16_4x1_v_bz_TNT", "vectorized_elementwise_kernel",
                 "cutlass_gemm", "rms_norm_kernel"):  # fmt: skip
        assert not ATTENTION.search(name)


def test_on_a_cpu_the_parts_are_those_of_the_clocks(model):
    clock = AttentionClock()
    engine = Engine(model, num_blocks=60, attention=clock, max_tokens_per_step=16, max_sequences=4)
    asked = equal(3, prompt=10, output=40, vocab=97)
    found = split(engine, asked, "x", steps=4, clock=clock)
    assert found.how == "clock" and found.sequences == 3
    assert 0 < found.attention_ms < found.host_ms["launch"] < found.ms * 2
    assert found.other_ms == pytest.approx(found.host_ms["launch"] - found.attention_ms)
    # 30 tokens of prompts, and of answers at least 3 and 3 before the clock, then 12 on average half of which count.
    assert 30 + 3 * (4 + 6) <= found.tokens <= 30 + 3 * (8 + 6)
    assert not engine.has_unfinished and engine.pool.stats.used == 0


def test_on_a_gpu_the_parts_are_told_by_the_names_of_kernels(model, monkeypatch):
    spans = [("write", 0.0, 500.0), ("split_kernel", 400.0, 900.0), ("merge_kernel", 900.0, 1000.0)]
    monkeypatch.setattr(steps._Full, "profiled", lambda full, count: spans)
    monkeypatch.setattr(steps._Full, "timed", lambda full, count: 0.006)
    found = split(Engine(model, num_blocks=60), equal(2, prompt=5, output=40, vocab=97), "x", steps=2)
    assert found.how == "profiler" and found.ms == pytest.approx(3)
    assert (found.attention_ms, found.other_ms, found.idle_ms) == pytest.approx((0.275, 0.225, 2.5))
    assert found.kernels[0] == ("write", 250.0, 0.5) and found.launches == 1.5


def test_where_no_kernel_can_be_seen_attention_is_what_a_step_without_it_saves(model, monkeypatch):
    engines = {"with": Engine(model, num_blocks=60), "none": Engine(model, num_blocks=60, attention=no_attention)}
    monkeypatch.setattr(steps._Full, "profiled", lambda full, count: [])
    monkeypatch.setattr(steps._Full, "timed", lambda full, n: n * (0.004 if full.engine is engines["with"] else 0.003))
    found = split(
        engines["with"], equal(2, prompt=5, output=40, vocab=97), "x", steps=2, without=lambda: engines["none"]
    )
    assert found.how == "difference" and found.attention_ms == pytest.approx(1) and found.ms == pytest.approx(4)
    assert found.other_ms is found.idle_ms is found.launches is None and found.kernels == []


def test_requests_that_do_not_fit_side_by_side_or_end_too_soon_are_refused(model):
    with pytest.raises(RuntimeError, match="never decoded side by side"):
        split(Engine(model, num_blocks=4), equal(3, prompt=20, output=10, vocab=97), "x")
    with pytest.raises(RuntimeError, match="one has ended"):
        split(Engine(model, num_blocks=60), equal(3, prompt=5, output=10, vocab=97), "x", steps=4)


# The record


def test_prompts_warm_up_steps_of_many_sizes_and_no_larger_than_a_step_may_be(model):
    engine = Engine(model, num_blocks=60, max_tokens_per_step=100, max_sequences=4)
    run.warm_up_prompts(engine)
    found = [step.tokens for step in engine.metrics.steps if step.kind == "prefill"]
    assert found == [16, 24, 32, 48, 64, 96] and engine.pool.stats.used == 0


def test_every_way_to_execute_differs_in_one_part():
    found = ways()
    assert list(found)[0] == ALL and list(found)[-1] == NONE
    assert all(getattr(found[NONE], part) is False for part in PARTS)
    for name in list(found)[1:-1]:
        part = name.removeprefix("without ")
        assert replace(found[name], **{part: getattr(found[ALL], part)}) == found[ALL] != found[name]


def test_the_quick_record_has_every_sweep_and_each_way(quick):
    rows, missing = quick
    record = new_record("serving", rows, missing)
    assert {row["sweep"] for row in rows} >= {"copy", "throughput", "one", "step", "peer", "policies"}
    for sweep in ("throughput", "one"):
        assert {row["name"] for row in of(record, sweep)} == set(ways())
        for row in of(record, sweep):
            assert row["tokens_per_s"] == pytest.approx(row["output_tokens"] / row["seconds"], rel=1e-3)
            assert row["of_roofline"] == pytest.approx(row["least_s"] / row["seconds"], rel=1e-2)
    assert {(row["name"], row["batch"]) for row in of(record, "step")} == {
        (n, b) for n in ways() for b in (FULL, SINGLE)
    }
    assert [row["name"] for row in of(record, "policies")] == list(POLICIES)
    if not torch.cuda.is_available():
        (reason,) = missing.values()
        assert "there is no GPU" in reason and [row["name"] for row in of(record, "peer")] == ["llmsys"]
    speeds, parts, peers, policies = table(record).renderables
    assert len(speeds.rows) == len(ways()) and len(parts.rows) == 2 * len(ways()) and len(policies.rows) == 4


def test_what_fails_or_finds_no_time_is_listed_and_the_others_go_on(monkeypatch):
    def way(self, shape, name):
        if name == NONE:
            raise torch.OutOfMemoryError("no room\nat all")
        self.rows.append({"sweep": "throughput", "name": name})

    monkeypatch.setattr(Run, "way", way)
    monkeypatch.setattr(Run, "policy", lambda self, shape, policy: None)
    monkeypatch.setattr(Run, "peer", lambda self, shape: None)
    small = Run(sizes(gpu=False, quick=True))
    rows, missing = small.all()
    (name,) = [shape.name for shape in small.sizes.shapes]
    assert missing == {f"{name}, {NONE}": "OutOfMemoryError: no room"}
    assert {row["name"] for row in rows} == {"copy", *ways()} - {NONE}
    monkeypatch.setattr(run, "BUDGET", -1.0)
    rows, missing = Run(sizes(gpu=False, quick=True)).all()
    assert [row["sweep"] for row in rows] == ["copy"] and len(missing) == len(ways()) + 1 + len(POLICIES)
    assert all(reason.startswith("not begun") for reason in missing.values())


# The peer


class Manager:
    """What transformers' manager does, as far as the benchmark sees: each answer has `short` tokens too few."""

    def __init__(self, short: int = 0, alive: bool = True):
        self.results, self.short, self.alive = [], short, alive

    def add_request(self, prompt, max_new_tokens):
        if self.alive:
            tokens = [0] * (max_new_tokens - self.short)
            self.results.append(
                SimpleNamespace(
                    request_id=len(self.results), generated_tokens=tokens, error=None, is_finished=lambda: True
                )
            )
        return len(self.results) - 1

    def get_result(self, timeout):
        return self.results.pop() if self.results else None

    def is_running(self):
        return self.alive


def test_a_peer_that_says_too_little_or_stops_is_no_result():
    asked = equal(3, prompt=4, output=5, vocab=97)
    assert peer._run(Manager(), asked) > 0
    with pytest.raises(RuntimeError, match="says 4 tokens"):
        peer._run(Manager(short=1), asked)
    with pytest.raises(RuntimeError, match="has ended"):
        peer._run(Manager(alive=False), asked)


def test_without_transformers_the_peer_is_not_there(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(RuntimeError, match="transformers cannot batch continuously here"):
        peer.seconds_of_transformers(TINY, [Asked([1], 1)], context_length=64)


# The record of a GPU


def test_the_recorded_run_is_whole_and_its_parts_add_up():
    record = recorded("serving", "H200")
    first = {("Qwen3-0.6B", name) for name in (ALL, NONE, *(f"without {part}" for part in PARTS))}
    second = {("SmolLM2-135M", name) for _, name in first if name != NONE}
    ran = {(row["model"], row["name"]) for row in of(record, "throughput")}
    assert first | {("SmolLM2-135M", ALL)} <= ran <= first | second
    for sweep in ("throughput", "one"):
        assert {(row["model"], row["name"]) for row in of(record, sweep)} == ran
        for row in of(record, sweep):
            assert 0 < row["of_roofline"] < 1 and row["tokens_per_s"] < row["roofline_tokens_per_s"]
    found = of(record, "step")
    assert {(row["model"], row["name"], row["batch"]) for row in found} == {
        (*way, batch) for way in ran for batch in (FULL, SINGLE)
    }
    for row in found:
        parts = [row[part] for part in steps.PARTS_OF_A_STEP]
        assert row["how"] == "profiler" and all(part is not None for part in parts)
        assert sum(parts) >= 0.999 * row["ms"], "where the profiler sees more than the clock, nothing is idle"
        assert row["attention_ms"] > 0
    for row in of(record, "throughput"):
        assert (row["requests"], row["prompt_tokens"]) == (256, 142_827)
        assert (row["output_tokens"] == 133_966) == (row["name"] not in (NONE, "without graphs"))
