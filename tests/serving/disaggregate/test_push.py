"""A layer leaves when it is computed: by the order of events; and what a transfer of one's own may get wrong."""

import pytest
import torch

from llmsys.serving import Engine, Execution, SamplingParams
from llmsys.serving.disaggregate import LayerEvent, disaggregated_here
from llmsys.serving.disaggregate.messages import Prefill
from tests.serving.disaggregate.fuzzed import assert_empty

PROMPT = [(7 * i) % 61 + 3 for i in range(21)]
FEW = SamplingParams(max_tokens=4, ignore_eos=True)


def made(pair, **more):
    torch.set_num_threads(1)
    log: list[LayerEvent] = []
    settings = dict(num_blocks=40, block_size=4, log=log.append) | more
    return disaggregated_here(pair.ours, **settings), log


def tokens(engine, prompt=PROMPT, params=FEW) -> list[int]:
    return engine.generate([prompt], params)[0].tokens


def test_each_layer_leaves_before_the_next_one_is_computed(llama):
    engine, log = made(llama, of_prefill=dict(max_tokens_per_step=8, max_sequences=1))
    assert tokens(engine) == llama.greedy(tuple(PROMPT))[0][:4]
    here = [(event.what, event.layer) for event in log if event.what != "received"]
    chunk = [("computed", 0), ("sent", 0), ("computed", 1), ("sent", 1)]
    assert here == chunk * 3, "21 tokens in chunks of 8"
    there = [(event.what, event.layer) for event in log if event.what == "received"]
    assert there == [("received", 0), ("received", 1)] * 3
    assert log.index(LayerEvent("received", 0, (1,))) > log.index(LayerEvent("sent", 0, (1,)))


def test_a_transfer_of_ones_own_says_when_and_the_tokens_are_the_same(llama):
    def at_the_end(layer, layers, send):
        if layer == layers[-1]:
            for each in reversed(layers):
                send(each)

    engine, log = made(llama, transfer=at_the_end)
    assert tokens(engine) == llama.greedy(tuple(PROMPT))[0][:4]
    here = [(event.what, event.layer) for event in log if event.what != "received"]
    assert here == [("computed", 0), ("computed", 1), ("sent", 1), ("sent", 0)]
    assert_empty(engine)


@pytest.mark.parametrize(
    ("transfer", "says"),
    [
        (lambda layer, layers, send: None, r"layers \[0, 1\] of this step were not sent by transfer"),
        (lambda layer, layers, send: send(0), r"send\(0\), and that layer has been sent before"),
        (lambda layer, layers, send: send(layer + 1), r"send\(1\), and that layer has not been computed yet"),
        (lambda layer, layers, send: send(9), r"send\(9\), and that layer is none of the layers \[0, 1\]"),
    ],
    ids=["nothing", "twice", "too early", "no layer"],
)
def test_a_transfer_that_is_wrong_fails_its_requests_in_words_and_leaves_nothing(llama, transfer, says):
    engine, _ = made(llama, transfer=transfer)
    (response,) = engine.generate([PROMPT], FEW)
    (answer,) = response.answers
    assert answer.reason == "error" and not answer.tokens
    with pytest.raises(AssertionError, match=says):
        raise AssertionError(answer.error)
    assert_empty(engine)


def test_only_what_the_receiver_lacks_is_sent_though_the_sender_has_it_all(llama):
    engine, log = made(llama, of_decode=dict(block_size=8))
    rows = []
    wire = engine.links.instances["prefill 0"].push.wires["decode 0"]
    layer_of = wire.layer
    wire.layer = lambda frame, layer, what: (rows.append((layer, len(what))), layer_of(frame, layer, what))
    assert tokens(engine) == tokens(engine) == llama.greedy(tuple(PROMPT))[0][:4]
    assert rows == [(0, 21), (1, 21), (0, 5), (1, 5)], "two blocks of 8 are there the second time"
    other = [*PROMPT[:12], 60, 61, 62]
    assert tokens(engine, other) == llama.greedy(tuple(other))[0][:4]
    assert rows[4:] == [(0, 7), (1, 7)], "of the 12 equal tokens the decode engine has 8, the prefill engine 12"


