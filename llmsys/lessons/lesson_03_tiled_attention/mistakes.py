"""Wrong answers to lesson 03, as people write them: a right one with an edit (`llmsys.course.checking.mistakes`)."""

import math

import torch

from llmsys.course.checking.diagnosis import misconception
from llmsys.course.checking.mistakes import Mistakes
from llmsys.hardware.memory import DIRECT

# 03.attend_one_query


def attend_one_query(q, k, v, *, tile=16):
    """A right answer."""
    m, l = torch.tensor(-math.inf), torch.tensor(0.0)
    o = torch.zeros(v.shape[1])
    for start in range(0, k.shape[0], tile):
        s = k[start : start + tile] @ q / math.sqrt(q.shape[0])
        m_new = torch.maximum(m, s.max())
        shrink = torch.exp(m - m_new)
        p = torch.exp(s - m_new)
        l_new = l * shrink + p.sum()
        o = o * (l * shrink / l_new) + (p / l_new) @ v[start : start + tile]
        m, l = m_new, l_new
    return o


wrong_query = Mistakes("03.attend_one_query", attend_one_query)

wrong_query(
    "o_not_rescaled",
    "What is in o keeps the old denominator.",
    (" * (l * shrink / l_new)", ""),
    why="It was divided by the old ℓ: times ℓ, divided by ℓ_new, and times e^(m − m_new) where the maximum rose. (To "
    "shrink it by e^(m − m_new) alone is the rule for an o that is not divided before the end.)",
)
wrong_query(
    "old_l_forgotten",
    "You divide what is in o by the new ℓ without multiplying it by the old one.",
    ("l * shrink / l_new", "shrink / l_new"),
    why="o is already divided by the old ℓ. To change the denominator, the old one has to come out first.",
)
wrong_query(
    "no_maximum_in_o",
    "You change o's denominator, but not its maximum.",
    ("l * shrink / l_new", "l / l_new"),
    why="The old weights were taken under m_old: they also shrink by e^(m_old − m_new).",
)
wrong_query(
    "never_divided",
    "What a tile adds to o is not divided by ℓ_new.",
    ("(l * shrink / l_new)", "shrink"),
    ("(p / l_new)", "p"),
    why="In (3), both terms stand above ℓ_new. This one is a numerator, the sum of e^(s − m) v: its weights do not sum "
    "to one.",
)
wrong_query(
    "no_scale",
    "You leave out the scale 1/√Dk.",
    (" / math.sqrt(q.shape[0])", ""),
    why="The scores are q · k / √Dk.",
)
wrong_query(
    "maximum_from_zero",
    "You start with a maximum of 0.",
    ("-math.inf", "0.0"),
    why="Where all scores are far below 0, every e^(s − 0) vanishes and o is 0/0. The maximum of nothing is −∞.",
)
wrong_query(
    "l_not_rescaled",
    "You do not rescale ℓ when the maximum rises.",
    ("l * shrink + p.sum()", "l + p.sum()"),
    why="Its terms were taken under m_old: ℓ · e^(m_old − m_new) comes first, while m_old is still at hand.",
)
wrong_query(
    "nothing_rescaled",
    "Neither ℓ nor o changes its maximum when it rises.",
    ("l * shrink + p.sum()", "l + p.sum()"),
    ("l * shrink / l_new", "l / l_new"),
    why="Both shrink by e^(m_old − m_new), which is taken while m is still the old one.",
)
wrong_query(
    "scale_of_v",
    "You scale by the size of a value, 1/√Dv.",
    ("math.sqrt(q.shape[0])", "math.sqrt(v.shape[1])"),
    why="A score is a sum over the Dk elements of a query and a key: 1/√Dk.",
)
wrong_query(
    "maximum_of_the_tile",
    "Your m_new is the maximum of the tile, not of all scores so far.",
    ("torch.maximum(m, s.max())", "s.max()"),
    why="Where the scores fall, e^(m − m_new) then has a positive exponent, and overflows. The maximum never falls.",
)
wrong_query(
    "no_ragged_end",
    "You leave out the last tile where it is not full.",
    ("range(0, k.shape[0], tile)", "range(0, k.shape[0] // tile * tile, tile)"),
    why="T // tile counts full tiles. range(0, T, tile) begins the short one, too.",
)


@misconception(
    "03.attend_one_query",
    "You compute all the scores first.",
    why="That is a row of T: with all queries, the score matrix. A tile of k is loaded, used and forgotten.",
)
def all_scores_first(q, k, v, *, tile=16):
    p = torch.exp((s := k @ q / math.sqrt(q.shape[0])) - s.max())
    return (p / p.sum()) @ v


