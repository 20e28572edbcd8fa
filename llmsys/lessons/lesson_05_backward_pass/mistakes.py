"""Wrong answers to lesson 05, as people write them. Of both exercises a right answer stands first; each mistake is that
one, in which a line or two read otherwise. (Those of the Triton kernel: `kernel_mistakes`.)
"""

import torch

from llmsys.course.checking.mistakes import Mistakes

INTERLEAVED = (
    (".unflatten(1, (Hkv, G))", ".unflatten(1, (G, Hkv)).transpose(1, 2)"),
    ("dQ.unflatten(2, (G, -1))", "dQ.unflatten(2, (G, -1)).transpose(1, 2)"),
)

# (a) from the weights that were stored


def stored(q, k, v, p, do, *, scale=None):
    """A right answer."""
    Hkv = k.shape[1]
    G = q.shape[1] // Hkv
    scale = q.shape[3] ** -0.5 if scale is None else scale
    Q, P, dO = (x.unflatten(1, (Hkv, G)).flatten(2, 3) for x in (q, p, do))  # (B, Hkv, G·Tq, …)
    dV = P.mT @ dO
    dP = dO @ v.mT
    delta = (P * dP).sum(-1, keepdim=True)
    dS = P * (dP - delta)
    dQ = scale * (dS @ k)
    dK = scale * (dS.mT @ Q)
    return dQ.unflatten(2, (G, -1)).flatten(1, 2), dK, dV


UNSCALED_DQ = ("scale * (dS @ k)", "dS @ k")
UNSCALED_DK = ("scale * (dS.mT @ Q)", "dS.mT @ Q")

wrong = Mistakes("05.backward_stored", stored)

wrong(
    "no_delta",
    "You leave delta out: dS = P ∘ dP.",
    ("(dP - delta)", "dP"),
    why="A score also lowers all other weights of its row, through the denominator. That is what delta takes off.",
)
wrong(
    "logistic",
    "You differentiate each weight by its own score only: dS = P ∘ (1 − P) ∘ dP.",
    ("P * (dP - delta)", "P * (1 - P) * dP"),
    why="That is the diagonal of the softmax's Jacobian. Beside it stands −p_j p_j′: every score moves every weight.",
)
wrong(
    "delta_down_the_columns",
    "You sum P ∘ dP over the queries.",
    ("(P * dP).sum(-1, keepdim=True)", "(P * dP).sum(-2, keepdim=True)"),
    why="A softmax is a row's affair: delta is a number for each query, the sum over its keys, and it stays a column "
    "(keepdim=True).",
)
wrong(
    "delta_unweighted",
    "Your delta is the sum of dP, without P.",
    ("(P * dP).sum(-1, keepdim=True)", "dP.sum(-1, keepdim=True)"),
    why="It is the mean of the row's dP under the weights P: rowsum(P ∘ dP).",
)
wrong(
    "no_weights",
    "Your dS is dP − delta, without P.",
    ("P * (dP - delta)", "dP - delta"),
    why="A weight close to 0 hardly moves, whatever its score does: dS = P ∘ (dP − delta).",
)
wrong(
    "no_scale",
    "You leave the scale out of dQ and dK.",
    UNSCALED_DQ,
    UNSCALED_DK,
    why="S = scale · Q Kᵀ. What comes back through that product is multiplied by the scale, too.",
)
wrong(
    "scale_only_in_dq",
    "You scale dQ, but not dK.",
    UNSCALED_DK,
    why="S = scale · Q Kᵀ has the scale before both of its factors.",
)
wrong(
    "scale_only_in_dk",
    "You scale dK, but not dQ.",
    UNSCALED_DQ,
    why="S = scale · Q Kᵀ has the scale before both of its factors.",
)
wrong(
    "interleaved_groups",
    "Your groups are interleaved: query head h reads key head h % Hkv.",
    *INTERLEAVED,
    why="The query heads of a group are neighbours: x.unflatten(1, (Hkv, G)), not (G, Hkv).",
)
wrong(
    "mean_over_the_group",
    "You take the mean over the heads of a group.",
    (", dK, dV", ", dK / G, dV / G"),
    why="They all read the same K and V. What is used several times has the sum of the gradients.",
)
wrong(
    "last_head_of_the_group",
    "Of a group, only its last head reaches dK and dV.",
    ("dV = P.mT @ dO", "last = slice(-q.shape[2], None)\n    dV = P[:, :, last].mT @ dO[:, :, last]"),
    ("dS.mT @ Q", "dS[:, :, last].mT @ Q[:, :, last]"),
    why="Each head's share has to be added to those before, not written over them.",
)
wrong(
    "a_gradient_for_every_query_head",
    "You return a dK and a dV for each query head.",
    ("P.mT @ dO", "(P.unflatten(2, (G, -1)).mT @ dO.unflatten(2, (G, -1))).flatten(1, 2)"),
    ("(dS.mT @ Q)", "(dS.unflatten(2, (G, -1)).mT @ Q.unflatten(2, (G, -1))).flatten(1, 2)"),
    why="The G heads of a group read the same K and V: add up what they ask of it.",
)


