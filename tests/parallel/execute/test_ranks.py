"""Schedules on real ranks, each a process: the numbers are those of the unsplit model, and the timeline is a run's."""

from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist

from llmsys.parallel.execute import Clock, Cut, Joint, Pipeline, RankWire, Stage, stages_of
from llmsys.parallel.pipeline import dependencies, draw, make_schedule
from llmsys.parallel.ranks import run
from tests.parallel.execute.models import make_microbatches, make_model, unsplit
from tests.support.size import SEED, sized

TWO = ["1f1b", "interleaved", "chimera", "zb-v", "dualpipe-v", "zb-h2", "v-half", "gpipe", "dualpipe"]
SHORT = [TWO[(SEED + n) % len(TWO)] for n in range(3)]
CASES = sized(
    short=[(name, 2, 4) for name in SHORT],
    full=[(name, ranks, 2 * ranks) for name in TWO for ranks in (2, 4)]
    + [(name, 8, 16) for name in ("1f1b", "zb-h2", "dualpipe", "chimera")],
)


def one_step(model, schedule, microbatches):
    """On a rank: losses, its gradients by (key, name) after copies are added, their length, and all ranks' timeline."""
    rank = dist.get_rank()
    cut = Cut.by_cost(model.config, schedule.num_stages, 7)
    stages = stages_of(model, schedule, cut, rank)
    pipeline, joint = Pipeline(schedule, stages), Joint(schedule, cut, rank)
    losses = pipeline.step(microbatches)
    timeline = pipeline.timeline()
    found = {(key, name): weight.grad for key, stage in stages.items() for name, weight in stage.weights.items()}
    joint.add_copies(found)
    assert all(stage.unfinished == () for stage in stages.values())
    return losses, found, float(joint.length(found)), timeline


@pytest.mark.parametrize("name, ranks, microbatches", CASES)
@pytest.mark.parametrize("tied", sized(short=[True], full=[True, False]))
def test_losses_and_gradients_are_the_unsplit_models(name, ranks, microbatches, tied):
    schedule = make_schedule(name, ranks, microbatches)
    model, tokens = make_model(max(8, schedule.num_stages), tied=tied), make_microbatches(microbatches)
    expected_losses, expected = unsplit(model, tokens)
    results = run(one_step, ranks, model, schedule, tokens, backend="gloo")
    seen = set()
    for losses, found, length, timeline in results:
        torch.testing.assert_close(losses, expected_losses.double(), rtol=0, atol=1e-12)
        assert length == pytest.approx(float(torch.nn.utils.get_total_norm(expected.values())), rel=1e-12)
        assert length == results[0][2] and timeline == results[0][3]
        for (_, own), gradient in found.items():
            whole = "embedding.weight" if tied and own == "head.weight" else own
            torch.testing.assert_close(gradient, expected[whole], rtol=0, atol=1e-12, msg=own)
            seen.add(whole)
    assert seen == set(expected)
    check_timeline(schedule, results[0][3])


def check_timeline(schedule, timeline):
    """Every action once and in order, none before what it depends on was done."""
    assert [[event.action for event in row] for row in timeline.events] == [list(order) for order in schedule.orders]
    assert timeline.start == 0 and 0 < timeline.bubble_share < 1 and timeline.name == schedule.name
    events = {part: event for row in timeline.events for event in row for part in event.action.parts}
    for row in timeline.events:
        for event in row:
            assert event.start <= event.end
            for before in dependencies(event.action, schedule.num_stages):
                assert events[before].end <= event.start
    assert "rank 1" in draw(timeline, tick=timeline.makespan / 100)


def test_microbatches_of_unequal_sizes_pass_between_ranks():
    schedule = make_schedule("zb-v", 2, 4)
    tokens = [make_microbatches(1, B, T, seed=n)[0] for n, (B, T) in enumerate([(1, 5), (3, 2), (2, 11), (1, 1)])]
    model = make_model()
    _, expected = unsplit(model, tokens)
    for _, found, _, _ in run(one_step, 2, model, schedule, tokens, backend="gloo"):
        for (_, own), gradient in found.items():
            torch.testing.assert_close(gradient, expected[own], rtol=0, atol=1e-12, msg=own)


