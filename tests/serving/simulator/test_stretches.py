"""Steps that nobody follows token by token: what comes of them is what comes of planning each, to the last bit."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsys.serving import POLICIES, EventLog
from llmsys.serving.policies import Turn
from llmsys.serving.sampling.sampling_params import SamplingParams
from llmsys.serving.simulator import Instance, Prices, StepTimes
from llmsys.serving.simulator.kinds import kind_turns
from llmsys.serving.simulator.known_tokens import KnownTokens, SimulatedRequest, known_prompt
from llmsys.serving.simulator.lockstep import Lockstep
from llmsys.serving.simulator.pool import PlainPool
from llmsys.serving.simulator.tally import Tally
from llmsys.serving.workload import Arrival, prompt_tokens
from tests.support.size import sized

TIMES = StepTimes(Prices(4e-3, 2e-6, 5e-6, 30e-6, 0.7e-6), Prices(5e-3, 2e-4, 5e-6, 60e-6, 3e-7), (8, 16))
EVEN = StepTimes(Prices(0.01), Prices(0.02))  # steps end at whole hundredths of a second


def drawn(count, *, seed, prompt=60, output=40, pause=0.05, alike=0.0, even=False):
    """Arrivals; with the probability `alike` the first 8 to 24 tokens are as those of others."""
    draw, at, found = random.Random(seed), 0.0, []
    for n in range(count):
        at += draw.expovariate(1 / pause) if draw.random() < 0.8 else 0.0
        tokens, key = draw.randint(1, prompt), 1000 + n
        if draw.random() < alike:
            key = draw.choice((1, 2))  # a prompt that others have, too, or the beginning of it
        found.append(Arrival(round(at, 2) if even else at, tokens, draw.randint(1, output), (key,)))
    return found


def served(arrivals, *, skip, stops=(), times=TIMES, ahead=False, **engine):
    """The instance and the tally, when all have ended; `stops`: times to which it is advanced on the way."""
    log, tally = EventLog(keep=0), Tally()
    tally.listen_to(log)
    instance = Instance(times, skip=skip, events=log, ahead=ahead, **engine)
    for at, is_stop, n in sorted([(each.at, 0, n) for n, each in enumerate(arrivals)] + [(at, 1, -1) for at in stops]):
        if is_stop:
            instance.advance(at)
            _check_tables(instance)
        else:
            params = SamplingParams(max_tokens=arrivals[n].output)
            instance.add(SimulatedRequest(str(n), known_prompt(arrivals[n], n), params), at)
    instance.advance()
    return instance, tally


def _check_tables(instance):
    """Between two steps each request has the blocks that it needs, and no two have one that is not shared."""
    pool = instance.scheduler.pool
    for each in instance.scheduler.running:
        assert each.computed <= each.table.length <= len(each.tokens) < each.limit or each.computed == 0
        assert len(each.table.blocks) == pool.blocks_for(each.table.length)


def state(instance, tally):
    """All that one can see when it is done."""
    pool = instance.scheduler.pool
    counts = instance.now, instance.steps, instance.computed, instance.scheduler.steps_done
    return counts, tally.requests, pool.stats, len(pool.reuse_order()), instance.busy, instance.scheduler.requests


def same(arrivals, **engine):
    """Both ways, compared; the instance that skips."""
    skipping, stepping = (served(arrivals, skip=skip, **engine) for skip in (True, False))
    assert state(*skipping) == state(*stepping)
    assert stepping[0].planned == stepping[0].steps
    return skipping[0]


@given(
    st.integers(0, 10**6), st.sampled_from(list(POLICIES)), st.sampled_from([26, 40, 200]), st.sampled_from([2, 5, 16]),
    st.sampled_from([16, 17, 64]), st.booleans(), st.sampled_from([0.0, 0.5]), st.sampled_from([0.0, 0.1]),
    st.booleans(), st.booleans(), st.sampled_from([0.003, 0.05, 0.4]),
)  # fmt: skip
@settings(max_examples=sized(short=40, full=400))
def test_what_comes_of_it_is_the_same(
    seed, policy, num_blocks, max_sequences, budget, ahead, alike, watermark, even, prefixes, pause
):
    arrivals = drawn(14, seed=seed, alike=alike, even=even, pause=pause)
    stops = sorted(random.Random(seed).uniform(0, 2) for _ in range(seed % 4))
    same(arrivals, stops=stops, policy=policy, num_blocks=num_blocks, block_size=4, max_sequences=max_sequences,
         max_tokens_per_step=budget, ahead=ahead, watermark=watermark, prefixes=prefixes,
         times=EVEN if even else TIMES)  # fmt: skip


@pytest.mark.parametrize("policy", POLICIES)
def test_hardly_any_step_is_planned_where_blocks_suffice_and_few_where_they_do_not(policy):
    arrivals = drawn(40, seed=7, output=200, pause=0.1)
    engine = dict(policy=policy, block_size=4, max_sequences=6, max_tokens_per_step=32)
    assert same(arrivals, num_blocks=600, **engine).planned == 0
    tight = same(arrivals, num_blocks=80, **engine)
    assert (0 < tight.planned < 0.2 * tight.steps) or policy == "static"


def test_a_long_prompt_beside_what_decodes_is_one_stretch_whoever_comes_and_waits():
    first = [Arrival(0.0, 9, 400, (1,)), Arrival(0.0, 9, 400, (2,)), Arrival(0.1, 4000, 3, tuple(range(10, 18)))]
    later = [Arrival(0.2 + n / 100, 5, 3, (50 + n,)) for n in range(20)]
    engine = dict(num_blocks=3000, block_size=4, max_sequences=8, max_tokens_per_step=32)
    same(first + later, **engine)
    instance, _ = served(first, skip=True, stops=(0.15,), **engine)
    lone = Instance(TIMES, events=EventLog(keep=0), **engine)
    for n, each in enumerate(first):
        lone.add(SimulatedRequest(str(n), known_prompt(each, n), SamplingParams(max_tokens=each.output)), each.at)
    lone.advance(0.15)
    stretch = lone._stretch
    assert stretch.rows[0][2] == 30 and stretch.steps > 100 and not stretch.open
    for n in (1, 2, 7):  # its time is that of its steps, one by one
        each = sum(stretch.first + i * stretch.growth for i in range(n))
        assert stretch.ticks(n) == each and stretch.until(stretch.now + each) == n
    assert instance.steps > 0


def test_where_somebody_reads_the_log_each_token_is_written_down():
    arrivals, engine = drawn(10, seed=1), dict(num_blocks=90, block_size=4, max_sequences=4)
    log = EventLog()
    instance = Instance(TIMES, events=log, **engine)
    for n, each in enumerate(arrivals):
        instance.add(SimulatedRequest(str(n), known_prompt(each, n), SamplingParams(max_tokens=each.output)), each.at)
    instance.advance()
    assert sum(type(event).__name__ == "Token" for event in log) == sum(each.output for each in arrivals)
    silent, _ = served(arrivals, skip=True, **engine)
    assert (silent.now, silent.steps, silent.computed) == (instance.now, instance.steps, instance.computed)


class NewestFirst:
    """A policy of one's own, which looks at each request."""

    def turns(self, running, head, budget):
        yield Turn(list(reversed(running)), admit=True)