# (b) tile by tile


def tiled(q, k, v, o, lse, do, *, causal=False, scale=None, block_q=64, block_k=64):
    """A right answer."""
    (Hkv, Tk), Tq = k.shape[1:3], q.shape[2]
    G = q.shape[1] // Hkv
    scale = q.shape[3] ** -0.5 if scale is None else scale
    delta = (do * o).sum(-1)
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for j in range(0, Tk, block_k):
        keys = slice(j, min(j + block_k, Tk))
        K, V = k[:, :, keys], v[:, :, keys]
        dK, dV = torch.zeros_like(K), torch.zeros_like(V)
        first = max(j - (Tk - Tq), 0) // block_q * block_q if causal else 0
        for i in range(first, Tq, block_q):
            rows = slice(i, min(i + block_q, Tq))
            Q, dO, L, Delta = (x[:, :, rows].unflatten(1, (Hkv, G)).flatten(2, 3) for x in (q, do, lse, delta))
            S = scale * (Q @ K.mT)
            P = torch.exp(S - L[..., None])
            if causal:
                query = torch.arange(i, rows.stop).repeat(G)[:, None]
                hidden = torch.arange(j, keys.stop) > query + Tk - Tq
                P = P.masked_fill(hidden, 0)
            dV += P.mT @ dO
            dP = dO @ V.mT
            dS = P * (dP - Delta[..., None])
            dK += dS.mT @ Q
            dQ = dS @ K
            dq[:, :, rows] += dQ.unflatten(2, (G, -1)).flatten(1, 2)
        dk[:, :, keys], dv[:, :, keys] = dK, dV
    return scale * dq, scale * dk, dv


FIRST = "first = max(j - (Tk - Tq), 0) // block_q * block_q if causal else 0"
EXPONENTIALS = "P = torch.exp(S - L[..., None])"
HIDE = "P = P.masked_fill(hidden, 0)"
DS = "dS = P * (dP - Delta[..., None])"
GRADIENTS = "return scale * dq, scale * dk, dv"

wrong = Mistakes("05.backward_tiled", tiled)

