"""The front as any engine: texts, stop strings, streams, aborts, what is refused; and what is refused of engines."""

import random
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from llmsys.models.deepseek import SMALL, DeepSeek
from llmsys.serving import Engine, Execution, SamplingParams
from llmsys.serving.disaggregate import disaggregated_here
from llmsys.serving.disaggregate.front import DisaggregatedEngine
from llmsys.serving.disaggregate.router import NOBODY_LEFT
from llmsys.serving.telemetry.events import Admitted, Arrived, Finished, Preempted
from tests.serving.disaggregate.fuzzed import assert_empty, fuzzed

PROMPT = (5, 9, 30, 12, 44, 8, 60)
LONG = SamplingParams(max_tokens=12, ignore_eos=True)


@pytest.fixture
def engine(llama):
    torch.set_num_threads(1)
    made = disaggregated_here(llama.ours, num_blocks=40, block_size=4)
    yield made
    for _ in range(5):
        made.step()
    assert_empty(made)


def test_texts_streams_and_stop_strings_are_those_of_one_engine(engine, llama):
    one = Engine(llama.ours, num_blocks=40, block_size=4)
    text = one.generate(["The house"], LONG)[0].text
    assert engine.generate(["The house"], LONG)[0].text == text
    assert "".join(update.text for update in engine.stream("The house", LONG)) == text
    stop = SamplingParams(max_tokens=12, ignore_eos=True, stop=(text[4:6],))
    (ours,), (theirs,) = (each.generate(["The house"], stop)[0].answers for each in (engine, one))
    assert (ours.text, ours.tokens, ours.stopped_by) == (theirs.text, theirs.tokens, theirs.stopped_by)
    assert ours.stopped_by == text[4:6]


def test_several_answers_send_their_prompt_once(engine):
    params = replace(LONG, n=3, temperature=0.9, seed=4)
    (response,) = engine.generate([PROMPT * 3], params)
    assert len({tuple(each.tokens) for each in response.answers}) == 3
    prefill, decode = (each.engine.metrics.totals for each in engine.links.instances.values())
    assert prefill.computed_tokens < 2 * len(PROMPT * 3) and decode.hit_tokens == 2 * 20


def test_one_token_needs_no_decode_engine(engine, llama):
    (response,) = engine.generate([PROMPT], SamplingParams(max_tokens=1, ignore_eos=True))
    assert response.tokens == llama.greedy(PROMPT)[0][:1]
    assert engine.links.instances["decode 0"].engine.metrics.totals.requests == 0


def test_a_stream_that_is_closed_and_an_abort_leave_nothing(engine):
    stream = engine.stream(PROMPT, LONG)
    next(stream)
    stream.close()
    response = engine.add(PROMPT, LONG)
    assert engine.abort(response.id) and not engine.abort(response.id)
    assert response.answers[0].reason == "abort" and not engine.has_unfinished


def test_events_and_metrics_are_those_of_an_engine(engine):
    (response,) = engine.generate([PROMPT], LONG)
    kinds = [type(event) for event in engine.events if hasattr(event, "request")]
    assert kinds[:2] == [Arrived, Admitted] and kinds[-1] is Finished
    metrics = response.answers[0].metrics
    assert metrics.output_tokens == 12 and metrics.prompt_tokens == 7
    assert 0 < metrics.time_to_first_token < metrics.end_to_end and metrics.time_per_output_token > 0
    totals = engine.metrics.totals
    assert totals.output_tokens == 12 and totals.computed_tokens == 7 + 11 and totals.steps == 12
    assert totals.seconds_by_kind.keys() == {"prefill", "decode"}
    assert engine.pool.stats.used == 0 and engine.pool.num_blocks == 1 + 39 + 39


