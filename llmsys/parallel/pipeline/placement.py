"""Placement: which rank has which stage of which replica.

A schedule's shape is nothing but this table. With 4 ranks:

    linear          stages 0 1 2 3                    one stage a rank
    looped          stages 0 1 2 3, 4 5 6 7           v chunks a rank: the pipeline runs round the ranks v times
    v_shaped        stages 0 1 2 3, 7 6 5 4           down the ranks and up again: the last rank has both middle stages,
                                                      and rank 0 the first and the last
    bidirectional   0 1 2 3 of replica 0,             two copies of the model in opposite directions: rank r has stage
                    3 2 1 0 of replica 1              r of one, and stage P − 1 − r of the other
"""

from dataclasses import dataclass, field
from numbers import Integral
from operator import index


@dataclass(frozen=True)
class Placement:
    """`ranks[replica][stage]` is the rank of that stage. `name` is for people: placements with equal ranks are
    equal."""

    name: str = field(compare=False)
    ranks: tuple[tuple[int, ...], ...]

    def __post_init__(self):
        try:
            table = tuple(tuple(map(index, row)) for row in self.ranks)
        except TypeError:
            raise ValueError(
                f"ranks must be a table of whole numbers, for each replica a row, as in ((0, 1),); got {self.ranks!r}"
            ) from None
        object.__setattr__(self, "ranks", table)
        if not table or not table[0]:
            raise ValueError("ranks must have a row for at least one replica, with the rank of at least one stage")
        if len({len(row) for row in table}) > 1:
            raise ValueError(f"ranks must have as many stages for each replica, got {[len(row) for row in table]}")
        used = {rank for row in table for rank in row}
        if used != set(range(len(used))):
            raise ValueError(f"ranks must be counted from 0, and each must have a stage; got ranks {sorted(used)}")

    @property
    def num_ranks(self) -> int:
        return 1 + max(max(row) for row in self.ranks)

    @property
    def num_stages(self) -> int:
        """Stages of one replica."""
        return len(self.ranks[0])

    @property
    def num_replicas(self) -> int:
        return len(self.ranks)

    def rank(self, stage: int, replica: int = 0) -> int:
        """Who has this stage."""
        return self.ranks[replica][stage]

    def stages(self, rank: int) -> tuple[tuple[int, int], ...]:
        """What a rank has, as (replica, stage), in order."""
        return tuple(
            (replica, stage)
            for replica, row in enumerate(self.ranks)
            for stage, owner in enumerate(row)
            if owner == rank
        )


def linear(num_ranks: int) -> Placement:
    """Stage s on rank s."""
    at_least("num_ranks", num_ranks, 1)
    return Placement("linear", (tuple(range(num_ranks)),))


def looped(num_ranks: int, chunks: int) -> Placement:
    """Stage s on rank s mod P: `chunks` stages a rank."""
    at_least("num_ranks", num_ranks, 1)
    at_least("chunks", chunks, 1)
    return Placement("looped", (tuple(range(num_ranks)) * chunks,))


def v_shaped(num_ranks: int) -> Placement:
    """Two stages a rank: stage s on rank s for s < P, and on rank 2P − 1 − s after that."""
    at_least("num_ranks", num_ranks, 1)
    down = tuple(range(num_ranks))
    return Placement("v-shaped", (down + down[::-1],))


def bidirectional(num_ranks: int) -> Placement:
    """Two replicas: stage s on rank s of the one, on rank P − 1 − s of the other."""
    at_least("num_ranks", num_ranks, 1)
    down = tuple(range(num_ranks))
    return Placement("bidirectional", (down, down[::-1]))


def at_least(argument: str, value: int, least: int) -> None:
    """ValueError unless `value` is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"{argument} must be a whole number of at least {least}, got {value!r}")