def test_a_policy_of_ones_own_is_asked_for_every_step():
    arrivals, engine = drawn(12, seed=3), dict(num_blocks=60, block_size=4, max_sequences=4, max_tokens_per_step=32)
    one, other = (served(arrivals, skip=skip, policy=NewestFirst(), **engine) for skip in (True, False))
    assert state(*one) == state(*other) and one[0].planned == one[0].steps


# The parts


@given(st.sampled_from(list(POLICIES)), st.integers(0, 5), st.lists(st.integers(1, 90), max_size=3), st.integers(0, 90),
       st.booleans())  # fmt: skip
def test_what_is_said_of_kinds_is_what_policies_say_of_each(policy, decoding, prompts, waiting, flipped):
    budget = 64
    running, unfinished = [], []
    for n in range(decoding + len(prompts)):
        request = SimulatedRequest(str(n), KnownTokens((n,), 90), SamplingParams(max_tokens=9))
        if n < decoding:
            request.tokens.append(0)
            request.computed = 90
        else:
            request.computed = 90 - prompts[n - decoding]
            unfinished.append(request)
        running.append(request)
    random.Random(decoding).shuffle(running)
    unfinished.sort(key=running.index)
    head = SimulatedRequest("h", KnownTokens((99,), waiting), SamplingParams(max_tokens=9)) if waiting else None
    one, other = POLICIES[policy](), POLICIES[policy]()
    if policy == "alternating":
        one._prompts_are_next = other._prompts_are_next = flipped
    for theirs, ours in zip(one.turns(running, head, budget), kind_turns(other, decoding, unfinished, head, budget),
                            strict=True):  # fmt: skip
        assert (theirs.admit, theirs.cut) == (ours.admit, ours.cut)
        decode = [each for each in theirs.compute if not each.in_prefill]
        assert [each for each in theirs.compute if each.in_prefill] == list(ours.prompts)
        assert len(decode) == (decoding if ours.decodes else 0)
        if ours.decodes_first:
            assert list(theirs.compute) == decode + list(ours.prompts)
    assert vars(one) == vars(other)


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(2, 40)), min_size=1, max_size=6), st.integers(1, 5),
       st.integers(1, 60))  # fmt: skip
