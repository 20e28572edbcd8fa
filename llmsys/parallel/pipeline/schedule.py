"""A schedule is data: for each rank of a pipeline, which actions it does, in which order.

    schedule = one_f_one_b(num_ranks=4, num_microbatches=8)
    schedule.orders[2]          # (2F0, 2F1, 2B0, 2F2, 2B1, …): what rank 2 does
    validate(schedule)          # is it one?
    simulate(schedule)          # when is what done, how much is idle, how much is kept?

It says nothing of time: a rank does its actions in order, each as soon as what it depends on is done (`dependencies`).
All that is known of a schedule (valid, how fast, how much memory, its picture) is worked out of this one object.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from llmsys.parallel.pipeline.actions import Action
from llmsys.parallel.pipeline.placement import Placement, at_least


@dataclass(frozen=True)
class Schedule:
    """What each rank does.

    Attributes
    ----------
    name
        What it is called, as in `SCHEDULES`.
    placement
        Which rank has which stage.
    num_microbatches
        Of the whole batch. With several replicas each takes an equal share, replica 0 the first ones.
    orders
        `orders[rank]` are its actions in order. Kept as tuples.
    """

    name: str
    placement: Placement
    num_microbatches: int
    orders: tuple[tuple[Action, ...], ...]

    def __post_init__(self):
        object.__setattr__(self, "orders", tuple(tuple(order) for order in self.orders))
        for rank, order in enumerate(self.orders):
            if strange := [each for each in order if not isinstance(each, Action)]:
                raise ValueError(
                    f"orders must be of actions, as F(0, 1) or parse('0F1') makes them; rank {rank} has {strange[0]!r}"
                )
        at_least("num_microbatches", self.num_microbatches, 1)
        if self.num_microbatches % self.num_replicas:
            raise ValueError(
                f"num_microbatches must be a multiple of the {self.num_replicas} replicas, each takes as many; got "
                f"{self.num_microbatches}"
            )
        if len(self.orders) != self.num_ranks:
            raise ValueError(
                f"orders must have a list of actions for each of the {self.num_ranks} ranks, got {len(self.orders)}"
            )

    @property
    def num_ranks(self) -> int:
        return self.placement.num_ranks

    @property
    def num_stages(self) -> int:
        """Stages of one replica."""
        return self.placement.num_stages

    @property
    def num_replicas(self) -> int:
        return self.placement.num_replicas

    def microbatches(self, replica: int = 0) -> range:
        """The microbatches that a replica computes."""
        share = self.num_microbatches // self.num_replicas
        return range(replica * share, (replica + 1) * share)

    def replica(self, microbatch: int) -> int:
        """Which replica computes a microbatch."""
        return microbatch * self.num_replicas // self.num_microbatches

    def rank(self, action: Action) -> int:
        """Which rank has the stage of an action (of a pair, its forward's)."""
        return self.placement.rank(action.stage, action.replica)

    def actions(self) -> Iterator[tuple[int, int, Action]]:
        """Every action, as (rank, place in the rank's order, action)."""
        for rank, order in enumerate(self.orders):
            for place, action in enumerate(order):
                yield rank, place, action

    def with_order(self, rank: int, order: Sequence[Action]) -> "Schedule":
        """The same schedule with another order for one rank."""
        return replace(self, orders=(*self.orders[:rank], tuple(order), *self.orders[rank + 1 :]))