@pytest.mark.parametrize(
    ("prompt", "params", "says"),
    [
        ((), LONG, "prompt must not be empty"),
        ((1,) * 130, LONG, "prompt must have at most 127 tokens"),
        ((1,) * 120, LONG, "max_tokens must be at most 8"),
        ((99,), LONG, "from 0 to 66"),
        ((1,), SamplingParams(stop_token_ids=(99,)), "stop_token_ids"),
    ],
)
def test_prompts_are_refused_as_by_one_engine(engine, prompt, params, says):
    with pytest.raises(ValueError, match=says):
        engine.add(prompt, params)


def test_the_smallest_pool_of_all_says_what_fits(llama):
    engine = disaggregated_here(llama.ours, num_blocks=40, block_size=4, of_decode=dict(num_blocks=6))
    with pytest.raises(ValueError, match="prompt must have at most 20 tokens"):
        engine.add((1,) * 21, SamplingParams(max_tokens=None))


def test_the_first_half_is_told_again_by_nobody_when_its_engine_dies(llama):
    """A request that has said five tokens begins anew with these, and says the others."""
    engine = disaggregated_here(llama.ours, decode=2, num_blocks=40, block_size=4)
    response = engine.add(PROMPT, LONG, listener=(updates := []).append)
    while len(response.tokens) < 5:
        engine.step()
    engine.links.kill(engine.scheduler.attempts[1].decode)
    while engine.has_unfinished:
        engine.step()
    assert response.tokens == llama.greedy(PROMPT)[0][:12]
    assert [token for update in updates for token in update.tokens] == response.tokens
    assert [event.lost for event in engine.events if isinstance(event, Preempted)]
    assert_empty(engine)


@pytest.mark.parametrize("dies", ["prefill 0", "decode 0"])
@pytest.mark.parametrize("after", [0, 1, 2, 4])
def test_who_is_left_serves_alone(llama, dies, after):
    engine = disaggregated_here(llama.ours, num_blocks=40, block_size=4)
    responses = [engine.add((*PROMPT, 20 + i), LONG) for i in range(3)]
    for _ in range(after):
        engine.step()
    engine.links.kill(dies)
    while engine.has_unfinished:
        engine.step()
    (late,) = engine.generate([PROMPT], LONG)
    for each in (*responses, late):
        assert each.tokens == llama.greedy(each.prompt_tokens)[0][:12]
    assert_empty(engine)


def test_where_all_have_died_requests_fail_and_say_why(llama):
    engine = disaggregated_here(llama.ours, num_blocks=40, block_size=4)
    response = engine.add(PROMPT, LONG)
    engine.step()
    for name in ("prefill 0", "decode 0"):
        engine.links.kill(name)
    (late,) = engine.generate([PROMPT], LONG)
    for each in (response, late):
        assert each.answers[0].reason == "error" and each.answers[0].error == NOBODY_LEFT
    assert not engine.has_unfinished and not engine.metrics.requests and engine.broken


def test_an_engine_that_breaks_by_itself_is_one_that_has_died(llama):
    engine = disaggregated_here(llama.ours, num_blocks=40, block_size=4)
    engine.links.instances["prefill 0"].scheduler.plan = lambda: 1 // 0
    assert engine.generate([PROMPT], LONG)[0].tokens == llama.greedy(PROMPT)[0][:12]
    assert engine.scheduler.alive == {"decode 0"}
    assert isinstance(engine.links.errors.pop("prefill 0"), ZeroDivisionError)
    assert engine.pool.stats.free == engine.pool.num_blocks - 1 == 39, "of the two pools one is left"
    assert_empty(engine)


def test_an_engine_whose_device_has_failed_dies_and_does_not_fail_what_others_can_compute(llama, monkeypatch):
    engine = disaggregated_here(llama.ours, decode=2, num_blocks=40, block_size=4)
    broken = engine.links.instances["decode 0"].engine.runner

    def launch(plan, **how):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    broken.launch = launch
    monkeypatch.setattr("llmsys.serving.disaggregate.instance.answers", lambda device: False)
    for response in engine.generate([(*PROMPT, 20 + i) for i in range(6)], LONG):
        assert response.tokens == llama.greedy(response.prompt_tokens)[0][:12]
    assert "illegal memory access" in str(engine.links.errors.pop("decode 0"))
    assert engine.scheduler.alive == {"prefill 0", "decode 1"}
    assert_empty(engine)


