"""A run in stages is the run without: its losses, its weights, its checkpoints."""

import shutil
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist

from llmsys.attention import sdpa_attention
from llmsys.models import load_model
from llmsys.parallel.execute import split_backward
from llmsys.parallel.pipeline import SCHEDULES
from llmsys.parallel.ranks import RanksFailed, close, run
from llmsys.training import TrainConfig, train
from llmsys.training.pipelined import schedule_for, train_in_stages
from tests.support.size import SEED, sized

SETTINGS = TrainConfig(
    steps=4, batch=2, context=16, accumulate=4, learning_rate=3e-3, evaluate_every=2, evaluate_batches=3, save_every=2
)
SHORT = [("1f1b", 2), ("zb-v", 4), ("chimera", 2), ("dualpipe-v", 4)]
FULL = [(name, stages) for name in SCHEDULES for stages in (2, 4, 8)]


@pytest.fixture(scope="module", autouse=True)
def no_rank_is_left():
    yield
    close()


def on_a_rank(model, corpus, config, schedule, out, resume, stop_after):
    """The run, without its model; and what the other ranks' loss curves are."""
    seen = []
    done = train_in_stages(
        model, corpus, config, schedule, out=out, resume=resume, on_step=seen.append,
        should_stop=lambda: dist.get_rank() == 1 and len(seen) == stop_after,
    )  # fmt: skip
    assert all(not weight.requires_grad for weight in done.model.parameters())
    return replace(done, model=None)


def in_stages(model, corpus, config, name, stages, *, out=None, resume=False, stop_after=None):
    schedule = schedule_for(name, stages, config.accumulate)
    done = run(
        on_a_rank, schedule.num_ranks, model, corpus, config, schedule, out, resume, stop_after, backend="gloo"
    )
    assert all(each.losses == done[0].losses and each.held_out == done[0].held_out for each in done)
    return done[0]


def same(one, other, tolerance=1e-5):
    torch.testing.assert_close(one.losses, other.losses, rtol=0, atol=tolerance)
    norms = [[step.gradient_norm for step in each.steps] for each in (one, other)]
    torch.testing.assert_close(*norms, rtol=1e-3, atol=tolerance)
    assert one.held_out == pytest.approx(other.held_out, abs=tolerance)


@pytest.mark.parametrize("name, stages", sized(short=[SHORT[SEED % len(SHORT)]], full=FULL))
def test_the_run_is_the_one_without_stages(new_model, corpus, tmp_path, name, stages):
    """With a clip that shortens every gradient, by the length over all stages; the embedding is the head."""
    config = replace(SETTINGS, clip=0.1, accumulate=4 if stages < 4 else 2 * stages, batch=2 if stages < 8 else 1)
    split = in_stages(new_model(stages + 1), corpus, config, name, stages, out=tmp_path)
    model = new_model(stages + 1)
    whole = train(model, corpus, config)
    same(split, whole)
    assert all(step.gradient_norm > 0.1 for step in whole.steps)
    assert split.checkpoint == tmp_path / "step-000004"
    for (weight, one), (_, other) in zip(
        load_model(split.checkpoint).named_parameters(), model.named_parameters(), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4, msg=weight)


def test_a_checkpoint_goes_on_at_another_number_of_stages_and_without_any(deep, corpus, tmp_path):
    expected = train(deep(), corpus, SETTINGS)
    first = in_stages(deep(), corpus, SETTINGS, "zb-v", 4, out=tmp_path, stop_after=2)
    assert first.stopped and first.checkpoint.name == "step-000002" and len(first.steps) == 2
    second = in_stages(first.checkpoint, corpus, SETTINGS, "1f1b", 2, out=tmp_path, resume=True)
    assert second.steps[:2] == first.steps
    same(second, expected)
    shutil.rmtree(tmp_path / "step-000004")
    same(train(deep(), corpus, SETTINGS, out=tmp_path, resume=True), expected)


def with_a_doubled_backward(model, corpus, schedule):
    """On a rank: the timelines of each step, and the first gradient's length, with every matrix's gradient doubled."""

    def doubled(dy, x, weight):
        dx, later = split_backward(dy, x, weight)
        return dx, lambda: 2 * later()

    seen = []
    done = train_in_stages(model, corpus, SETTINGS, schedule, backward=doubled, on_timeline=seen.append)
    return seen, done.steps[0].gradient_norm


def test_each_steps_timeline_is_told_and_the_backward_is_the_one_that_is_given(deep, corpus):
    schedule = schedule_for("zb-h1", 2, 4)
    (seen, length), (others, _) = run(with_a_doubled_backward, 2, deep(), corpus, schedule, backend="gloo")
    assert seen == others and len(seen) == SETTINGS.steps
    for timeline in seen:
        assert [[event.action for event in row] for row in timeline.events] == [*map(list, schedule.orders)]
    plain = in_stages(deep(), corpus, replace(SETTINGS, steps=1), "zb-h1", 2).steps[0].gradient_norm
    assert 1.2 * plain < length < 2 * plain  # the first stage's is as it was, and that of norms


def forward_only(q, k, v, **options):
    with torch.no_grad():
        return sdpa_attention(q, k, v, **options)


def without_backward(model, corpus, schedule):
    try:
        train_in_stages(model, corpus, SETTINGS, schedule, attention=forward_only)
    except ValueError as error:
        return str(error)


def test_what_cannot_be_is_refused_on_all_ranks(deep, corpus):
    schedule = schedule_for("1f1b", 2, 4)
    for said in run(without_backward, 2, deep(), corpus, schedule, backend="gloo"):
        assert "attention_norm.weight got no gradient" in said and "attention without a backward pass" in said
    for config, says in (
        (replace(SETTINGS, accumulate=6), "accumulate must be the schedule's 4 microbatches, got 6"),
        (replace(SETTINGS, context=65), "context must be at most the model's 64"),
        (replace(SETTINGS, learning_rate=1e30), "so the run cannot go on"),
    ):
        with pytest.raises(RanksFailed) as failed:
            run(on_a_rank, 2, deep(), corpus, config, schedule, None, False, None, backend="gloo")
        assert says in str(failed.value.__cause__)


def test_in_bfloat16_the_masters_are_as_without_stages(deep, corpus):
    """The gradients of microbatches are added in fp32, though they come at different times."""
    config = replace(SETTINGS, dtype="bfloat16", steps=2)
    split, whole = in_stages(deep(), corpus, config, "zb-h1", 2), train(deep(), corpus, config)
    same(split, whole, tolerance=2e-3)


def test_the_schedule_follows_from_the_number_of_stages():
    found = {name: schedule_for(name, 4, 8).num_ranks for name in ("gpipe", "1f1b", "zb-h2", "chimera", "dualpipe")}
    assert set(found.values()) == {4}
    found = {name: schedule_for(name, 4, 8).num_ranks for name in ("interleaved", "zb-v", "v-half", "dualpipe-v")}
    assert set(found.values()) == {2}
    for arguments, says in (
        (("zb-w", 4, 8), "name must be one of gpipe"),
        (("zb-v", 3, 8), "stages must be even, as zb-v has two on each rank; got 3"),
        (("dualpipe-v", 4, 3), "num_microbatches must be at least the 4 stages"),
        (("chimera", 3, 4), "num_ranks must be even"),
        (("zb-v", 1, 4), "stages must be even"),
        (("dualpipe", 4, 6), "num_microbatches must be at least twice the 4 ranks"),
        (("1f1b", 0, 6), "stages must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=says):
            schedule_for(*arguments)