# 03.tiled_attention


def tiled_attention(q, k, v, *, causal=False, scale=None, return_lse=False, block_q=64, block_k=64, hbm=DIRECT):
    """A right answer."""
    B, Hq, Tq, Dk = q.shape
    Hkv, Tk, Dv = v.shape[1:]
    G = Hq // Hkv
    scale = 1 / math.sqrt(Dk) if scale is None else scale
    o, lse = hbm.empty((B, Hq, Tq, Dv), name="o"), hbm.empty((B, Hq, Tq), name="lse")
    q_groups, o_groups, lse_groups = (x.unflatten(1, (Hkv, G)) for x in (q, o, lse))
    offset = Tk - Tq
    for i in range(0, Tq, block_q):
        rows = min(block_q, Tq - i)
        Q = hbm.load(q_groups[..., i : i + rows, :]).flatten(2, 3) * scale
        m, l, O = Q.new_full(Q.shape[:3], -math.inf), Q.new_zeros(Q.shape[:3]), Q.new_zeros(*Q.shape[:3], Dv)
        stop = min(max(i + rows + offset, 0), Tk) if causal else Tk
        for j in range(0, stop, block_k):
            end = min(j + block_k, stop)
            K, V = hbm.load(k[:, :, j:end]), hbm.load(v[:, :, j:end])
            S = Q @ K.mT
            if causal:
                query = torch.arange(i, i + rows)[:, None] + offset
                S.unflatten(2, (G, rows)).masked_fill_(torch.arange(j, end) > query, -math.inf)
            m_new = torch.maximum(m, S.amax(dim=-1))
            finite = torch.where(m_new == -math.inf, 0.0, m_new)
            P, shrink = torch.exp(S - finite[..., None]), torch.exp(m - finite)
            l = l * shrink + P.sum(dim=-1)
            O = O * shrink[..., None] + P @ V
            m = m_new
        some = torch.where(l > 0, l, 1.0)
        O = O / some[..., None]
        hbm.store(o_groups[..., i : i + rows, :], O.unflatten(2, (G, rows)))
        hbm.store(lse_groups[..., i : i + rows], (m + torch.log(some)).unflatten(2, (G, rows)))
    return (o, lse) if return_lse else o


wrong_attention = Mistakes("03.tiled_attention", tiled_attention)

