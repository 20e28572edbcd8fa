"""Transfers stand where both ends find them, and blocking sends hang exactly where `circle` says so.

The other judge runs the programs as they would run: each rank is a task of an event loop, a transfer is a barrier for
two, and an exchange waits for all of its barriers.
"""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsys.parallel.execute.wire import in_order
from llmsys.parallel.pipeline import (
    SCHEDULES,
    Action,
    B,
    Costs,
    Exchange,
    F,
    I,
    Schedule,
    Transfer,
    chimera,
    circle,
    dualpipe,
    gpipe,
    interleaved,
    linear,
    one_f_one_b,
    programs,
    simulate,
    v_half,
    validate,
    waiting_beside,
    zb_h1,
    zb_h2,
    zb_v,
)
from tests.parallel.pipeline import by_hand


def hangs(rank_programs) -> bool:
    """Whether some rank never comes to its end."""

    async def main() -> bool:
        doors: dict[Transfer, asyncio.Barrier] = {}

        async def rank(program):
            for step in program:
                if isinstance(step, Exchange):
                    waits = [doors.setdefault(each, asyncio.Barrier(2)).wait() for each in step.transfers]
                    await asyncio.gather(*waits)
                await asyncio.sleep(0)

        tasks = [asyncio.ensure_future(rank(program)) for program in rank_programs]
        still = 0
        last = None
        while not all(task.done() for task in tasks) and still < 5:  # no clock: idle turns of the loop are counted
            state = sum(door.n_waiting for door in doors.values()), len(doors), sum(task.done() for task in tasks)
            still = still + 1 if state == last else 0
            last = state
            for _ in range(8):
                await asyncio.sleep(0)
        stuck = not all(task.done() for task in tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return stuck

    return asyncio.run(main())


@given(st.data())
@settings(max_examples=60)
def test_blocking_sends_hang_exactly_where_a_circle_is_found(data):
    schedule = data.draw(by_hand.schedules(4, 6))
    way = data.draw(st.sampled_from(["early", "late", "together", "apart"]))
    run = programs(schedule, way)
    waits = circle(run)
    assert bool(waits) == hangs(run)
    if way == "early":
        assert not waits
    for wait, following in zip(waits, waits[1:] + waits[:1], strict=True):
        assert wait.other == following.rank
        assert wait.rank in (wait.transfer.source, wait.transfer.destination)


@given(st.data())
@settings(max_examples=60)
def test_no_order_without_a_circle_hangs_when_transfers_come_early(data):
    schedule = data.draw(by_hand.schedules(4, 8))
    for rank in range(schedule.num_ranks):
        order = list(schedule.orders[rank])
        for _ in range(2):
            one, other = (data.draw(st.integers(0, len(order) - 1)) for _ in range(2))
            order[one], order[other] = order[other], order[one]
        swapped = schedule.with_order(rank, order)
        schedule = swapped if by_hand.runs(swapped) else schedule
    assert circle(programs(schedule)) == ()


@pytest.mark.parametrize("way", ["early", "late", "together", "apart"])
@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_every_result_that_another_rank_needs_is_sent_after_it_is_there_and_received_before_it_is_needed(name, way):
    schedule = SCHEDULES[name](4, 8)
    run = programs(schedule, way)
    expected = set()
    for rank, program in enumerate(run):
        assert tuple(step for step in program if not isinstance(step, Exchange)) == schedule.orders[rank]
        have: set = set()
        for step in program:
            if isinstance(step, Exchange):
                for transfer in step.transfers:
                    assert (transfer.source == rank) != (transfer.destination == rank)
                    if transfer.source == rank:
                        assert transfer.of in have
                    else:
                        have.add(transfer.of)
                assert way != "apart" or len(step.transfers) == 1
                continue
            for half in step.halves:
                for kind, stage, microbatch in by_hand.elements(half):
                    for other, at in by_hand.needed(kind, stage, schedule.num_stages - 1):
                        owner = schedule.placement.rank(at, half.replica)
                        if owner != rank:
                            before = {"F": F, "I": I}[other](at, microbatch, half.replica)
                            assert before in have
                            expected.add(Transfer(before, owner, rank))
            have.update(step.parts)
    sent = [each for program in run for step in program if isinstance(step, Exchange) for each in step.transfers]
    assert sorted(sent) == sorted([*expected, *expected])  # once at each end


def test_1f1b_hangs_when_each_transfer_is_done_alone_and_not_when_neighbours_exchange():
    schedule = one_f_one_b(2, 4)
    waits = circle(programs(schedule, "apart"))
    assert [str(wait) for wait in waits] == [
        "rank 0 waits to send 0F1 to rank 1",
        "rank 1 waits to send 1I0 to rank 0",
    ]
    report = validate(schedule, transfers="apart")
    assert [problem.kind for problem in report.problems] == ["deadlock"]
    assert "rank 1 waits to send 1I0 to rank 0" in str(report)
    assert validate(schedule, transfers="together").valid and validate(schedule).valid


def test_which_schedules_need_transfers_to_come_early():
    ways = {
        name: [way for way in ("apart", "together", "early") if not circle(programs(SCHEDULES[name](4, 8), way))]
        for name in SCHEDULES
    }
    assert ways == {
        "gpipe": ["apart", "together", "early"],
        "1f1b": ["together", "early"],
        "interleaved": ["early"],
        "chimera": ["together", "early"],
        "zb-h1": ["together", "early"],
        "zb-h2": ["early"],
        "zb-v": ["early"],
        "v-half": ["early"],
        "v-min": ["together", "early"],
        "dualpipe": ["early"],
        "dualpipe-v": ["early"],
    }


def test_the_examples_of_1f1b_are_what_the_text_says():
    schedule = one_f_one_b(2, 3)

    def words(way, rank, length):
        said = []
        for step in programs(schedule, way)[rank][:length]:
            if isinstance(step, Exchange):
                arrows = [("→" if each.source == rank else "←") + str(each.of)[1:] for each in step.transfers]
                said.append("{" + " ".join(arrows) + "}" if len(arrows) > 1 else arrows[0])
            else:
                said.append(str(step)[1:])
        return " ".join(said)

    assert words("apart", 0, 6) == "F0 →F0 F1 →F1 ←I0 B0"
    assert words("apart", 1, 6) == "←F0 F0 B0 →I0 ←F1 F1"
    assert words("together", 0, 5) == "F0 →F0 F1 {→F1 ←I0} B0"
    assert words("together", 1, 5) == "←F0 F0 B0 {→I0 ←F1} F1"
    assert words("early", 0, 5) == "F0 →F0 F1 {→F1 ←I0} B0"
    assert words("early", 1, 5) == "←F0 F0 ←F1 B0 →I0"


def sent_and_received(run, schedule) -> dict[tuple[int, int], tuple[list[Action], list[Action]]]:
    """By source and destination: what the one sends and the other receives, each in its order."""
    found: dict = {}
    for rank, program in enumerate(run):
        for step in in_order(program, schedule):
            for each in step.transfers if isinstance(step, Exchange) else ():
                way = found.setdefault((each.source, each.destination), ([], []))
                way[each.destination == rank].append(each.of)
    return found


@pytest.mark.parametrize("way", ["early", "late"])
@given(st.data())
@settings(max_examples=60, deadline=None)
def test_ranks_receive_in_the_order_in_which_others_send(way, data):
    schedule = data.draw(by_hand.schedules(6, 8))
    run = programs(schedule, way)
    assert all(sent == received for sent, received in sent_and_received(run, schedule).values())


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_late_transfers_are_as_late_as_their_senders_order_allows(data):
    """Where a receive stands further ahead than the action that needs it, one that is sent later is needed there."""
    schedule = data.draw(by_hand.schedules(6, 8))
    late, together = programs(schedule, "late"), programs(schedule, "together")
    for rank, program in enumerate(late):
        needed = {each: place for each, place in places(together[rank]).items() if each.destination == rank}
        stands = {each: place for each, place in places(program).items() if each.destination == rank}
        orders = sent_and_received(late, schedule)
        for each, place in stands.items():
            sent, _ = orders[each.source, rank]
            followers = [Transfer(of, each.source, rank) for of in sent[sent.index(each.of) :]]
            assert place == min(needed[follower] for follower in followers)


def places(program) -> dict[Transfer, int]:
    """Before which of a rank's actions each of its transfers stands."""
    found, actions = {}, 0
    for step in program:
        if isinstance(step, Exchange):
            found |= dict.fromkeys(step.transfers, actions)
        else:
            actions += 1
    return found


def test_late_a_result_that_is_sent_first_is_received_first_though_it_is_needed_last():
    """Rank 0 sends F0 and then F1, and rank 1 has F1 first."""
    first, second = [F(0, 0), F(0, 1), B(0, 1), B(0, 0)], [F(1, 1), B(1, 1), F(1, 0), B(1, 0)]
    schedule = Schedule("crossed", linear(2), 2, [first, second])
    assert places(programs(schedule, "together")[1])[Transfer(F(0, 0), 0, 1)] == 2
    assert programs(schedule, "late")[1][0] == Exchange((Transfer(F(0, 0), 0, 1), Transfer(F(0, 1), 0, 1)))


def test_programs_repaired_by_hand_are_judged_too():
    schedule = one_f_one_b(2, 2)
    first, second = (list(program) for program in programs(schedule, "apart"))
    assert circle([first, second])
    place = second.index(Exchange((Transfer(F(0, 1), 0, 1),)))
    second.insert(place - 1, second.pop(place))  # rank 1 receives first, then sends
    assert circle([first, second]) == () and not hangs([first, second])


def test_a_transfer_without_its_other_end_is_found():
    schedule = Schedule("one", linear(2), 1, [[F(0, 0), B(0, 0)], [F(1, 0), B(1, 0)]])
    first, second = programs(schedule)
    without = tuple(step for step in second if not (isinstance(step, Exchange) and step.transfers[0].of == F(0, 0)))
    assert [str(wait) for wait in circle([first, without])] == ["rank 0 waits to send 0F0 to rank 1"]


def test_an_unknown_way_is_refused():
    with pytest.raises(ValueError, match="""transfers must be "early", "late", "together" or "apart", got 'soon'"""):
        programs(gpipe(2, 2), "soon")


@pytest.mark.parametrize("schedule", [chimera(4, 8), dualpipe(4, 8), interleaved(4, 10, 3), v_half(5, 9), zb_h1(3, 4),
                                      zb_h2(4, 9), zb_v(4, 9)], ids=lambda schedule: schedule.name)  # fmt: skip
def test_real_runs_of_the_early_programs_end(schedule):
    assert not hangs(programs(schedule))


def test_a_receive_that_was_begun_early_waits_beside_a_forward():
    """ZB-H1 with F = 2, I = 3, W = 1. Rank 0 has W0 from 10 to 11 and F2 until 13; the receive of I1 begins at 11, in
    the pause where it is there with equal costs. Rank 1 has I1 from 9 to 12: the receive waits for half of F2."""
    schedule = zb_h1(2, 3)
    shares = waiting_beside(schedule, simulate(schedule, Costs(F=2, I=3, W=1)), "early")
    assert set(shares) == {action for order in schedule.orders for action in order}
    assert {action: share for action, share in shares.items() if share} == {F(0, 2): 0.5}


def test_a_send_waits_beside_what_its_rank_does_next():
    """GPipe with F = 3 at rank 1: rank 0 sends F1 at 2, and rank 1 takes it in the pause after its F0, at 4."""
    schedule = gpipe(2, 3)
    shares = waiting_beside(schedule, simulate(schedule, Costs(F=[1, 3], B=4)), "early")
    assert shares[F(0, 1)] == 0 and shares[F(0, 2)] == 1  # from 2 to 3, as rank 1 has F0 until 4


def test_receives_alone_are_counted_where_sends_are_said_not_to_wait():
    """The same run: rank 0's send waits, and no receive."""
    schedule = gpipe(2, 3)
    timeline = simulate(schedule, Costs(F=[1, 3], B=4))
    assert not any(waiting_beside(schedule, timeline, "early", sends=False)[F(0, m)] for m in range(3))
    other = zb_h1(2, 3)
    assert waiting_beside(other, simulate(other, Costs(F=2, I=3, W=1)), "early", sends=False)[F(0, 2)] == 0.5


@settings(deadline=None)
@given(st.sampled_from(sorted(SCHEDULES)), st.data())
def test_with_any_costs_an_action_has_a_share(name, data):
    schedule = SCHEDULES[name](2, 4)
    times = st.lists(st.integers(1, 4), min_size=schedule.num_stages, max_size=schedule.num_stages)
    timeline = simulate(schedule, Costs(**{kind: data.draw(times) for kind in "FIW"}))
    shares = waiting_beside(schedule, timeline, "early")
    assert set(shares) == {event.action for row in timeline.events for event in row}
    assert all(0 <= share <= 1 for share in shares.values())


def test_waits_of_another_schedules_run_are_refused():
    with pytest.raises(ValueError, match="timeline must be a run of zb-h1"):
        waiting_beside(zb_h1(2, 3), simulate(one_f_one_b(2, 3)), "early")
