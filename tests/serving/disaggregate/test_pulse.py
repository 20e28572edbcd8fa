"""An engine that hangs, neither answering nor dying, is noticed in time: its requests are computed again by others."""

import random

import pytest
import torch

from llmsys.serving import SamplingParams
from llmsys.serving.disaggregate import disaggregated_here
from llmsys.serving.disaggregate.here import LinksHere
from llmsys.serving.disaggregate.messages import Ping
from llmsys.serving.disaggregate.pulse import Pulse
from tests.serving.disaggregate.fuzzed import FuzzedLinks, assert_empty

PROMPT = (5, 9, 30, 12, 44, 8, 60)
LONG = SamplingParams(max_tokens=12, ignore_eos=True)
TURN = 0.01  # seconds of the clock that a wait takes


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Hanging(LinksHere):
    """Engines of which some take no turns: what they are told lies in their inbox."""

    def __init__(self, instances, clock: Clock):
        super().__init__(instances)
        self.clock, self.hung, self.given_up = clock, {}, []

    def hang(self, name: str) -> None:
        self.hung[name] = self.instances[name]
        self.instances[name] = Hung(self.hung[name])

    def wait(self, seconds):
        self.clock.now += TURN
        return super().wait(seconds)

    def give_up(self, name: str) -> None:
        self.given_up.append((name, self.clock.now))
        super().give_up(name)


class Hung:
    """In an engine's place."""

    def __init__(self, instance):
        self.inbox, self.name = instance.inbox, instance.name

    def turn(self) -> list:
        return []


def engine_with(llama, *, silent_after=1.0, **more):
    torch.set_num_threads(1)
    clock = Clock()
    settings = dict(num_blocks=40, block_size=4, silent_after=silent_after, clock=clock) | more
    return disaggregated_here(llama.ours, links=lambda some: Hanging(some, clock), **settings), clock


@pytest.mark.parametrize("hangs", ["prefill 0", "decode 0"])
@pytest.mark.parametrize("after", [0, 1, 2, 4])
def test_who_hangs_is_given_up_in_time_and_who_is_left_serves_alone(llama, hangs, after):
    engine, clock = engine_with(llama)
    responses = [engine.add((*PROMPT, 20 + i), LONG) for i in range(3)]
    for _ in range(after):
        engine.step()
    engine.links.hang(hangs)
    began = clock.now
    responses.append(engine.add(PROMPT, LONG))  # which both are needed for
    while engine.has_unfinished:
        engine.step()
        assert clock.now < began + 5.0, "it waits for ever"
    ((name, when),) = engine.links.given_up
    assert name == hangs and when - began <= 1.0 + 3 * TURN
    for each in responses:
        assert each.tokens == llama.greedy(each.prompt_tokens)[0][:12]
    assert engine.scheduler.alive == {"prefill 0", "decode 0"} - {hangs}
    assert_empty(engine)


def test_one_of_three_that_hangs_costs_the_requests_of_others_nothing(llama):
    engine, clock = engine_with(llama, decode=2)
    responses = [engine.add((*PROMPT, 20 + i), LONG) for i in range(6)]
    for _ in range(3):
        engine.step()
    engine.links.hang("decode 1")
    stuck = {each.request.id for each in engine.scheduler.attempts.values() if each.decode == "decode 1"}
    while any(each.id not in stuck and not each.finished for each in responses):
        engine.step()
    assert not engine.links.given_up and stuck, "they were done before anybody was given up"
    while engine.has_unfinished:
        engine.step()
    for each in responses:
        assert each.tokens == llama.greedy(each.prompt_tokens)[0][:12]
    assert_empty(engine)


def test_who_wakes_up_after_it_was_given_up_is_not_heard(llama):
    engine, _ = engine_with(llama)
    response = engine.add(PROMPT, LONG)
    for _ in range(4):
        engine.step()
    engine.links.hang("decode 0")
    while engine.has_unfinished:
        engine.step()
    late = engine.links.hung["decode 0"]
    said = late.turn() + late.turn()
    assert said, "it goes on with what it had been told"
    for message in said:
        assert engine.scheduler.heard("decode 0", message) == []
    assert response.tokens == llama.greedy(PROMPT)[0][:12]