wrong_attention(
    "only_l_rescaled",
    "You rescale ℓ when the maximum rises, but not o.",
    ("O * shrink[..., None] + P @ V", "O + P @ V"),
    why="o is a sum under the same maximum, of the same terms times v: whatever happens to ℓ happens to o.",
)
wrong_attention(
    "not_divided",
    "You never divide by ℓ.",
    ("O / some[..., None]", "O"),
    why="With the deferred division, o is the numerator until the last tile; before it is stored, it is divided.",
)
wrong_attention(
    "top_left",
    "Your mask is aligned top-left: query i sees the keys up to i.",
    ("offset = Tk - Tq", "offset = 0"),
    why="The last query is the last token. With more keys than queries (a cache!), query i stands at i + Tk − Tq.",
)
wrong_attention(
    "strictly_before",
    "A query does not see its own key.",
    ("offset = Tk - Tq", "offset = Tk - Tq - 1"),
    why="Causal means up to and including itself: key ≤ query + Tk − Tq.",
)
wrong_attention(
    "no_diagonal",
    "You leave out the tile on the diagonal.",
    ("min(max(i + rows + offset, 0), Tk) if", "min(max(i + 1 + offset, 0), Tk) // block_k * block_k if"),
    why="Some of its queries see some of its keys: it is the one that needs a mask, not the one to skip.",
)
wrong_attention(
    "not_masked",
    "You skip tiles, but do not mask inside the ones that remain.",
    ("                S.unflatten(2, (G, rows)).masked_fill_(torch.arange(j, end) > query, -math.inf)\n", ""),
    why="In the tile on the diagonal, early queries would see later keys.",
)
wrong_attention(
    "blind_queries",
    "A query that sees no key makes a NaN.",
    ("torch.where(m_new == -math.inf, 0.0, m_new)", "m_new"),
    ("torch.where(l > 0, l, 1.0)", "l"),
    why="Its maximum is −∞, and −∞ − (−∞) is NaN; so is 0/0. Subtract 0 there, and divide by 1.",
)
wrong_attention(
    "blind_in_a_tile",
    "A query that sees no key in a tile makes a NaN.",
    ("torch.where(m_new == -math.inf, 0.0, m_new)", "m_new"),
    why="Its maximum is still −∞, and −∞ − (−∞) is NaN. Where m_new is −∞, subtract 0 instead.",
)
wrong_attention(
    "only_o_rescaled",
    "You do not rescale ℓ when the maximum rises.",
    ("l * shrink + P.sum(dim=-1)", "l + P.sum(dim=-1)"),
    why="Its terms were taken under m_old: ℓ · e^(m_old − m_new) comes first, as for o.",
)
wrong_attention(
    "neither_rescaled",
    "Neither ℓ nor o is rescaled when the maximum rises.",
    ("l * shrink + P.sum(dim=-1)", "l + P.sum(dim=-1)"),
    ("O * shrink[..., None] + P @ V", "O + P @ V"),
    why="Both shrink by e^(m_old − m_new), which is taken while m is still the old one.",
)
wrong_attention(
    "scale_not_asked",
    "You do not use the scale that is given.",
    ("1 / math.sqrt(Dk) if scale is None else scale", "1 / math.sqrt(Dk)"),
    why="1/√Dk is what None stands for. A model may have a scale of its own.",
)
wrong_attention(
    "hidden_by_a_number",
    "You hide a score behind a large negative number instead of −∞.",
    ("query, -math.inf)", "query, -1e9)"),
    why="A row that sees no key has that number everywhere, and as its maximum: all weights are 1, and o is a mean "
    "of values that it must not see.",
)
wrong_attention(
    "attention_from_zero",
    "You start with a maximum of 0.",
    ("Q.new_full(Q.shape[:3], -math.inf)", "Q.new_zeros(Q.shape[:3])"),
    why="Where all scores are far below 0, every e^(s − 0) vanishes and ℓ is 0. The maximum of nothing is −∞.",
)
wrong_attention(
    "maximum_before_mask",
    "You take the maximum before you mask.",
    ("            m_new = torch.maximum(m, S.amax(dim=-1))\n", ""),
    ("            S = Q @ K.mT\n", "            S = Q @ K.mT\n            m_new = torch.maximum(m, S.amax(dim=-1))\n"),
    why="A key that the query must not see then sets its m: where it is far above, all that it does see vanishes.",
)
wrong_attention(
    "last_tile_whole",
    "You load the last tile of keys whole.",
    ("min(j + block_k, stop)", "min(j + block_k, Tk)"),
    why="Some of its keys are seen by no query of the tile: let the slice end where they begin.",
)
wrong_attention(
    "interleaved_groups",
    "Your groups are interleaved: query head h reads key head h % Hkv.",
    ("x.unflatten(1, (Hkv, G))", "x.unflatten(1, (G, Hkv)).transpose(1, 2)"),
    why="The query heads of a group are neighbours: q.unflatten(1, (Hkv, G)), not (G, Hkv).",
)
wrong_attention(
    "rows_interleaved_in_the_mask",
    "Your mask takes the rows to be interleaved, and they are stacked: row r is not query r // G of the tile.",
    (
        "S.unflatten(2, (G, rows)).masked_fill_(torch.arange(j, end) > query, -math.inf)",
        "S.masked_fill_(torch.arange(j, end) > query.repeat_interleave(G, dim=0), -math.inf)",
    ),
    why="flatten(2, 3) puts whole heads below each other: 0, 1, 2, 0, 1, 2, …, which is query.repeat(G). "
    "repeat_interleave makes 0, 0, 0, 1, 1, 1, ….",
)
wrong_attention(
    "base_two",
    "Your log-sum-exp is in base two.",
    ("torch.log(some)", "torch.log2(some)"),
    why="The contract is natural: lse = m + ln ℓ.",
)
wrong_attention(
    "no_logarithm",
    "Your lse is m + ℓ, without the logarithm.",
    ("torch.log(some)", "l"),
    why="ln(e^m · ℓ) = m + ln ℓ.",
)
wrong_attention(
    "maximum_for_lse",
    "Your lse is the maximum alone.",
    (" + torch.log(some)", ""),
    why="The sum of the exponentials is e^m · ℓ, and its logarithm m + ln ℓ.",
)
wrong_attention(
    "lse_on_request",
    "You store lse only where it is returned.",
    ("        hbm.store(lse_groups", "        if return_lse:\n            hbm.store(lse_groups"),
    why="It is stored beside o in any case: the backward pass and whoever merges results read it.",
)
wrong_attention(
    "keys_per_head",
    "You load K and V once for each query head of a group.",
    ("            K, V = ", "            for _ in range(G):\n                K, V = "),
    why="The heads of a group share their keys: stack their rows in one tile, and one load serves all of them.",
)
wrong_attention(
    "queries_again",
    "You load q again for every tile of keys.",
    (
        "            S = Q @ K.mT\n",
        "            Q = hbm.load(q_groups[..., i : i + rows, :]).flatten(2, 3) * scale\n            S = Q @ K.mT\n",
    ),
    why="It stays on the chip for the whole inner loop: load it before.",
)
wrong_attention(
    "stored_after_every_tile",
    "You store o after every tile of keys.",
    (
        "        hbm.store(o_groups[..., i : i + rows, :], O.unflatten(2, (G, rows)))\n",
        "        if not stop:\n            hbm.store(o_groups[..., i : i + rows, :], O.unflatten(2, (G, rows)))\n",
    ),
    (
        "            m = m_new\n",
        "            m = m_new\n"
        "            some = torch.where(l > 0, l, 1.0)[..., None]\n"
        "            hbm.store(o_groups[..., i : i + rows, :], (O / some).unflatten(2, (G, rows)))\n",
    ),
    why="It is not finished, and it is on the chip anyway. One store, after the inner loop.",
)
wrong_attention(
    "loads_all",
    "With causal, you load tiles that no query of the tile sees, and mask them away.",
    ("min(max(i + rows + offset, 0), Tk) if causal else Tk", "Tk"),
    why="The result is right; half of the traffic and of the products is for nothing. End the inner loop earlier.",
)
wrong_attention(
    "whole_matrix",
    "You compute all scores of a head at once (or in tiles of a size of your own, which here is all of it).",
    ("G = Hq // Hkv", "G, block_q, block_k = Hq // Hkv, Tq, Tk"),
    why="That is the T × T matrix that this is about. block_q queries meet block_k keys, never more.",
)

