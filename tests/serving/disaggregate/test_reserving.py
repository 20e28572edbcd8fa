"""The scheduler that reserves: credits, room, and who comes before whom."""

import random

import pytest

from llmsys.cache import BlockPool
from llmsys.serving import Request, SamplingParams, Status
from llmsys.serving.disaggregate.reserving import ReservingScheduler
from llmsys.serving.telemetry.events import Preempted
from tests.support.made_up_runner import MadeUpRunner, expected_tokens, next_token
from tests.support.pools import assert_consistent
from tests.support.size import sized


def made(blocks=20, size=4, **more) -> ReservingScheduler:
    return ReservingScheduler(BlockPool(blocks + 1, size), **dict(watermark=0.0) | more)


def asked(name: str, tokens, max_tokens=8, **more) -> Request:
    tokens = range(tokens) if isinstance(tokens, int) else tokens
    return Request(name, tuple(tokens), SamplingParams(max_tokens=max_tokens, ignore_eos=True), **more)


def test_a_reservation_holds_blocks_and_is_in_no_plan():
    scheduler = made()
    a = asked("a", 9)
    assert scheduler.expect(a) == 0 and len(a.table.blocks) == 3 and scheduler.pool.stats.used == 3
    assert not scheduler.has_unfinished and scheduler.plan() is None
    assert scheduler.land(a, 5) and a.tokens == [*range(9), 5] and a.status is Status.RUNNING
    (work,) = scheduler.plan().work
    assert (work.tokens, work.computed, work.logits) == ((5,), 9, 1)


def test_what_is_here_already_is_shared_and_counts_to_nobodys_window():
    scheduler = made(window=10)
    a, b, c, d = asked("a", 8), asked("b", 10), asked("c", range(50, 58)), asked("d", 16)
    scheduler.expect(a)
    scheduler.land(a, 3)
    assert scheduler.expect(b) == 8 and b.table.blocks[:2] == a.table.blocks[:2]
    assert scheduler.expect(c) == 0, "2 tokens and 8"
    assert scheduler.expect(d) is None, "8 more are too many"
    scheduler.delivered(c)
    assert scheduler.expect(d) == 8


def test_one_alone_may_have_more_than_the_window():
    scheduler = made(window=1)
    a, b = asked("a", 30), asked("b", range(50, 51))
    assert scheduler.expect(a) == 0 and scheduler.expect(b) is None
    scheduler.delivered(a)
    assert scheduler.expect(b) == 0


def test_there_is_no_credit_without_room_beside_the_watermark_or_behind_one_who_waits():
    scheduler = made(blocks=10, watermark=0.3, max_sequences=3)
    a, b = asked("a", 20), asked("b", range(30, 43))
    assert scheduler.expect(a) == 0 and scheduler.expect(b) is None, "5 + 4 of 10, and 3 stay free"
    assert scheduler.expect(asked("c", range(30, 38))) == 0
    assert scheduler.pool.stats.used == 7 and b.table is None
    scheduler.add(asked("local", range(50, 58)))
    assert scheduler.expect(asked("d", 4)) is None


def test_as_many_run_as_may_arriving_ones_included():
    scheduler = made(max_sequences=2)
    a, b = asked("a", 3), asked("b", 3)
    assert scheduler.expect(a) == 0 and scheduler.expect(b) == 0 and scheduler.expect(asked("c", 3)) is None
    scheduler.land(a, 1)
    scheduler.add(asked("local", 3))  # the scheduler lets it in beside the two
    scheduler.plan()
    assert not scheduler.land(b, 1) and "b" in scheduler.arriving
    scheduler.abort("local")
    assert scheduler.land(b, 1)


def test_a_token_that_is_the_last_ends_it_as_it_lands():
    for params, token, reason in (
        (SamplingParams(max_tokens=1), 4, "length"), (SamplingParams(max_tokens=5, stop_token_ids=(4,)), 4, "stop"),
        (SamplingParams(max_tokens=5), 9, "stop"),
    ):  # fmt: skip
        scheduler = made(eos_ids=[9])
        a = Request("a", (1, 2, 3), params)
        scheduler.expect(a)
        assert scheduler.land(a, token) and a.reason == reason and scheduler.pool.stats.used == 0


def test_abort_gives_back_what_was_reserved_and_twice_is_once():
    scheduler = made()
    a = asked("a", 9)
    scheduler.expect(a)
    assert scheduler.abort("a") and not scheduler.abort("a")
    assert scheduler.pool.stats.used == 0 and a.status is Status.ABORTED and not scheduler.arriving
    assert scheduler.pool.match(tuple(range(9))).tokens == 0, "what was not written cannot be hit"
    with pytest.raises(ValueError, match="'a' must be one that is arriving"):
        scheduler.land(a, 1)


