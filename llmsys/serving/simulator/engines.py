"""How many engines there are of which kind, and how each is made, again where one has died."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from llmsys.models.sampling import whole_number
from llmsys.serving.policies import Policy
from llmsys.serving.simulator.instance import Instance
from llmsys.serving.simulator.phases import Decoder, Part, Prefiller
from llmsys.serving.telemetry.events import EventLog

Send = Callable[[int, int, int, Sequence[Part]], Mapping[str, int]]
"""As a `Prefiller` has it, after the prefiller's number."""


@dataclass(frozen=True)
class Placement:
    """How many engines there are of each kind: `colocated` ones, or else at least one that computes prompts and at
    least one that decodes. Each has one GPU. ValueError for anything else."""

    colocated: int = 0
    prefill: int = 0
    decode: int = 0

    def __post_init__(self):
        for name in ("colocated", "prefill", "decode"):
            whole_number(name, getattr(self, name), at_least=0)
        if bool(self.prefill) != bool(self.decode) or bool(self.colocated) == bool(self.prefill):
            raise ValueError(
                "a placement must have colocated engines, or else some for prefill and some for decode, got "
                f"colocated {self.colocated}, prefill {self.prefill}, decode {self.decode}"
            )

    @property
    def gpus(self) -> int:
        return self.colocated + self.prefill + self.decode

    def __str__(self) -> str:
        return f"{self.colocated} colocated" if self.colocated else f"{self.prefill} prefill, {self.decode} decode"


def makers(
    placement: Placement,
    settings: dict,
    differing: tuple[dict, dict],
    logs: Sequence[EventLog],
    *,
    send: Send,
    alone: bool,
) -> list[Callable[[], Instance]]:
    """What makes each engine, whose log is its own however often it is made.

    differing      settings of prefillers and of decoders, where they are others
    alone          one engine, made once: its policy may be one, and not what makes one
    """
    of_prefill, of_decode = (settings | each for each in differing)

    def make(i: int, log: EventLog) -> Instance:
        if placement.colocated:
            return Instance(**_own(settings, log, alone=alone))
        if i < placement.prefill:
            return Prefiller(**_own(of_prefill, log), send=functools.partial(send, i))
        return Decoder(**_own(of_decode, log))

    return [functools.partial(make, i, log) for i, log in enumerate(logs)]


def new_policy(policy: object) -> str | Policy:
    """What `policy` names or makes. ValueError for a policy itself, which may remember another run."""
    if isinstance(policy, str):
        return policy
    if not isinstance(policy, type) and hasattr(policy, "turns"):
        raise ValueError("policy must be a name, or what makes a policy (its class), for each run needs a new one")
    if not callable(policy):
        raise ValueError(f"policy must be a name, or what makes a policy (its class), got {policy!r}")
    return policy()


def _own(settings: dict, events: EventLog, *, alone: bool = False) -> dict:
    """An engine's settings, with a log and a policy of its own."""
    policy = settings["policy"]
    kept = alone and not isinstance(policy, type) and hasattr(policy, "turns")
    return settings | dict(events=events, policy=policy if kept else new_policy(policy))
