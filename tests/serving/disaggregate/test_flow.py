"""Flow control: however slow a decode engine is, what others hold for it is bounded, and others are served."""

import random

import pytest
import torch

from llmsys.serving import SamplingParams
from tests.serving.disaggregate.fuzzed import assert_empty, fuzzed

SIZE = 4
FEW = SamplingParams(max_tokens=5, ignore_eos=True)


def prompt(i: int, length: int) -> list[int]:
    return [(13 * i + 7 * j) % 61 + 3 for j in range(length)]


@pytest.fixture
def slow(llama):
    """One prefill engine, and a decode engine that reserves but takes in nothing: its wire holds all that is sent."""
    torch.set_num_threads(1)

    def made(decode=1, window=40, **of_decode):
        engine = fuzzed(
            llama.ours, random.Random(0), decode=decode, block_size=SIZE, num_blocks=60,
            of_decode=dict(window=window) | of_decode,
        )  # fmt: skip
        for (_, to), wire in engine.links.wires.items():
            if to == "decode 0":
                wire.let_go = lambda n: None
        return engine

    return made


def steps(engine, n=200) -> None:
    for _ in range(n):
        engine.step()


@pytest.mark.parametrize("window", [1, 40, 100])
def test_a_slow_decoder_never_makes_the_prefill_engine_run_out_of_blocks(slow, window):
    engine = slow(window=window)
    pool = engine.links.instances["prefill 0"].pool
    wire = engine.links.wires["prefill 0", "decode 0"]
    most_used, most_held = 0, 0

    def look():
        nonlocal most_used, most_held
        most_used = max(most_used, pool.stats.used)
        most_held = max(most_held, wire.tokens // len(wire_layers))

    wire_layers = engine.links.instances["prefill 0"].push._layers
    engine.links.after.append(look)
    longest = 30
    responses = [engine.add(prompt(i, 10 + i % 21), FEW) for i in range(40)]  # 60 blocks would not hold these
    steps(engine)
    # What a window lets through, or one prompt that is longer than that.
    bound = max(window, longest)
    assert 0 < most_held <= bound and most_used <= bound // SIZE + bound // 10, (most_held, most_used)
    assert pool.stats.used == 0, "nothing is held for who does not take it"
    assert sum(bool(each.tokens) for each in responses) >= 1, "the first tokens were said all the same"
    wire.let_go = type(wire).let_go.__get__(wire)
    steps(engine, 3000)
    assert all(each.finished and len(each.tokens) == 5 for each in responses)
    assert_empty(engine)


def test_others_are_served_while_one_decoder_takes_nothing(slow, llama):
    engine = slow(decode=2, window=20)
    responses = [engine.add(prompt(i, 12), FEW) for i in range(16)]
    steps(engine, 600)
    done = [each for each in responses if each.finished]
    stuck = [each for each in responses if not each.finished]
    assert len(done) >= 8 and len(stuck) >= 2
    for each in done:
        assert each.tokens == llama.greedy(each.prompt_tokens)[0][:5]
    for each in stuck:
        engine.abort(each.id)
    engine.links.wires["prefill 0", "decode 0"].held.clear()
    steps(engine, 20)
    for one in engine.links.instances.values():
        assert one.pool.stats.used == 0 and not one.scheduler.arriving and not one.push.outgoing


def test_a_decoder_that_is_full_grants_nothing_until_somebody_ends(llama):
    torch.set_num_threads(1)
    engine = fuzzed(
        llama.ours, random.Random(1), block_size=SIZE, num_blocks=60, of_decode=dict(num_blocks=11, watermark=0.0)
    )
    responses = [engine.add(prompt(i, 16), SamplingParams(max_tokens=20, ignore_eos=True)) for i in range(6)]
    decode = engine.links.instances["decode 0"]
    most = 0

    def look():
        nonlocal most
        most = max(most, len(decode.scheduler.arriving) + len(decode.scheduler.running))

    engine.links.after.append(look)
    while engine.has_unfinished:
        engine.step()
    assert most == 2, "of 10 blocks, 4 each and one more for each that runs"
    for each in responses:
        assert each.tokens == llama.greedy(each.prompt_tokens)[0][:20]
    assert_empty(engine)
