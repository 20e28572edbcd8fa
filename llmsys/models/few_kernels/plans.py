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
    block_n: int  #        keys of a tile of attention
    max_splits: int  #     parts into which attention to the keys of one sequence is cut at most
    parts_at_once: int  #  of these, that are loaded together to be put together
    attention_warps: int

    def but(self, **changes) -> "Plan":
        return replace(self, **changes)


def plan_for(config: LlamaConfig, S: int = 1, itemsize: int = 2, sms: int = SMS) -> Plan:
    """For steps of S sequences. A program has about 12 KB of weights, in one warp's registers, and there are three
    programs for two SMs at least. With several sequences it has half of that: weights are kept as fp32 then.

    With one sequence the output's programs are fewer and larger: each puts the parts of attention together, which is as
    many bytes again.
    """
    C, I, D = config.hidden_size, config.mlp_size, config.head_size
    heads, block_n = config.heads * D, max(16, 4096 // D)
    room = 12 * 1024 if S == 1 else 6 * 1024
    return Plan(
        qkv=_pairs(_tile(heads + 2 * config.kv_heads * D, C * itemsize, sms, room), D),
        output=_output_tile(C, heads * itemsize, sms) if S == 1 else _tile(C, heads * itemsize, sms, room),
        gate_up=_tile(I, 2 * C * itemsize, sms, room),
        down=_tile(C, I * itemsize, sms, room),
        head=Tile(max(1, _down_to_power(8192 // power_from(C))), 2),
        head_programs=8,
        block_n=block_n,
        max_splits=max(1, 2048 // block_n),
        parts_at_once=max(1, 512 // block_n),
        attention_warps=1,
    )


def _tile(N: int, row_bytes: int, sms: int, room: int) -> Tile:
    rows = max(1, min(_down_to_power(room // row_bytes), _down_to_power(N * 2 // (3 * sms)), 16))
    return Tile(rows, power_from(-(-rows * row_bytes // room)))


def _pairs(tile: Tile, D: int) -> Tile:
    """Two rows that turn together at least, and of one head."""
    return Tile(min(max(2, tile.rows), D), tile.warps)


def _output_tile(C: int, row_bytes: int, sms: int) -> Tile:
    rows = max(1, min(_down_to_power(64 * 1024 // row_bytes), 2 * power_from(-(-C // sms))))
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