wrong(
    "softmax_of_a_tile",
    "You take a softmax of each tile.",
    (EXPONENTIALS, "P = S.softmax(-1)"),
    why="A tile knows neither the row's maximum nor its sum. lse knows both: P = exp(S − lse).",
)
wrong(
    "quotient_of_exponentials",
    "You compute exp(S) / exp(lse).",
    (EXPONENTIALS, "P = torch.exp(S) / torch.exp(L)[..., None]"),
    why="Both overflow where scores are large: ∞ / ∞. Subtract first, exp(S − lse), and no exponent is above 0.",
)
wrong(
    "delta_of_a_tile",
    "You sum delta over a tile of keys.",
    (DS, "dS = P * (dP - (P * dP).sum(-1, keepdim=True))"),
    why="delta is a sum over the whole row, of which a tile is a part. But it is also dO · o, and that is at hand.",
)
wrong(
    "no_delta_at_all",
    "You leave delta out: dS = P ∘ dP.",
    (DS, "dS = P * dP"),
    why="A score also lowers all other weights of its row, through the denominator. That is what delta takes off.",
)
wrong(
    "unscaled_scores",
    "You make the scores again without their scale.",
    ("S = scale * (Q @ K.mT)", "S = Q @ K.mT"),
    why="P = exp(scale · Q Kᵀ − lse): lse was taken of scaled scores.",
)
wrong(
    "unscaled_gradients",
    "You leave the scale out of dQ and dK.",
    (GRADIENTS, "return dq, dk, dv"),
    why="S = scale · Q Kᵀ. What comes back through that product is multiplied by the scale, too.",
)
wrong(
    "scaled_dq_alone",
    "You scale dQ, but not dK.",
    (GRADIENTS, "return scale * dq, dk, dv"),
    why="S = scale · Q Kᵀ has the scale before both of its factors.",
)
wrong(
    "scaled_dk_alone",
    "You scale dK, but not dQ.",
    (GRADIENTS, "return dq, scale * dk, dv"),
    why="S = scale · Q Kᵀ has the scale before both of its factors.",
)
wrong(
    "dk_scaled_twice",
    "Your dK is scaled twice.",
    (GRADIENTS, "return scale * dq, scale**2 * dk, dv"),
    why="If Q is scaled where it is loaded, dSᵀ Q has the scale in it already; dQ = dS K has not.",
)
wrong(
    "last_tile_of_keys",
    "dq is overwritten by every tile of keys.",
    ("dq[:, :, rows] += ", "dq[:, :, rows] = "),
    why="It is a sum over all keys: each pair of tiles adds its share, +=.",
)
wrong(
    "last_tile_of_queries",
    "dk and dv are overwritten by every tile of queries.",
    ("dV += ", "dV = "),
    ("dK += ", "dK = "),
    why="They are sums over all queries: each pair of tiles adds its share, +=.",
)
wrong(
    "sums_not_begun_anew",
    "The sums for dk and dv go on from one tile of keys to the next.",
    (
        "        dK, dV = torch.zeros_like(K), torch.zeros_like(V)\n",
        """\
        if j == 0:
            dK, dV = torch.zeros_like(K), torch.zeros_like(V)
        dK, dV = dK[:, :, : K.shape[2]], dV[:, :, : K.shape[2]]  # the last tile may be shorter
""",
    ),
    why="Other keys, other sums: both begin at 0 with each tile of the outer loop.",
)
wrong(
    "ragged_keys_left_out",
    "You leave out the last tile of keys where it is not full.",
    ("range(0, Tk, block_k)", "range(0, Tk // block_k * block_k, block_k)"),
    why="Tk // block_k counts full tiles. range(0, Tk, block_k) begins the short one, too.",
)
wrong(
    "mask_top_left",
    "Your mask is aligned top-left: query i sees the keys up to i.",
    ("> query + Tk - Tq", "> query"),
    why="The last query is the last token. With more keys than queries (a cache!), query i stands at i + Tk − Tq.",
)
wrong(
    "token_hidden_from_itself",
    "Your mask hides a token from itself.",
    ("> query + Tk - Tq", ">= query + Tk - Tq"),
    why="Causal means up to and including itself: key ≤ query + Tk − Tq.",
)
wrong(
    "no_mask",
    "You skip tiles, but do not mask inside the ones that remain.",
    (HIDE, "pass"),
    why="lse was taken of what the query saw. What it did not see has no weight: P is 0 there.",
)
wrong(
    "masked_score_of_zero",
    "You set the hidden scores to 0.",
    (HIDE, "P = torch.exp(S.masked_fill(hidden, 0) - L[..., None])"),
    why="exp(0 − lse) is not 0. The score must be −∞, or P itself 0.",
)
wrong(
    "masked_by_multiplication",
    "You multiply P by the mask.",
    (HIDE, "P = P * ~hidden"),
    why="lse is that of the keys that are seen, so exp(S − lse) can overflow for one that is hidden, and ∞ · 0 is NaN. "
    "Select instead: masked_fill, or −∞ in S.",
)
wrong(
    "diagonal_left_out",
    "You begin only with the first tile of queries that sees the whole tile of keys.",
    (FIRST, "first = min(keys.stop - 1 - (Tk - Tq), Tq) // block_q * block_q + block_q if causal else 0"),
    why="Those that see a part of it count, too: the tile on the diagonal is the one that needs a mask.",
)
wrong(
    "begins_at_the_keys_number",
    "You begin with query j for key j.",
    ("max(j - (Tk - Tq), 0)", "j"),
    why="The first query that sees key j is j − (Tk − Tq): with more keys than queries, that is an earlier one.",
)
wrong(
    "begins_with_the_last_key",
    "You begin with the first query that sees the tile's last key.",
    (FIRST, "first = max(keys.stop - 1 - (Tk - Tq), 0) // block_q * block_q if causal else 0"),
    why="The tile's first key is seen earlier: from query j − (Tk − Tq) on, by some whose tile you leave out.",
)
wrong(
    "begins_a_tile_late",
    "You round the first query up to a tile, and not down.",
    (FIRST, "first = -(-max(j - (Tk - Tq), 0) // block_q) * block_q if causal else 0"),
    why="The tile in which that query is counts: its last rows see the key. x // block_q · block_q is where it begins.",
)
wrong(
    "begins_a_query_late",
    "You begin with the query after the first one that sees key j.",
    (FIRST, "first = max(j - (Tk - Tq) + 1, 0) // block_q * block_q if causal else 0"),
    why="A query sees its own token: j ≤ i + Tk − Tq holds for i = j − (Tk − Tq), too.",
)
wrong(
    "begins_on_the_other_side",
    "You begin with query j + (Tk − Tq) for key j.",
    (FIRST, "first = max(j + Tk - Tq, 0) // block_q * block_q if causal else 0"),
    why="Query i sees the keys up to i + (Tk − Tq). Solved for i, the difference is subtracted: j − (Tk − Tq).",
)
wrong(
    "mask_of_other_rows",
    "Your mask repeats each query G times in a row, but the rows are stacked head after head.",
    (".repeat(G)", ".repeat_interleave(G)"),
    why="Row r of a tile with n queries is query r % n: repeat(G, 1), not repeat_interleave(G).",
)
wrong(
    "blind_rows",
    "A row without a key makes a NaN.",
    (HIDE, "P = torch.exp(S.masked_fill(hidden, -torch.inf) - L[..., None])"),
    why="Its scores and its lse are −∞, and −∞ − (−∞) is NaN. Hide keys in P, not in S; or put +∞ in the place of such "
    "an lse, under which every exponential is 0.",
)
wrong(
    "groups_interleaved",
    "Your groups are interleaved: query head h reads key head h % Hkv.",
    *INTERLEAVED,
    why="The query heads of a group are neighbours: x.unflatten(1, (Hkv, G)), not (G, Hkv).",
)
wrong(
    "scores_made_twice",
    "You make the scores of a tile twice.",
    (EXPONENTIALS, "P = torch.exp(scale * (Q @ K.mT) - L[..., None])"),
    why="S = Q Kᵀ once: P is used for dV, and again for dS, while the tile is at hand.",
)
wrong(
    "hidden_tiles_too",
    "With causal, you compute pairs of tiles that do not see each other, and mask them away.",
    (FIRST, "first = 0"),
    why="The result is right, and half of the work is for nothing: begin with the first query that sees the tile.",
)
wrong(
    "whole_matrix",
    "You make the whole matrix again (or use tiles of a size of your own, which here is all of it).",
    ("    delta =", "    block_q, block_k = Tq, Tk\n    delta ="),
    why="That is the T × T matrix that nobody wanted to keep. block_q queries meet block_k keys, never more.",
)