def test_what_an_engine_that_has_died_would_send_is_not_waited_for(llama):
    from llmsys.serving.disaggregate.messages import Broken, Lost

    instance, closed = disaggregated_here(llama.ours, num_blocks=40).links.instances["decode 0"], []
    for name in "abc":
        instance.hear(name, SimpleNamespace(close=lambda name=name: closed.append(name)))
    for message in (Lost("a"), Broken("b"), Lost("a"), Lost("nobody")):
        instance.take(message)
    assert closed == ["a", "b"]


def test_who_waits_for_a_prompt_is_not_looked_for_with_every_token(engine, monkeypatch):
    looked, of = [], engine.scheduler._children
    monkeypatch.setattr(engine.scheduler, "_children", lambda request: looked.append(request.id) or of(request))
    engine.generate([PROMPT], replace(LONG, n=2))
    assert len(looked) <= 2 * 3, "when it has said a token, when it has landed, when it has ended"


def test_a_broken_wire_costs_no_request_and_is_not_used_again(llama):
    from llmsys.serving.disaggregate.messages import Broken

    engine = fuzzed(llama.ours, random.Random(3), prefill=2, num_blocks=40, block_size=4)
    responses = [engine.add((*PROMPT, 20 + i), LONG) for i in range(6)]
    for _ in range(4):
        engine.step()
    engine.links.instances["prefill 0"].inbox.put(Broken("decode 0"))
    while engine.has_unfinished:
        engine.step()
    for each in responses:
        assert each.tokens == llama.greedy(each.prompt_tokens)[0][:12]
    before = engine.links.instances["prefill 0"].engine.metrics.totals.requests
    assert engine.generate([PROMPT], LONG)[0].tokens == llama.greedy(PROMPT)[0][:12]
    assert engine.links.instances["prefill 0"].engine.metrics.totals.requests == before
    assert_empty(engine)


# What is refused of engines


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (dict(prefill=0), "prefill must be at least 1"),
        (dict(decode=0), "decode must be at least 1"),
        (dict(decode=1.5), "decode must be"),
        (dict(block_size=0), "block_size must be at least 1"),
        (dict(of_decode=dict(block_size=-4)), "block_size must be at least 1"),
        (dict(window=0), "window must be at least 1"),
        (dict(max_tokens_per_step=1, max_sequences=2), "max_tokens_per_step must be at least max_sequences"),
    ],
)
def test_wrong_numbers_are_named(llama, wrong, says):
    with pytest.raises(ValueError, match=says):
        disaggregated_here(llama.ours, **dict(num_blocks=10) | wrong)