def what_comes_first(model, microbatches):
    """On a rank: in which order a step's clock is made and its first transfers begin."""
    schedule = make_schedule("1f1b", 2, len(microbatches))
    stages = stages_of(model, schedule, Cut.by_cost(model.config, 2, 7), dist.get_rank())
    seen, exchange = [], RankWire.exchange

    class Seen(Clock):
        def __init__(self):
            seen.append("clock")

    def noted(wire, sends, receives):
        seen.append("transfers")
        return exchange(wire, sends, receives)

    with patch("llmsys.parallel.execute.ranks.Clock", Seen), patch.object(RankWire, "exchange", noted):
        Pipeline(schedule, stages).step(microbatches)
    return seen[:2]


def test_the_clock_is_made_before_a_receive_is_under_way():
    """A GPU's clock waits until the GPU has nothing to do, and so for a receive, too."""
    assert run(what_comes_first, 2, make_model(), make_microbatches(4), backend="gloo") == [["clock", "transfers"]] * 2


def refused(model):
    schedule = make_schedule("1f1b", 3, 4)
    try:
        Pipeline(schedule, stages_of(model, schedule, Cut.by_cost(model.config, 3, 7), dist.get_rank()))
    except ValueError as error:
        return str(error)


def test_a_schedule_for_other_ranks_is_refused():
    assert run(refused, 2, make_model(), backend="gloo") == ["1f1b is for 3 ranks, and there are 2"] * 2


def what_failed_steps_leave(model, microbatches):
    """On a rank: what is said of a pipeline's timeline and steps, before the first, after a refused one, after one that
    failed midway; and whether the losses of a new pipeline are the first one's."""
    schedule, rank = make_schedule("gpipe", 2, len(microbatches)), dist.get_rank()
    stages = stages_of(model, schedule, Cut.by_cost(model.config, 2, 7), rank)
    pipeline, said = Pipeline(schedule, stages), []

    def attempt(call, *arguments):
        try:
            return call(*arguments)
        except (RuntimeError, ValueError, ZeroDivisionError) as error:
            said.append(f"{type(error).__name__}: {error}"[:60])

    attempt(pipeline.timeline)
    losses = attempt(pipeline.step, microbatches)
    before = attempt(pipeline.timeline)
    attempt(pipeline.step, microbatches[1:])
    assert attempt(pipeline.timeline) == before
    forward = Stage.forward

    def fails(stage, m, *rest):  # rank 0 when it has sent something, rank 1 when it has received that
        return forward(stage, m, *rest) if m < 1 - rank else 1 / 0

    with patch.object(Stage, "forward", fails):
        attempt(pipeline.step, microbatches)
    attempt(pipeline.step, microbatches)
    attempt(pipeline.timeline)
    return said, torch.equal(losses, attempt(Pipeline(schedule, stages).step, microbatches))


def test_after_a_step_that_failed_midway_there_is_no_other_and_no_timeline():
    said = [
        "RuntimeError: there was no step yet, whose it could be",
        "ValueError: microbatches must be 3, as gpipe was made for; got 2",
        "ZeroDivisionError: division by zero",
        "RuntimeError: the step before failed midway, and what ranks have",
        "RuntimeError: the last step failed midway",
    ]
    said = [each[:60] for each in said]
    assert run(what_failed_steps_leave, 2, make_model(), make_microbatches(3), backend="gloo") == [(said, True)] * 2


def early_and_late(model, microbatches):
    """On a rank: the gradients of both ways of placing transfers, and what is said of a third."""
    schedule = make_schedule("zb-v", 2, len(microbatches))
    cut, found = Cut.by_cost(model.config, 4, 7), []
    for way in ("early", "late"):
        stages = stages_of(model, schedule, cut, dist.get_rank())
        Pipeline(schedule, stages, transfers=way).step(microbatches)
        found.append([weight.grad for stage in stages.values() for weight in stage.weights.values()])
    try:
        Pipeline(schedule, stages, transfers="together")
    except ValueError as error:
        return all(map(torch.equal, *found)), str(error)


def test_where_results_are_received_changes_no_number():
    says = 'transfers must be "late" or "early", got \'together\''
    assert run(early_and_late, 2, make_model(), make_microbatches(4), backend="gloo") == [(True, says)] * 2