def test_lockstep_takes_the_blocks_that_each_would(members, size, num_blocks):
    pool = PlainPool(1000, size)
    lockstep, known, limits = Lockstep(pool), [], []
    for n, (prompt, output) in enumerate(members):
        request = SimulatedRequest(str(n), KnownTokens((n,), prompt), SamplingParams(max_tokens=output))
        request.order, request.limit, request.table = n, prompt + output, pool.allocate(prompt)
        request.computed = prompt
        request.tokens.append(0)
        lockstep.join(request)
        known.append(prompt + 1)
        limits.append(prompt + output)
    taken = pool.take(max(0, pool.free_blocks - num_blocks))  # by somebody else
    free, before = pool.free_blocks, sum(-(-(each - 1) // size) for each in known)

    def needed(n):  # after the n-th step from here on
        return sum(-(-(each + n - 1) // size) for each in known) - before

    fit = lockstep.steps_with_room(lockstep.left)
    assert lockstep.left == min(limit - each for limit, each in zip(limits, known, strict=True))
    assert all((needed(n) <= free) == (n <= fit) for n in range(1, lockstep.left + 1))
    assert lockstep.pay(fit + 1) == (needed(fit + 1) <= free)
    if fit and needed(fit + 1) > free:
        lockstep.go_on(fit)
        assert pool.free_blocks == free - needed(fit) and lockstep.attended == sum(known) + fit * len(known)
        ended = lockstep.ended()
        lockstep.dissolve()
        assert len(lockstep) == 0 and lockstep.attended == 0
        assert all(len(each.table.blocks) == pool.blocks_for(len(each.tokens) - 1) for each in ended)
    assert len(taken) <= 1000


@given(st.integers(1, 2000), st.integers(0, 30), st.integers(0, 10**6), st.booleans())
def test_known_tokens_are_the_tokens_of_the_workload(prompt, said, seed, alone):
    draw = random.Random(seed)
    keys = () if alone else tuple(draw.choice((3, 3, 7, 8)) for _ in range(-(-prompt // 512)))
    arrival = Arrival(0.0, prompt, 5, keys)
    tokens = known_prompt(arrival, 4)
    tokens += [0] * said
    plain = [*prompt_tokens(arrival, 4), *[tokens.token] * said]
    assert list(tokens) == plain and len(tokens) == len(plain) and tokens[-1] == plain[-1]
    start, stop = sorted(draw.randint(0, len(plain)) for _ in range(2))
    assert tokens[start:stop] == plain[start:stop]
    runs = tokens.runs(start, stop)
    assert [token for token, count in runs for _ in range(count)] == plain[start:stop]
    assert all(one[0] != other[0] for one, other in zip(runs, runs[1:], strict=False))


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="at least one token"):
        known_prompt(Arrival(0.0, 0, 5), 0)
    with pytest.raises(ValueError, match="one for each 512 tokens of a prompt of 600: 2, got 1"):
        known_prompt(Arrival(0.0, 600, 5, (1,)), 0)
    with pytest.raises(IndexError, match="must be below 3"):
        KnownTokens((1,), 3)[3]
