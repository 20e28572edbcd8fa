"""Every schedule on real stages, all ranks in one process: losses, gradients and hooks are the unsplit model's."""

from collections import Counter

import pytest
import torch

from llmsys.attention import naive_attention
from llmsys.cache import NoCache
from llmsys.parallel.execute import Cut, Joint, SplitLinear, copies, execute_here, load_stages, stages_of
from llmsys.parallel.pipeline import (
    SCHEDULES,
    F,
    InvalidSchedule,
    Placement,
    Schedule,
    dualpipe,
    from_text,
    make_schedule,
    one_f_one_b,
    to_text,
    zb_h1,
    zb_v,
)
from tests.parallel.execute.models import make_microbatches, make_model, unsplit
from tests.support.size import SEED, sized

TWICE = {"chimera", "dualpipe"}  # schedules with two replicas of the model
EXACT = 1e-12
SIZES = [(2, 4), (2, 6), (4, 8), (4, 12)]  # ranks and microbatches; in the short form one for each schedule
CASES = [
    (name, *SIZES[(SEED + n) % len(SIZES)]) for n, name in enumerate(SCHEDULES) for n in sized(short=[n], full=range(4))
]


def gradients(stages):
    return {(key, name): weight.grad for key, stage in stages.items() for name, weight in stage.weights.items()}


def run(schedule, model, microbatches, **options):
    """Losses, the gradients of all copies by (key, name), their length, and the timeline."""
    cut = Cut.by_cost(model.config, schedule.num_stages, 7)
    stages = stages_of(model, schedule, cut, **options)
    losses, timeline = execute_here(schedule, stages, microbatches)
    assert all(stage.unfinished == () for stage in stages.values())
    found, joint = gradients(stages), Joint(schedule, cut)
    joint.add_copies(found)
    return losses, found, float(joint.length(found)), timeline


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name, ranks, microbatches", CASES)
def test_losses_and_gradients_are_the_unsplit_models(name, ranks, microbatches, tied):
    model, schedule = make_model(tied=tied), make_schedule(name, ranks, microbatches)
    tokens = make_microbatches(microbatches)
    expected_losses, expected = unsplit(model, tokens)
    losses, found, length, timeline = run(schedule, model, tokens)
    assert torch.equal(losses, expected_losses)
    for (_, own), gradient in found.items():
        whole = "embedding.weight" if tied and own == "head.weight" else own
        two_sums = name in TWICE or tied and whole == "embedding.weight"  # which are added in another order
        torch.testing.assert_close(gradient, expected[whole], rtol=0, atol=EXACT if two_sums else 0, msg=own)
    assert length == pytest.approx(float(torch.nn.utils.get_total_norm(expected.values())), rel=1e-12)
    assert [[event.action for event in row] for row in timeline.events] == [list(order) for order in schedule.orders]


def test_the_parts_hold_each_weight_once_but_for_copies():
    for name in SCHEDULES:
        for tied in (False, True):
            model, schedule = make_model(tied=tied), make_schedule(name, 2, 4)
            found = copies(schedule, Cut.by_cost(model.config, schedule.num_stages, 7))
            assert found.keys() == dict(model.named_parameters()).keys()
            replicas = 2 if name in TWICE else 1
            for weight, places in found.items():
                both_ends = tied and weight == "embedding.weight"
                assert len(places) == replicas * (2 if both_ends else 1), (name, weight)


@pytest.mark.parametrize("name", ["1f1b", "zb-v", "chimera"])
@pytest.mark.parametrize("tied", [False, True])
def test_weights_hooks_run_once_for_each_microbatch(name, tied):
    """As without a pipeline; of two copies, once for each copy's own microbatches."""
    model, schedule = make_model(tied=tied), make_schedule(name, 2, 4)
    stages = stages_of(model, schedule, Cut.by_cost(model.config, schedule.num_stages, 7))
    calls = Counter()
    for key, stage in stages.items():
        for own, weight in stage.weights.items():
            weight.register_hook(lambda _, each=(key, own): calls.update([("tensor", each)]))
            weight.register_post_accumulate_grad_hook(lambda _, each=(key, own): calls.update([("after", each)]))
    execute_here(schedule, stages, make_microbatches(4))
    assert set(calls.values()) == {2 if name in TWICE else 4}
    assert len(calls) == 2 * sum(len(stage.weights) for stage in stages.values())


