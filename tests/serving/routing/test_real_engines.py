"""Routes among real engines: who is asked is who the route says, and tokens are the same whoever it is."""

import pytest
import torch

from llmsys.serving import SamplingParams
from llmsys.serving.disaggregate import disaggregated_here, start
from llmsys.serving.routing import ROUTES, PrefixAware

SHORT = SamplingParams(max_tokens=3, ignore_eos=True)
ONE, OTHER = [5, 9, 30, 12, 44, 8, 60, 2] * 3, [7, 1, 2, 3, 4, 5, 6, 8] * 3
PROMPTS = [ONE + [3], OTHER + [4], ONE + [5, 6], OTHER + [9], ONE + [11], ONE + [3, 3]]


@pytest.fixture
def of(llama):
    torch.set_num_threads(1)

    def made(route, **settings):
        return disaggregated_here(
            llama.ours, prefill=2, decode=2, route=route, **(dict(num_blocks=60, block_size=4) | settings)
        )

    return made


def one_by_one(engine):
    """The prompts, each when the one before has ended: then nobody holds anything, and hits alone decide."""
    return [engine.generate([prompt], SHORT)[0].tokens for prompt in PROMPTS]


def hit_tokens(engine, kind):
    return [each.engine.metrics.totals.hit_tokens for name, each in engine.links.instances.items() if kind in name]


def computed(engine, kind):
    return [each.engine.metrics.totals.computed_tokens for name, each in engine.links.instances.items() if kind in name]


@pytest.mark.parametrize("route", ROUTES)
def test_tokens_are_the_same_by_every_route(of, llama, route):
    engine = of(route)
    together = [each.tokens for each in engine.generate(PROMPTS, SHORT)]
    assert together == one_by_one(engine) == [llama.greedy(tuple(prompt))[0][:3] for prompt in PROMPTS]


def test_requests_that_begin_alike_meet_and_others_do_not(of):
    by_turns, by_prefix = of("round-robin"), of("prefix-aware")
    one_by_one(by_turns)
    by_prefix.generate([PROMPTS[0], PROMPTS[1]], SHORT)  # at once: the second one goes where nobody is
    one_by_one(by_prefix)
    assert min(computed(by_prefix, "decode")) > 0 and min(computed(by_turns, "decode")) > 0
    assert sum(hit_tokens(by_prefix, "decode")) == 24 * (len(PROMPTS)), "all that came after the first two hit"
    assert sum(hit_tokens(by_turns, "decode")) < 24 * (len(PROMPTS) - 2)


def test_the_front_forgets_what_the_dead_had(of):
    engine = of("prefix-aware")
    one_by_one(engine)
    router = engine.scheduler
    known = router._sent.hits(["decode 0", "decode 1"], ONE + [0])
    assert sorted(known) == [0, 24]
    (dies,) = [name for name, hit in zip(("decode 0", "decode 1"), known, strict=True) if hit]
    engine.links.kill(dies)
    engine.step()
    assert router._sent.hits([dies], ONE + [0]) == [0]
    assert one_by_one(engine) and router._sent.hits([f"decode {1 - int(dies[-1])}"], ONE + [0]) == [24]


def test_what_a_route_is_told_is_what_engines_have(of):
    told = []

    def route(request, engines):
        columns = (engines.names, engines.queued, engines.held, engines.room)
        told.append((engines.kind, *map(tuple, columns), engines.block_size, tuple(engines.hits)))
        return 0

    engine = of(route)
    engine.add(ONE + [3], SHORT)
    engine.add(ONE + [4, 5], SHORT)
    names = tuple(f"decode {i}" for i in range(2))
    assert told == [("decode", names, (0, 0), (0, 0), (236, 236), 4, (0, 0)),
                    ("decode", names, (25, 0), (25, 0), (236, 236), 4, (24, 0))]  # fmt: skip
    while engine.has_unfinished:
        engine.step()
    kinds = [each[0] for each in told]
    assert kinds.count("prefill") == kinds.count("decode") == 2
    assert told[-1][:4] == ("prefill", ("prefill 0", "prefill 1"), (25, 0), (25, 0))


def test_a_route_that_is_none_is_refused(of, llama):
    with pytest.raises(ValueError, match="route must be one of"):
        of("nearest")
    with pytest.raises(ValueError, match="route must be one of"):
        start(llama.ours, device="cpu", route="nearest")
    engine = of(lambda request, engines: "decode 0")
    with pytest.raises(ValueError, match="route must choose one of 2 engines"):
        engine.add(ONE, SHORT)
    assert of(PrefixAware).generate([ONE], SHORT)[0].tokens