# 03.tiled_bytes


def tiled_bytes(T, D, block_q, *, itemsize=4, causal=False):
    """A right answer."""
    total = 2 * T * D * itemsize + 4 * T
    for start in range(0, T, block_q):
        seen = min(start + block_q, T) if causal else T
        total += 2 * seen * D * itemsize
    return total


wrong_bytes = Mistakes("03.tiled_bytes", tiled_bytes)

wrong_bytes(
    "keys_once",
    "You count K and V once, whatever the tile is.",
    ("range(0, T, block_q)", "range(1)"),
    ("min(start + block_q, T) if causal else T", "T"),
    why="That is said often, and true only if all of q fits on the chip. They stream by once for each tile of queries.",
)
wrong_bytes(
    "only_keys",
    "You count K, but not V.",
    ("2 * seen", "seen"),
    why="Both stream by: 2·T·D elements a query tile.",
)
wrong_bytes(
    "full_tiles_only",
    "You count only the full tiles of queries.",
    ("range(0, T, block_q)", "range(0, T // block_q * block_q, block_q)"),
    why="A last tile that is not full loads as many keys as a full one: ceil(T / block_q) tiles.",
)
wrong_bytes(
    "no_lse",
    "You forget the log-sum-exp.",
    (" + 4 * T", ""),
    why="It is stored, too: T numbers in fp32.",
)
wrong_bytes(
    "lse_in_itemsize",
    "You count the log-sum-exp in the elements' size.",
    ("4 * T", "itemsize * T"),
    why="It is kept in fp32 in every precision: 4 bytes a row.",
)
wrong_bytes(
    "half_of_the_keys",
    "With causal, you take half of the keys for each tile.",
    ("min(start + block_q, T)", "T // 2"),
    why="A tile loads the keys up to its last query: on average T/2 + block_q/2, because the diagonal tile is whole.",
)
wrong_bytes(
    "before_the_diagonal",
    "With causal, you leave out the tile on the diagonal.",
    ("min(start + block_q, T)", "start"),
    why="Its queries see part of it, so it has to be loaded: up to the tile's last query, and that one included.",
)
wrong_bytes(
    "beyond_the_end",
    "With causal, your last tile loads keys beyond the end.",
    ("min(start + block_q, T)", "start + block_q"),
    why="Where block_q does not divide T, it has fewer queries: it sees the T keys that there are.",
)
wrong_bytes(
    "not_causal",
    "You do not count causal any differently.",
    ("min(start + block_q, T) if causal else T", "T"),
    why="The first tile of queries sees its own keys and no others; only the last one loads all of them.",
)
wrong_bytes(
    "one_key_short",
    "With causal, you are one key short for each tile.",
    ("min(start + block_q, T)", "min(start + block_q, T) - 1"),
    why="Query i sees itself, too: that makes i + 1 keys.",
)
