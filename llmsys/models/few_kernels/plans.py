"""How the step's work is cut into programs: a rule, from a model's sizes, and what was measured for it."""

from dataclasses import dataclass, replace

from llmsys.models.llama import LlamaConfig

SMS = 132  # of the H100 and H200, for which the rule is


@dataclass(frozen=True)
class Tile:
    """Rows of a matrix that a program has, and its warps."""

    rows: int
    warps: int


@dataclass(frozen=True)
class Plan:
    """How each kernel is cut up. Sizes are powers of two."""

    qkv: Tile
    output: Tile
    gate_up: Tile  # rows of each half
    down: Tile
    head: Tile
    head_programs: int  # on an SM
    splits: int  #        into how many parts attention to the keys of one sequence is cut
    block_n: int  #       keys of a tile
    attention_warps: int

    def splits_of(self, S: int) -> int:
        """Parts of each of S sequences: programs that put them together read those of all sequences, so the parts of a
        step stay about as many as those of one sequence."""
        return max(min(2, self.splits), self.splits // power_from(S))

    def but(self, **changes) -> "Plan":
        return replace(self, **changes)


def plan_for(config: LlamaConfig, itemsize: int = 2, sms: int = SMS) -> Plan:
    """A program has about 12 KB of weights, in one warp's registers, and there are three programs for two SMs at least.

    The output's programs are as many as SMs: each puts the parts of attention together, which is as many bytes again.
    """
    C, I, D = config.hidden_size, config.mlp_size, config.head_size
    heads = config.heads * D
    splits = max(4, min(16, _down_to_power(64 // config.kv_heads)))
    return Plan(
        qkv=_tile(heads + 2 * config.kv_heads * D, C * itemsize, sms),
        output=_output_tile(C, heads * itemsize, sms),
        gate_up=_tile(I, 2 * C * itemsize, sms),
        down=_tile(C, I * itemsize, sms),
        head=Tile(max(1, _down_to_power(8192 // power_from(C))), 2),
        head_programs=8,
        splits=splits,
        block_n=max(16, min(64, 512 // splits)),
        attention_warps=4,
    )


def _tile(N: int, row_bytes: int, sms: int) -> Tile:
    rows = max(1, min(_down_to_power(12 * 1024 // row_bytes), _down_to_power(N * 2 // (3 * sms)), 16))
    return Tile(rows, power_from(-(-rows * row_bytes // (12 * 1024))))


def _output_tile(C: int, row_bytes: int, sms: int) -> Tile:
    rows = max(1, min(_down_to_power(32 * 1024 // row_bytes), power_from(-(-C // sms))))
    return Tile(rows, max(1, min(8, power_from(-(-rows * row_bytes // (8 * 1024))))))


def piece_of(K: int, rows: int, warps: int) -> int:
    """Columns of a piece: as many as all lanes load at once, 16 bytes each, and a divisor of K where there is one."""
    widest = 256 * warps
    divisor = K & -K
    if divisor >= 32:
        return min(widest, divisor)
    return min(widest, power_from(K))


def power_from(n: int) -> int:
    """The next power of two from n on."""
    return 1 << max(n - 1, 0).bit_length()


def _down_to_power(n: int) -> int:
    return 1 << max(n, 1).bit_length() - 1
