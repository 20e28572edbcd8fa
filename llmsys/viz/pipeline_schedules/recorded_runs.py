"""Recorded runs of schedules on real ranks: their timelines, and what they came to beside torch's runtime."""

from llmsys.parallel.pipeline.costs import Costs
from llmsys.parallel.pipeline.text import parse
from llmsys.parallel.pipeline.timeline import Event, Timeline
from llmsys.viz.kit.picture import Picture
from llmsys.viz.pipeline_schedules.timelines import timelines


def recorded_runs(record) -> Picture:
    """A timeline for each row of a record, in milliseconds. What a rank keeps is in shares of a rank: of the
    activations of its whole part of the model.

    record    a `llmsys.bench.Record` of the pipeline benchmark

    Raises ValueError where it has no rows.
    """
    if not record.rows:
        raise ValueError("record must have rows, one a schedule: make it with python -m llmsys.bench pipeline")
    return timelines(*map(timeline_of, record.rows), notes=list(map(_note, record.rows)))


def timeline_of(row: dict) -> Timeline:
    """The run that a row has recorded: of each action its rank, itself as text, its start and its end in ms.

    Activations are in shares of a rank: where the model is cut into v stages for each rank, one of them keeps 1/v.
    """
    events = [Event(rank, parse(action), start, end) for rank, action, start, end in row["events"]]
    ranks = 1 + max(event.rank for event in events)
    stages = 1 + max(half.stage for event in events for half in event.action.halves)
    return Timeline.of(row["name"], events, ranks, Costs(activation=ranks / stages))


def _note(row: dict) -> str:
    beside = f", {row['ratio']:.3f} × torch's" if row["ratio"] else ""  # None where torch's was not measured
    idle = f"idle {row['bubble']:.1%}, simulated {row['bubble_simulated']:.1%}"
    return f"{row['tokens_s']:,.0f} tokens/s{beside}; {idle}"