def test_a_tied_matrix_within_one_stage_calls_its_hooks_once_for_both_uses():
    model = make_model(tied=True)
    tokens = make_microbatches(3)
    _, expected = unsplit(model, tokens)
    stages = stages_of(model, zb_h1(1, 3), Cut.by_cost(model.config, 1, 7))
    calls = []
    (stage,) = stages.values()
    stage.weights["embedding.weight"].register_post_accumulate_grad_hook(calls.append)
    execute_here(zb_h1(1, 3), stages, tokens)
    assert len(calls) == 3
    assert all(torch.equal(weight.grad, expected[name]) for name, weight in stage.weights.items())


@pytest.mark.parametrize("name", ["gpipe", "zb-h2", "interleaved", "dualpipe"])
def test_microbatches_of_unequal_sizes_give_the_mean_over_all_tokens(name):
    model, schedule = make_model(), make_schedule(name, 2, 4)
    tokens = [make_microbatches(1, B, T, seed=n)[0] for n, (B, T) in enumerate([(1, 5), (3, 2), (2, 11), (1, 1)])]
    expected_losses, expected = unsplit(model, tokens)
    losses, found, _, _ = run(schedule, model, tokens)
    torch.testing.assert_close(losses, expected_losses, rtol=0, atol=0)
    for (_, own), gradient in found.items():
        torch.testing.assert_close(gradient, expected[own], rtol=0, atol=EXACT, msg=own)


def test_two_steps_add_their_gradients():
    model, schedule = make_model(), zb_v(2, 3)
    first, second = make_microbatches(3), make_microbatches(3, seed=2)
    stages = stages_of(model, schedule, Cut.by_cost(model.config, 4, 7))
    for tokens in (first, second):
        execute_here(schedule, stages, tokens)
    one, two = (unsplit(model, tokens)[1] for tokens in (first, second))
    for (_, own), gradient in gradients(stages).items():
        torch.testing.assert_close(gradient, one[own] + two[own], rtol=0, atol=EXACT, msg=own)


def test_a_schedule_of_ones_own_runs_as_well():
    """Read from text, with whole and split backwards mixed, and the stages placed by nobody's rule."""
    text = "0F0 0F1 2F0 2B0 0I0 2F1 2I1 0B1 0W0 2W1\n1F0 1F1 1B0 1I1 1W1"
    schedule = from_text(text)
    assert schedule.placement.ranks == ((0, 1, 0),)
    assert from_text(to_text(schedule)).orders == schedule.orders
    model, tokens = make_model(5), make_microbatches(2)
    expected_losses, expected = unsplit(model, tokens)
    losses, found, _, _ = run(schedule, model, tokens)
    assert torch.equal(losses, expected_losses)
    for (_, own), gradient in found.items():
        torch.testing.assert_close(gradient, expected[own], rtol=0, atol=EXACT, msg=own)


@pytest.mark.parametrize("schedule", [one_f_one_b(2, 4), zb_h1(2, 4), dualpipe(2, 4)], ids=lambda each: each.name)
def test_with_and_without_the_split_the_gradients_are_the_same(schedule):
    model, tokens = make_model(), make_microbatches(4)
    found = [run(schedule, model, tokens, split=split)[1] for split in (None, True, False)]
    assert all(torch.equal(found[0][key], other[key]) for other in found[1:] for key in found[0])