def test_who_is_slow_but_answers_is_not_given_up(llama):
    """Engines whose steps take nearly as long as one may be silent."""
    engine, clock = engine_with(llama, silent_after=1.0)
    turns = {name: one.turn for name, one in engine.links.instances.items()}
    due = dict.fromkeys(turns, 0.0)

    def slow(name):
        if clock.now < due[name]:
            return []
        due[name] = clock.now + 0.45
        return turns[name]()

    for name, one in engine.links.instances.items():
        one.turn = lambda name=name: slow(name)
    response = engine.add(PROMPT, LONG)
    while engine.has_unfinished:
        engine.step()
    assert response.tokens == llama.greedy(PROMPT)[0][:12] and not engine.links.given_up
    assert clock.now > 105.0


def test_engines_that_had_nothing_to_do_for_long_are_not_given_up_when_they_are_asked(llama):
    engine, clock = engine_with(llama)
    for _ in range(3):
        clock.now += 1000.0  # nobody steps where there are no requests
        assert engine.generate([PROMPT], LONG)[0].tokens == llama.greedy(PROMPT)[0][:12]
    assert not engine.links.given_up


def test_with_no_limit_nobody_is_asked(llama):
    engine, clock = engine_with(llama, silent_after=None)
    sent, send = [], engine.links.send
    engine.links.send = lambda name, message: (sent.append(message), send(name, message))
    engine._loop._links = engine.links
    engine.add(PROMPT, LONG)
    engine.links.hang("decode 0")
    for _ in range(2000):
        engine.step()
    assert engine.has_unfinished and not engine.links.given_up and not any(isinstance(each, Ping) for each in sent)


@pytest.mark.parametrize("wrong", [0, -1.0, True, "soon"])
def test_a_limit_that_is_none_is_named(llama, wrong):
    with pytest.raises(ValueError, match="silent_after must be seconds above 0, or None"):
        engine_with(llama, silent_after=wrong)


def test_who_was_asked_before_nobody_listened_is_given_up_only_if_it_has_not_answered():
    clock = Clock()
    pulse = Pulse(["a", "b"], 2.0, clock)
    clock.now += 1.0
    assert pulse.look(["a", "b"]) == (["a", "b"], []) and pulse.look(["a", "b"]) == ([], [])
    clock.now += 50.0
    pulse.heard("b")  # as it turns out
    assert pulse.look(["a", "b"]) == ([], ["a"])
    assert pulse.look(["b"]) == ([], [])


class FuzzedHanging(FuzzedLinks):
    """Drawn turns, and engines that hang."""

    def __init__(self, instances, draw, clock):
        super().__init__(instances, draw)
        self.clock = clock

    def wait(self, seconds):
        self.clock.now += TURN
        return super().wait(seconds)

    def hang(self, name: str) -> None:
        self.instances[name].turn = list  # for ever


@pytest.mark.parametrize("seed", range(6))
def test_whoever_hangs_when_no_request_is_lost_and_no_block_of_others(llama, seed):
    torch.set_num_threads(1)
    draw, clock = random.Random(f"hangs {seed}"), Clock()
    engine = disaggregated_here(
        llama.ours, links=lambda some: FuzzedHanging(some, draw, clock), prefill=2, decode=2, num_blocks=30,
        block_size=4, silent_after=0.6, clock=clock, max_sequences=draw.choice([1, 2, 4]),
        max_tokens_per_step=draw.choice([4, 9, 30]),
    )  # fmt: skip
    left, responses, hung = 8, [], set()
    while left or engine.has_unfinished:
        assert clock.now < 200.0, "it does not come to an end"
        if left and draw.random() < 0.3:
            left -= 1
            responses.append(engine.add((*PROMPT, 20 + left), LONG))
        if responses and len(hung) < 3 and draw.random() < 0.05:
            name = draw.choice(sorted(engine.links.instances.keys() - hung) or [None])
            if name is not None and len(engine.scheduler.alive - hung) > 1:
                engine.links.hang(name)
                hung.add(name)
        engine.step()
    assert hung and hung >= {"prefill 0", "prefill 1", "decode 0", "decode 1"} - engine.scheduler.alive
    for each in responses:
        assert each.tokens == llama.greedy(each.prompt_tokens)[0][:12]
    for name in hung:
        engine.links.kill(name)
    engine.step()
    assert_empty(engine)