def test_who_waits_for_blocks_of_arriving_requests_waits_without_an_error():
    scheduler = made(blocks=4)
    a = asked("a", 16, max_tokens=1)
    scheduler.expect(a)
    scheduler.add(asked("local", 6))
    assert scheduler.plan() is None and not scheduler.has_unfinished
    scheduler.land(a, 1)
    assert scheduler.has_unfinished and scheduler.plan().work[0].request == "local"


@pytest.mark.parametrize(
    ("request_", "says"),
    [(asked("a", 81), "prompt must have at most"), (asked("b", 70, max_tokens=20), "max_tokens must be at most")],
)
def test_what_never_fits_is_refused_at_once(request_, says):
    with pytest.raises(ValueError, match=says):
        made().expect(request_)


def test_a_window_below_one_and_an_id_in_use_are_refused():
    with pytest.raises(ValueError, match="window must be at least 1"):
        made(window=0)
    scheduler = made()
    scheduler.expect(asked("a", 3))
    scheduler.add(asked("b", 3))
    for name in "ab":
        with pytest.raises(ValueError, match=f"'{name}' is in use"):
            scheduler.expect(asked(name, 3))


@pytest.mark.parametrize("seed", range(sized(short=60, full=2000)))
def test_whatever_comes_in_which_order_all_end_with_their_tokens_and_no_block_is_lost(seed):
    """Requests come with their keys and values, or are computed here; a memory without a model holds what was sent."""
    draw = random.Random(seed)
    size, blocks = draw.choice([1, 2, 3, 4]), draw.randint(12, 30)
    scheduler = made(blocks, size, window=draw.choice([None, 1, 12]), max_sequences=draw.randint(1, 5),
                     watermark=draw.choice([0.0, 0.2]))  # fmt: skip
    runner, room = MadeUpRunner(blocks + 1, size), blocks * size + 1
    to_come = [
        asked(str(i), [draw.randrange(3) for _ in range(draw.randint(1, min(10, room - 8)))],
              max_tokens=draw.choice([1, 3, 7]))
        for i in range(12)
    ]  # fmt: skip
    everyone, aborted, queue, guard = list(to_come), set(), [], 0
    while to_come or queue or scheduler.arriving or scheduler.requests:
        guard += 1
        assert guard < 5000
        if to_come and draw.random() < 0.4:
            request = to_come.pop()
            if draw.random() < 0.3:
                scheduler.add(request)
            else:
                queue.append(request)
        if queue and scheduler.expect(queue[0]) is not None:
            queue.pop(0)
        for request in list(scheduler.arriving.values()):
            if draw.random() < 0.3:
                for i in range(len(request.tokens)):
                    if request.table.blocks[i // size] not in scheduler.pool._index:
                        memory = runner.memory[request.table.blocks[i // size]]
                        memory[i % size] = (None, tuple(request.tokens[: i + 1]))
                scheduler.land(request, next_token(tuple(request.tokens), request.sampling.seed))
            elif draw.random() < 0.05:
                scheduler.abort(request.id)
                aborted.add(request.id)
        if scheduler.has_unfinished and (plan := scheduler.plan()) is not None:
            scheduler.update(plan, runner(plan))
        tables = [each.table for each in (*scheduler.running, *scheduler.arriving.values())]
        assert_consistent(scheduler.pool, tables)
    assert scheduler.pool.stats.used == 0
    for request in everyone:
        if request.id not in aborted:
            assert (request.tokens, request.reason) == expected_tokens(request, room)


def test_some_of_these_are_preempted():
    scheduler, runner = made(blocks=6, size=2), MadeUpRunner(7, 2)
    requests = [asked(str(i), [i, i, i], max_tokens=7) for i in range(2)]
    for request in requests:
        scheduler.expect(request)
        for i, _ in enumerate(request.tokens):
            runner.memory[request.table.blocks[i // 2]][i % 2] = (None, tuple(request.tokens[: i + 1]))
    for request in requests:
        scheduler.land(request, next_token(tuple(request.tokens)))
    while scheduler.has_unfinished:
        plan = scheduler.plan()
        scheduler.update(plan, runner(plan))
    assert [each.tokens for each in requests] == [expected_tokens(each, 13)[0] for each in requests]
    assert any(isinstance(event, Preempted) for event in scheduler.events)