def test_what_only_the_sender_has_in_its_cache_is_sent_as_well(llama):
    engine, _ = made(llama, decode=2)
    assert tokens(engine) == llama.greedy(tuple(PROMPT))[0][:4]
    first = engine.add(PROMPT, FEW)  # to the other decode engine, if the first is busy
    second = engine.add(PROMPT, FEW)
    while engine.has_unfinished:
        engine.step()
    assert first.tokens == second.tokens == llama.greedy(tuple(PROMPT))[0][:4]
    hits = [each.engine.metrics.totals.hit_tokens for each in engine.links.instances.values()]
    finished = [each.engine.metrics.totals.finished for each in engine.links.instances.values()]
    assert hits[0] and finished[1] and finished[2], "both decode engines had one, and the prompt was computed once"


def test_a_step_of_which_something_leaves_is_launched_by_layers_and_every_other_by_graphs(llama):
    engine, log = made(llama, execution=Execution(graphs=True))
    pusher, other = engine.links.instances.values()
    assert tokens(engine) == llama.greedy(tuple(PROMPT))[0][:4]
    assert [each.layer for each in log if each.what == "computed"] == [0, 1]
    graphs = pusher.engine.runner.graphs
    assert not graphs.captured and not graphs.captured_tokens and other.engine.runner.graphs.captured
    engine.links.kill("decode 0")
    assert tokens(engine) == llama.greedy(tuple(PROMPT))[0][:4]
    assert graphs.captured and len([each for each in log if each.what == "computed"]) == 2


def test_a_runner_that_skips_the_hook_of_the_cache_is_named(llama):
    engine, _ = made(llama)
    pusher = engine.links.instances["prefill 0"]
    cache = pusher.engine.runner.cache
    attend, cache.attend = cache.attend, lambda *args, **more: silent(cache, attend, *args, **more)
    (response,) = engine.generate([PROMPT], FEW)
    assert "were not computed by the cache's attend" in response.answers[0].error


def silent(cache, attend, *args, **more):
    kept, cache.after_layer = cache.after_layer, None
    try:
        return attend(*args, **more)
    finally:
        cache.after_layer = kept


def test_what_cannot_be_pushed_to_is_refused_in_words(llama):
    engine, _ = made(llama)
    pusher = engine.links.instances["prefill 0"]
    pusher.inbox.put(Prefill(7, (1, 2, 3), FEW, None, "decode 9", 0))
    refused = pusher.turn()[0]
    assert refused.key == 7
    assert refused.error == "to must be an engine to which there is a wire (decode 0), got 'decode 9'"
    with pytest.raises(ValueError, match="transfer must be a function"):
        made(llama, transfer="layers")


def test_a_step_that_raises_in_its_second_layer_fails_its_requests_alone(llama):
    engine, log = made(llama)
    pusher = engine.links.instances["prefill 0"]
    broken = [True]

    def attend(layer, *args, **more):
        if layer == 1 and broken:
            broken.pop()
            raise RuntimeError("the device is full")
        return type(cache).attend(cache, layer, *args, **more)

    cache = pusher.engine.runner.cache
    cache.attend = attend
    (response,) = engine.generate([PROMPT], FEW)
    assert "the device is full" in response.answers[0].error and log[-1] == LayerEvent("received", 0, (1,))
    assert_empty(engine)
    assert not engine.links.instances["decode 0"]._arrivals._frames
    assert tokens(engine) == llama.greedy(tuple(PROMPT))[0][:4], "and it goes on"


def test_one_engine_alone_says_the_same_with_the_hook_of_its_cache_in_use(llama):
    engine, layers = Engine(llama.ours, num_blocks=40, block_size=4), []
    engine.runner.cache.after_layer = layers.append
    assert tokens(engine) == llama.greedy(tuple(PROMPT))[0][:4]
    assert layers == [0, 1] * 4
