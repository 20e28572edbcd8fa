"""How the step's work is cut into programs: a rule, from a model's sizes, and what was measured for it.

Microseconds a step, on an H200 (torch 2.11, Triton 3.6): replays of CUDA graphs in turn, medians of 9, 500 keys a
sequence, bf16, of the shapes of Qwen3-0.6B and SmolLM2-135M:

    S                              1      2      4      8     16
    Qwen3    first form          586    733   1074   2020   5231
             second form         610    762   1159   1577   5063
             FusedForward       1278   1269   1346   1265   1419
    SmolLM2  first form          389    535    787   1259   2874
             second form         410    469    678   1077   1712
             FusedForward       1036   1119   1113   1113   1139

So up to four sequences these kernels are sooner done, and from eight on the library's products are. For a wide model
that holds for one sequence alone: a decode step of the engine, of Mistral-7B's shape (4,096 wide), took 3.9 ms with
these kernels and one sequence, 8.7 with two, 23 with three or four; and 4.7 without them and with five.
`most_sequences` says so. Both forms are steps on the way to what is here. In the first, every program of the output's
kernel put together the parts of all sequences, and attention had four warps; in the second attention was sums in
programs of one warp, which took longer by itself (3.8 and 4.1 of a layer's microseconds), and with several sequences
`merge_kernel` put the parts together. What is here is the attention of the first and the merge of the second, with the
cuts that were better in the first when each was changed alone (Qwen3, S = 1, of 586: attention with eight warps 543,
two rows of qkv 573, 16 rows of output 576; SmolLM2, of 389: tiles of 64 keys 362, 16 rows of output 363).

In the engine a step of what is here takes 548 and 363 at S = 1 and 404 keys
(`bench/recorded/serving-nvidia-h200.json`). Without dependent launches the first form took 787 and 524 at S = 1. With
4000 keys, 1144 and 714.
"""

from dataclasses import dataclass, replace

from llmsys.models.llama import LlamaConfig

SMS = 132  # of the H100 and H200, for which the rule is
ROOM = 12 * 1024  # bytes of weights in a warp's registers


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
    splits: int  #        parts into which attention to the keys of a sequence is cut
    block_n: int  #       keys of a tile of attention
    attention_warps: int

    def but(self, **changes) -> "Plan":
        return replace(self, **changes)


def most_sequences(config: LlamaConfig) -> int:
    """Sequences up to which a step in few kernels is sooner done than one of the library's products and fused kernels:
    as measured for models up to 1,024 wide; for wider ones, as for one of 4,096."""
    return 4 if config.hidden_size <= 1024 else 1


def plan_for(config: LlamaConfig, S: int = 1, itemsize: int = 2, sms: int = SMS) -> Plan:
    """For steps of S sequences. A warp has about 12 KB of weights, a program one warp, and there are three programs for
    two SMs at least.

    With one sequence the output's programs are fewer and larger: each puts the parts of attention together, which is as
    many bytes again. With several a warp has fewer rows where there would be too little room for all sequences' sums.
    """
    C, I, D = config.hidden_size, config.mlp_size, config.head_size
    heads, qkv = config.heads * D, (config.heads + 2 * config.kv_heads) * D
    one, whole = S == 1, C % 256 == 0  # whole: all lanes of a warp are in one row, else each has x for its own
    return Plan(
        qkv=_tile(qkv, C * itemsize, sms, ROOM // 2 if one else ROOM if whole else ROOM // 4),
        output=_output_tile(C, heads * itemsize, sms) if one else _added_tile(C, heads, itemsize, sms),
        gate_up=_tile(I, 2 * C * itemsize, sms, ROOM if one or whole else ROOM // 2),
        down=_tile(C, I * itemsize, sms, ROOM) if one else _added_tile(C, I, itemsize, sms),
        head=Tile(max(1, _down_to_power(8192 // power_from(C))), 2),
        head_programs=8,
        splits=8,
        block_n=64,
        attention_warps=8 if D > 64 and S <= 2 else 4,  # an SM holds one program of eight warps, two of four
    )


def _tile(N: int, row_bytes: int, sms: int, room: int) -> Tile:
    rows = max(1, min(_down_to_power(room // row_bytes), _down_to_power(N * 2 // (3 * sms)), 16))
    return Tile(rows, power_from(-(-rows * row_bytes // room)))


def _added_tile(C: int, K: int, itemsize: int, sms: int) -> Tile:
    """Of a product (C, K) that is added to several residuals: a row a warp, in programs of up to eight warps. They add
    up their squares, of which the next kernel's many programs then have fewer to read."""
    if K % 256 == 0:
        for warps in (8, 4, 2):
            if C >= 0.9 * sms * warps:
                return Tile(warps, warps)
    return _tile(C, K * itemsize, sms, ROOM // 2)


def _output_tile(C: int, row_bytes: int, sms: int) -> Tile:
    rows = max(1, min(_down_to_power(64 * 1024 // row_bytes), 2 * power_from(-(-C // sms))))
    return Tile(rows, max(1, min(8, power_from(-(-rows * row_bytes // (8 * 1024))))))


def piece_of(K: int, rows: int, warps: int) -> int:
    """Columns of a piece: as many as all lanes load at once, 16 bytes each, and a divisor of K where there is one.

    Where there are fewer rows than warps, warps share rows, and their columns.
    """
    widest = 256 * max(1, warps // rows)
    divisor = K & -K
    if divisor >= 32:
        return min(widest, divisor)
    return min(widest, power_from(K))


def power_from(n: int) -> int:
    """The next power of two from n on."""
    return 1 << max(n - 1, 0).bit_length()


def _down_to_power(n: int) -> int:
    return 1 << max(n, 1).bit_length() - 1