def test_models_that_differ_are_refused(llama, qwen3):
    engine = disaggregated_here(llama.ours, num_blocks=10)
    first, second = (each.hello() for each in engine.links.instances.values())
    other = disaggregated_here(qwen3.ours, num_blocks=10).links.instances["decode 0"].hello()
    for hello, what in (
        (other, "settings"), (replace(second, fingerprint="another"), "weights"),
        (replace(second, dtype=torch.float16), "dtypes"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"one model, and the {what} of 'decode 0' are others than .*'prefill 0'"):
            DisaggregatedEngine(engine.links, [first, hello], prefill=["prefill 0"], decode=["decode 0"])


def test_a_weight_that_differs_is_seen(llama):
    from llmsys.serving.disaggregate.instance import fingerprint

    before = fingerprint(llama.ours)
    weight = llama.ours.norm.weight
    with torch.no_grad():
        weight[0] += 1
        changed = fingerprint(llama.ours)
        weight[0] -= 1
    assert changed != before == fingerprint(llama.ours)


@pytest.mark.parametrize(
    ("roles", "says"),
    [
        (dict(prefill=["decode 0"], decode=[]), "decode must be at least one engine"),
        (dict(prefill=["prefill 0"], decode=["prefill 0"]), "each engine must have one role"),
        (dict(prefill=[], decode=["decode 0", "decode 0"]), "each engine must have one role"),
        (dict(prefill=["prefill 0"], decode=["decode 7"]), "decode must be names of"),
    ],
)
def test_roles_that_cannot_be_are_named(llama, roles, says):
    engine = disaggregated_here(llama.ours, num_blocks=10)
    hellos = [each.hello() for each in engine.links.instances.values()]
    with pytest.raises(ValueError, match=says):
        DisaggregatedEngine(engine.links, hellos, **roles)


def test_engines_that_are_assigned_anew_go_on_with_what_they_have_and_serve_the_next_as_they_are_told(llama):
    engine = disaggregated_here(llama.ours, num_blocks=40, block_size=4)
    finished = [each.engine.metrics.totals for each in engine.links.instances.values()]
    before = [engine.add((*PROMPT, 20 + i), LONG) for i in range(3)]
    engine.step()
    engine.scheduler.assign(prefill=(), decode=("prefill 0", "decode 0"))  # each does everything
    moved = [each.output_tokens for each in finished]
    after = engine.generate([(*PROMPT, 30 + i) for i in range(4)], LONG)
    assert all(each.output_tokens - then > 20 for each, then in zip(finished, moved, strict=True)), "half for each"
    engine.scheduler.assign(prefill=("prefill 0",), decode=("decode 0",))
    again = engine.generate([(*PROMPT, 40 + i) for i in range(4)], LONG)
    for each in (*before, *after, *again):
        assert each.tokens == llama.greedy(each.prompt_tokens)[0][:12]
    assert engine.scheduler.max_sequences == 256
    assert_empty(engine)


# Other models, other ways to execute steps


def test_a_latent_model_whose_values_are_in_its_keys_sends_its_latents_once():
    torch.manual_seed(5)
    model = DeepSeek(replace(SMALL, layers=2, vocab_size=97, mlp_size=96)).double().requires_grad_(False).eval()
    prompts = [[(13 * i + 7 * j) % 60 + 3 for j in range(9 + 11 * i)] for i in range(3)]
    engine = disaggregated_here(model, num_blocks=60, block_size=4, of_decode=dict(block_size=7))
    expected = [Engine(model, num_blocks=60, block_size=4).generate([prompt], LONG)[0].tokens for prompt in prompts]
    rows, wire = [], engine.links.instances["prefill 0"].push.wires["decode 0"]
    layer_of = wire.layer
    wire.layer = lambda frame, layer, what: (rows.append(what), layer_of(frame, layer, what))
    assert [each.tokens for each in engine.generate(prompts, LONG)] == expected
    sent = sum(each.nbytes for each in rows)
    assert sent == sum(map(len, prompts)) * model.cache_spec().bytes_per_token
    assert_empty(engine)


@pytest.mark.parametrize("ahead", [False, True])
def test_graphs_and_steps_ahead_change_no_token(llama, ahead):
    """The code of graphs, without a graph: a request that lands is in rows of a step that it was not in before."""
    pytest.importorskip("triton")
    execution = Execution(ahead=ahead, graphs=True, mixed_graphs=True)
    engine = fuzzed(
        llama.ours, random.Random(7), num_blocks=40, block_size=4, max_sequences=3, max_tokens_per_step=9,
        of_prefill=dict(execution=Execution(ahead=ahead)), of_decode=dict(num_blocks=16, execution=execution),
    )  # fmt: skip
    responses = [engine.add((*PROMPT, 20 + i)[: 8 - i], LONG) for i in range(5)]
    while engine.has_unfinished:
        engine.step()
    for each in responses:
        assert each.tokens == llama.greedy(each.prompt_tokens)[0][:12]
    assert engine.links.instances["decode 0"].engine.runner.graphs is not None
    assert_empty(engine)
