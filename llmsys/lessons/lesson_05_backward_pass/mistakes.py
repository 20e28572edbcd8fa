"""Wrong answers to lesson 05, as people write them. Each is the right one but for one line, which `wrong` names."""

import torch

from llmsys.course.checking.diagnosis import misconception

# 05.backward_stored


def _stored(q, k, v, p, do, *, scale=None, wrong=""):
    Hkv = k.shape[1]
    scale = q.shape[3] ** -0.5 if scale is None else scale
    stack = _interleaved if wrong == "interleaved" else _stacked
    Q, P, dO = (stack(x, Hkv) for x in (q, p, do))
    dV, dP = P.mT @ dO, dO @ v.mT
    delta = {
        "no delta": torch.zeros_like(P[..., :1]),
        "down the columns": (P * dP).sum(-2, keepdim=True),
        "unweighted": dP.sum(-1, keepdim=True),
    }.get(wrong, (P * dP).sum(-1, keepdim=True))
    dS = (1 if wrong == "no p" else P) * (dP - delta)
    if wrong == "logistic":
        dS = P * (1 - P) * dP
    dQ = (1 if wrong in ("no scale", "only dk") else scale) * (dS @ k)
    dK = (1 if wrong in ("no scale", "only dq") else scale) * (dS.mT @ Q)
    if wrong == "mean":
        dK, dV = (x / (q.shape[1] // Hkv) for x in (dK, dV))
    if wrong == "per head":
        each = [x.unflatten(2, (-1, q.shape[2])) for x in (Q, P, dO, dS)]
        dK, dV = scale * (each[3].mT @ each[0]).flatten(1, 2), (each[1].mT @ each[2]).flatten(1, 2)
    if wrong == "last head":
        Q, P, dO, dS = (x[:, :, -q.shape[2] :] for x in (Q, P, dO, dS))
        dK, dV = scale * (dS.mT @ Q), P.mT @ dO
    dQ = dQ.unflatten(2, (-1, q.shape[2]))
    return dQ.transpose(1, 2).flatten(1, 2) if wrong == "interleaved" else dQ.flatten(1, 2), dK, dV


def _stacked(x, Hkv):
    return x.unflatten(1, (Hkv, -1)).flatten(2, 3)


def _interleaved(x, Hkv):
    return x.unflatten(1, (-1, Hkv)).transpose(1, 2).flatten(2, 3)


def _backward_stored(name, message, *, why, wrong):
    def function(q, k, v, p, do, *, scale=None):
        return _stored(q, k, v, p, do, scale=scale, wrong=wrong)

    function.__name__ = name
    misconception("05.backward_stored", message, why=why)(function)


_backward_stored(
    "no_delta",
    "You leave delta out: dS = P ∘ dP.",
    why="A score also lowers all other weights of its row, through the denominator. That is what delta takes off.",
    wrong="no delta",
)
_backward_stored(
    "logistic",
    "You differentiate each weight by its own score only: dS = P ∘ (1 − P) ∘ dP.",
    why="That is the diagonal of the softmax's Jacobian. Beside it stands −p_j p_l: every score moves every weight.",
    wrong="logistic",
)
_backward_stored(
    "delta_down_the_columns",
    "You sum P ∘ dP over the queries.",
    why="A softmax is a row's affair: delta is a number for each query, the sum over its keys, and it stays a column "
    "(keepdim=True).",
    wrong="down the columns",
)
_backward_stored(
    "delta_unweighted",
    "Your delta is the sum of dP, without P.",
    why="It is the mean of the row's dP under the weights P: rowsum(P ∘ dP).",
    wrong="unweighted",
)
_backward_stored(
    "no_weights",
    "Your dS is dP − delta, without P.",
    why="A weight close to 0 hardly moves, whatever its score does: dS = P ∘ (dP − delta).",
    wrong="no p",
)
_backward_stored(
    "no_scale",
    "You leave the scale out of dQ and dK.",
    why="S = scale · Q Kᵀ. What comes back through that product is multiplied by the scale, too.",
    wrong="no scale",
)
_backward_stored(
    "scale_only_in_dq",
    "You scale dQ, but not dK.",
    why="S = scale · Q Kᵀ has the scale before both of its factors.",
    wrong="only dq",
)
_backward_stored(
    "scale_only_in_dk",
    "You scale dK, but not dQ.",
    why="S = scale · Q Kᵀ has the scale before both of its factors.",
    wrong="only dk",
)
_backward_stored(
    "interleaved_groups",
    "Your groups are interleaved: query head h reads key head h % Hkv.",
    why="The query heads of a group are neighbours: x.unflatten(1, (Hkv, G)), not (G, Hkv).",
    wrong="interleaved",
)
_backward_stored(
    "mean_over_the_group",
    "You take the mean over the heads of a group.",
    why="They all read the same K and V. What is used several times has the sum of the gradients.",
    wrong="mean",
)
_backward_stored(
    "last_head_of_the_group",
    "Of a group, only its last head reaches dK and dV.",
    why="Each head's share has to be added to those before, not written over them.",
    wrong="last head",
)
_backward_stored(
    "a_gradient_for_every_query_head",
    "You return a dK and a dV for each query head.",
    why="The G heads of a group read the same K and V: add up what they ask of it.",
    wrong="per head",
)


# 05.backward_tiled


def _tiled(q, k, v, o, lse, do, *, causal=False, scale=None, block_q=64, block_k=64, wrong=""):
    Hkv, (Tq, Dk), Tk = k.shape[1], q.shape[2:], k.shape[2]
    scale = Dk**-0.5 if scale is None else scale
    stack = _interleaved if wrong == "interleaved" else _stacked
    offset = {"top-left": 0, "strict": Tk - Tq - 1}.get(wrong, Tk - Tq)
    delta = (do * o).sum(-1)
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    keys = Tk // block_k * block_k if wrong == "no ragged end" else Tk
    for j in range(0, keys, block_k):
        tile = slice(j, min(j + block_k, Tk))
        K, V = k[:, :, tile], v[:, :, tile]
        if wrong != "kept" or j == 0:
            dK, dV = torch.zeros_like(K), torch.zeros_like(V)
        elif dK.shape != K.shape:
            dK, dV = dK[:, :, : K.shape[2]], dV[:, :, : V.shape[2]]
        first = max(j - (0 if wrong == "own number" else Tk - Tq), 0) if causal else 0
        if causal and wrong == "late":
            first = min(tile.stop - 1 - (Tk - Tq), Tq) // block_q * block_q + block_q
        start = 0 if wrong == "walks all" else first // block_q * block_q
        for i in range(start, Tq, block_q):
            rows = slice(i, min(i + block_q, Tq))
            Q, dO, L, Delta = (stack(x[:, :, rows], Hkv) for x in (q, do, lse, delta))
            S = (1 if wrong == "no scale in s" else scale) * (Q @ K.mT)
            seen = torch.arange(tile.start, tile.stop) <= torch.arange(i, rows.stop)[:, None] + offset
            G = q.shape[1] // Hkv
            seen = seen.repeat_interleave(G, 0) if wrong == "mask interleaved" else seen.repeat(G, 1)
            if causal and wrong in ("zero score", "nan"):
                S = S.masked_fill(~seen, 0 if wrong == "zero score" else -float("inf"))
            P = {
                "softmax of a tile": lambda S=S: S.softmax(-1),
                "quotient": lambda S=S, L=L: torch.exp(S) / torch.exp(L)[..., None],
            }.get(wrong, lambda S=S, L=L: torch.exp(S - L[..., None]))()
            if causal and wrong == "by multiplication":
                P = P * seen
            elif causal and wrong not in ("no mask", "zero score", "nan"):
                P = P.masked_fill(~seen, 0)
            dP = dO @ V.mT
            Delta = {"tile": (P * dP).sum(-1), "none": Delta * 0}.get(wrong, Delta)
            dS = P * (dP - Delta[..., None])
            if wrong == "six products":
                dV += torch.exp(scale * (Q @ K.mT) - L[..., None]).masked_fill(~seen & causal, 0).mT @ dO
            else:
                dV += P.mT @ dO
            if wrong == "last queries":
                dK, dV = torch.zeros_like(dK), P.mT @ dO
            dK += dS.mT @ Q
            new = (dS @ K).unflatten(2, (-1, rows.stop - i))
            new = new.transpose(1, 2).flatten(1, 2) if wrong == "interleaved" else new.flatten(1, 2)
            dq[:, :, rows] = new if wrong == "last keys" else dq[:, :, rows] + new
        dk[:, :, tile], dv[:, :, tile] = dK, dV
    scales = {"no scale": (1, 1), "only dq": (scale, 1), "only dk": (1, scale), "twice": (scale, scale**2)}
    in_dq, in_dk = scales.get(wrong, (scale, scale))
    return in_dq * dq, in_dk * dk, dv


def _backward_tiled(name, message, *, why, wrong):
    def function(q, k, v, o, lse, do, **options):
        return _tiled(q, k, v, o, lse, do, **options, wrong=wrong)

    function.__name__ = name
    misconception("05.backward_tiled", message, why=why)(function)


_backward_tiled(
    "softmax_of_a_tile",
    "You take a softmax of each tile.",
    why="A tile knows neither the row's maximum nor its sum. lse knows both: P = exp(S − lse).",
    wrong="softmax of a tile",
)
_backward_tiled(
    "quotient_of_exponentials",
    "You compute exp(S) / exp(lse).",
    why="Both overflow where scores are large: ∞ / ∞. Subtract first, exp(S − lse), and no exponent is above 0.",
    wrong="quotient",
)
_backward_tiled(
    "delta_of_a_tile",
    "You sum delta over a tile of keys.",
    why="delta is a sum over the whole row, of which a tile is a part. But it is also dO · o, and that is at hand.",
    wrong="tile",
)
_backward_tiled(
    "no_delta_at_all",
    "You leave delta out: dS = P ∘ dP.",
    why="A score also lowers all other weights of its row, through the denominator. That is what delta takes off.",
    wrong="none",
)
_backward_tiled(
    "unscaled_scores",
    "You make the scores again without their scale.",
    why="P = exp(scale · Q Kᵀ − lse): lse was taken of scaled scores.",
    wrong="no scale in s",
)
_backward_tiled(
    "unscaled_gradients",
    "You leave the scale out of dQ and dK.",
    why="S = scale · Q Kᵀ. What comes back through that product is multiplied by the scale, too.",
    wrong="no scale",
)
_backward_tiled(
    "scaled_dq_alone",
    "You scale dQ, but not dK.",
    why="S = scale · Q Kᵀ has the scale before both of its factors.",
    wrong="only dq",
)
_backward_tiled(
    "scaled_dk_alone",
    "You scale dK, but not dQ.",
    why="S = scale · Q Kᵀ has the scale before both of its factors.",
    wrong="only dk",
)
_backward_tiled(
    "dk_scaled_twice",
    "Your dK is scaled twice.",
    why="If Q is scaled where it is loaded, dSᵀ Q has the scale in it already; dQ = dS K has not.",
    wrong="twice",
)
_backward_tiled(
    "last_tile_of_keys",
    "dq is overwritten by every tile of keys.",
    why="It is a sum over all keys: each pair of tiles adds its share, +=.",
    wrong="last keys",
)
_backward_tiled(
    "last_tile_of_queries",
    "dk and dv are overwritten by every tile of queries.",
    why="They are sums over all queries: each pair of tiles adds its share, +=.",
    wrong="last queries",
)
_backward_tiled(
    "sums_not_begun_anew",
    "The sums for dk and dv go on from one tile of keys to the next.",
    why="Other keys, other sums: both begin at 0 with each tile of the outer loop.",
    wrong="kept",
)
_backward_tiled(
    "ragged_keys_left_out",
    "You leave out the last tile of keys where it is not full.",
    why="Tk // block_k counts full tiles. range(0, Tk, block_k) begins the short one, too.",
    wrong="no ragged end",
)
_backward_tiled(
    "mask_top_left",
    "Your mask is aligned top-left: query i sees the keys up to i.",
    why="The last query is the last token. With more keys than queries (a cache!), query i stands at i + Tk − Tq.",
    wrong="top-left",
)
_backward_tiled(
    "token_hidden_from_itself",
    "Your mask hides a token from itself.",
    why="Causal means up to and including itself: key ≤ query + Tk − Tq.",
    wrong="strict",
)
_backward_tiled(
    "no_mask",
    "You skip tiles, but do not mask inside the ones that remain.",
    why="lse was taken of what the query saw. What it did not see has no weight: P is 0 there.",
    wrong="no mask",
)
_backward_tiled(
    "masked_score_of_zero",
    "You set the hidden scores to 0.",
    why="exp(0 − lse) is not 0. The score must be −∞, or P itself 0.",
    wrong="zero score",
)
_backward_tiled(
    "masked_by_multiplication",
    "You multiply P by the mask.",
    why="lse is that of the keys that are seen, so exp(S − lse) can overflow for one that is hidden, and ∞ · 0 is NaN. "
    "Select instead: masked_fill, or −∞ in S.",
    wrong="by multiplication",
)
_backward_tiled(
    "diagonal_left_out",
    "You begin only with the first tile of queries that sees the whole tile of keys.",
    why="Those that see a part of it count, too: the tile on the diagonal is the one that needs a mask.",
    wrong="late",
)
_backward_tiled(
    "begins_at_the_keys_number",
    "You begin with query j for key j.",
    why="The first query that sees key j is j − (Tk − Tq): with more keys than queries, that is an earlier one.",
    wrong="own number",
)
_backward_tiled(
    "mask_of_other_rows",
    "Your mask repeats each query G times in a row, but the rows are stacked head after head.",
    why="Row r of a tile with n queries is query r % n: repeat(G, 1), not repeat_interleave(G).",
    wrong="mask interleaved",
)
_backward_tiled(
    "blind_rows",
    "A row without a key makes a NaN.",
    why="Its scores and its lse are −∞, and −∞ − (−∞) is NaN. Hide keys in P, not in S; or put +∞ in the place of such "
    "an lse, under which every exponential is 0.",
    wrong="nan",
)
_backward_tiled(
    "groups_interleaved",
    "Your groups are interleaved: query head h reads key head h % Hkv.",
    why="The query heads of a group are neighbours: x.unflatten(1, (Hkv, G)), not (G, Hkv).",
    wrong="interleaved",
)
_backward_tiled(
    "scores_made_twice",
    "You make the scores of a tile twice.",
    why="S = Q Kᵀ once: P is used for dV, and again for dS, while the tile is at hand.",
    wrong="six products",
)
_backward_tiled(
    "hidden_tiles_too",
    "With causal, you compute pairs of tiles that do not see each other, and mask them away.",
    why="The result is right, and half of the work is for nothing: begin with the first query that sees the tile.",
    wrong="walks all",
)


@misconception(
    "05.backward_tiled",
    "You make the whole matrix again (or use tiles of a size of your own, which here is all of it).",
    why="That is the T × T matrix that nobody wanted to keep. block_q queries meet block_k keys, never more.",
)
def whole_matrix(q, k, v, o, lse, do, *, block_q=64, block_k=64, **options):
    return _tiled(q, k, v, o, lse, do, **options, block_q=q.shape[2] or 1, block_k=k.shape[2] or 1)
