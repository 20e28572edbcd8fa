"""DualPipeV: DualPipe cut in half (https://hackmd.io/@ufotalent/r1lVXsa9Jg; in DeepSeek's and torch's code, too).

DualPipe is symmetric: rank r and rank 2P − 1 − r of 2P do the same, each for the other direction's microbatches. So
keep the first half of the ranks, and let what used to arrive from the other half come from the rank itself. Rank r has
stages r of replica 0 and 2P − 1 − r of replica 1; call them stages of one replica, and the k-th microbatch of the
other direction the k-th: what goes down the ranks on stages 0 … P − 1 comes up again on stages P … 2P − 1, a V.

Half of the ranks, half of the microbatches, the same bubble and activations a rank, and one copy of the weights instead
of two: two stages a rank of a model that is cut into as many.
"""

from llmsys.parallel.pipeline.actions import Action, Kind, pair
from llmsys.parallel.pipeline.dualpipe import dualpipe
from llmsys.parallel.pipeline.placement import at_least, bidirectional, v_shaped
from llmsys.parallel.pipeline.schedule import Schedule


def dualpipe_v(num_ranks: int, num_microbatches: int) -> Schedule:
    """Bubble (P − 1)(FB + B − 3W) where F = I ≥ W; 2P + 1 activations of a stage, which is half of a rank's share.

    num_microbatches must be at least 2 · num_ranks, the number of stages.
    """
    at_least("num_ranks", num_ranks, 1)
    at_least("num_microbatches", num_microbatches, 1)
    if num_microbatches < 2 * num_ranks:
        raise ValueError(
            f"num_microbatches must be at least the {2 * num_ranks} stages, so that the pipeline fills; got "
            f"{num_microbatches}, try {2 * num_ranks}"
        )
    return fold(dualpipe(2 * num_ranks, 2 * num_microbatches))


def fold(schedule: Schedule) -> Schedule:
    """The first half of the ranks of a DualPipe schedule, as a schedule of one replica on a V."""
    if schedule.placement != bidirectional(schedule.num_ranks) or schedule.num_ranks % 2:
        raise ValueError(
            f"schedule must be bidirectional and on an even number of ranks; {schedule.name} is "
            f"{schedule.placement.name}, on {schedule.num_ranks}"
        )
    half = schedule.num_ranks // 2
    share = schedule.num_microbatches // 2
    orders = [[_one_replica(action, share) for action in schedule.orders[rank]] for rank in range(half)]
    return Schedule(f"{schedule.name}-v", v_shaped(half), share, orders)


def _one_replica(action: Action, share: int) -> Action:
    if action.kind is Kind.FB:
        return pair(_one_replica(action.forward, share), _one_replica(action.backward, share))
    return Action(action.kind, action.stage, action.microbatch - action.replica * share)