def test_backward_passes_are_split_where_the_schedule_asks_for_it():
    model = make_model(4)
    for schedule, expected in (
        (one_f_one_b(2, 2), {0: False, 1: False}),
        (zb_h1(2, 2), {0: False, 1: True}),  # nobody waits for the first stage's I
        (from_text("0F0 0B0\n1F0 1I0 1W0"), {0: False, 1: True}),
    ):
        stages = stages_of(model, schedule, Cut.by_cost(model.config, 2, 7))
        matrices = {stage: each.part.modules() for (_, stage), each in stages.items()}
        assert expected == {
            stage: any(isinstance(each, SplitLinear) for each in several) for stage, several in matrices.items()
        }


def test_your_own_attention_is_what_runs():
    calls = []

    def mine(q, k, v, **options):
        calls.append(q.shape)
        return naive_attention(q, k, v, **options)

    model, tokens = make_model(4), make_microbatches(2)
    expected_losses, _ = unsplit(model, tokens)
    for attention in (mine, NoCache(mine)):
        losses, _, _, _ = run(one_f_one_b(2, 2), model, tokens, attention=attention)
        torch.testing.assert_close(losses, expected_losses, rtol=0, atol=1e-12)
    assert calls == [(2, 4, 7, 4)] * 16


def test_forwards_alone_keep_nothing():
    model, tokens = make_model(4), make_microbatches(3)
    schedule = Schedule("forward", Placement("own", ((0, 1, 0),)), 3, [
        [F(stage, m) for m in range(3) for stage in (0, 2)], [F(1, m) for m in range(3)],
    ])  # fmt: skip
    stages = stages_of(model, schedule, Cut.by_cost(model.config, 3, 7))
    losses, _ = execute_here(schedule, stages, tokens, gradients=False)
    assert torch.equal(losses, unsplit(model, tokens)[0])
    assert all(gradient is None for gradient in gradients(stages).values())
    assert all(stage.unfinished == () for stage in stages.values())


def test_what_cannot_be_is_refused_before_anything_runs():
    model, schedule = make_model(), one_f_one_b(2, 4)
    cut = Cut.by_cost(model.config, 2, 7)
    stages = stages_of(model, schedule, cut)
    for tokens, says in (
        (make_microbatches(3), "microbatches must be 4, as 1f1b was made for; got 3"),
        ([*make_microbatches(3), torch.zeros(2, 1, dtype=torch.long)], r"microbatch 3 is of shape \(2, 1\)"),
        ([*make_microbatches(3), torch.zeros(7, dtype=torch.long)], r"microbatch 3 is of shape \(7,\)"),
    ):
        with pytest.raises(ValueError, match=says):
            execute_here(schedule, stages, tokens)
    with pytest.raises(InvalidSchedule, match="1I3 is done 2 times"):
        twice = schedule.with_order(1, [*schedule.orders[1], schedule.orders[1][-1]])
        execute_here(twice, stages, make_microbatches(4))
    with pytest.raises(InvalidSchedule, match="0B0 on rank 0: without gradients there are forwards alone"):
        execute_here(schedule, stages, make_microbatches(4), gradients=False)
    forwards = Schedule("forward", schedule.placement, 4, [[F(0, m) for m in range(4)], [F(1, m) for m in range(3)]])
    with pytest.raises(InvalidSchedule, match="1F3 is missing on rank 1"):
        execute_here(forwards, stages, make_microbatches(4), gradients=False)
    with pytest.raises(ValueError, match="into the 4 stages of zb-v, and is of tiny into 2"):
        stages_of(model, zb_v(2, 4), cut)
    with pytest.raises(ValueError, match="cut must have the 4 stages of zb-v on 2 ranks, and has 2"):
        Joint(zb_v(2, 4), cut)
    with pytest.raises(ValueError, match="cut must have the 4 stages of zb-v on 2 ranks, and has 2"):
        load_stages(None, zb_v(2, 4), cut, 0)
    with pytest.raises(ValueError, match="num_stages must be at most the 8 layers"):
        Cut.by_cost(model.config, 9, 7)
    with pytest.raises(ValueError, match="ranges must be the model's 8 layers in order"):
        Cut(model.config, (range(3), range(4, 8)))
    assert all(gradient is None for gradient in gradients(stages).values())
