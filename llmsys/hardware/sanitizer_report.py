"""What `llmsys.hardware.sanitizer` has to say of kernels: each thing that went wrong, and the work that was counted."""

from collections import defaultdict
from dataclasses import dataclass, field

LOAD, STORE, RACE = "load outside", "store outside", "two programs stored to one address"
READ_RACE = "one program stored what another one loaded"
LANE_RACE = "two lanes of one store gave one address two values"
MOST_FINDINGS = 50  # a kernel that is wrong everywhere does not need more to be understood


@dataclass(frozen=True)
class Finding:
    """One thing that went wrong in one load or store of one program."""

    kind: str  # LOAD, STORE, RACE, READ_RACE or LANE_RACE
    kernel: str
    program: tuple[int, int, int]
    lanes: tuple[int, ...]  # flat positions in the tile
    tensor: str  # the one that was missed, or in which there is a race
    where: str  # "3 elements past its end"
    line: int | None = None
    source: str = ""
    did: str = "stored to"  # what the lanes of a race did

    def __str__(self) -> str:
        lanes = f"{len(self.lanes)} lane{'s' * (len(self.lanes) > 1)}"
        at = f"\n    line {self.line}: {self.source}" if self.source else ""
        if self.kind in (RACE, READ_RACE, LANE_RACE):
            return f"{self.kernel}, program {self.program}: {lanes} {self.did} {self.tensor} {self.where}{at}"
        what = f"{self.kind} its tensor, {lanes}, {self.where} {self.tensor}"
        return f"{self.kernel}, program {self.program}: {what}{at}"


@dataclass
class Report:
    """What the kernels did to memory inside a `watch`."""

    findings: list[Finding] = field(default_factory=list)
    undecided: list[Finding] = field(default_factory=list)  # races, or none: the order cannot be seen here
    bytes_loaded: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    bytes_stored: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    multiply_adds: dict[str, int] = field(default_factory=lambda: defaultdict(int))  # by tl.dot: "fp16" -> how many
    operations: dict[str, int] = field(default_factory=lambda: defaultdict(int))  # "load", "store", "dot" -> how many
    programs: int = 0  # in all launches together

    @property
    def ok(self) -> bool:
        """Nothing was touched that should not be."""
        return not self.findings

    def __str__(self) -> str:
        traffic = [
            f"  {name}: {self.bytes_loaded.get(name, 0):,} bytes loaded, {self.bytes_stored.get(name, 0):,} stored"
            for name in dict.fromkeys([*self.bytes_loaded, *self.bytes_stored])
        ]
        found = _lines(self.findings)
        verdict = "no access outside the tensors, no races" if self.ok else "memory errors:"
        if self.undecided:
            verdict = "no access outside the tensors" if self.ok else verdict
            found += ["  whether there are races here is not known: their order cannot be seen in the interpreter"]
            found += _lines(self.undecided)
        if not self.programs:
            verdict = "nothing was watched"
        return "\n".join([f"{self.programs} programs: {verdict}", *found, *traffic])


def _lines(findings: list[Finding]) -> list[str]:
    more = ["  …"] if len(findings) >= MOST_FINDINGS else []
    return [f"  {finding}" for finding in findings] + more
