"""Wrong answers to lesson 03, as people write them. Each is the right one but for one line, which `wrong` names."""

import math

import torch

from llmsys.course.checking.diagnosis import misconception
from llmsys.hardware.memory import DIRECT

# 03.attend_one_query


def _stream(q, k, v, tile, wrong=""):
    T = k.shape[0] // tile * tile if wrong == "no ragged end" else k.shape[0]
    scale = {"no scale": 1.0, "1/D": 1 / q.shape[0]}.get(wrong, 1 / math.sqrt(q.shape[0]))
    m, l = torch.tensor(0.0 if wrong == "m from 0" else -math.inf), torch.tensor(0.0)
    o = torch.zeros(v.shape[1])
    for start in range(0, T, tile):
        s = k[start : start + tile] @ q * scale
        m_new = torch.maximum(m, s.max())
        if wrong == "last maximum":
            m_new = s.max()
        shrink = torch.exp(m - m_new)
        p = torch.exp(s - m_new)
        l_new = l * (1 if wrong == "l not rescaled" else shrink) + p.sum()
        kept = {
            "o not rescaled": torch.tensor(1.0),
            "old l forgotten": shrink / l_new,
            "no maximum in o": l / l_new,
            "divided at the end only": shrink,
        }.get(wrong, l * shrink / l_new)
        new = p if wrong == "divided at the end only" else p / l_new
        o = o * kept + new @ v[start : start + tile]
        m, l = m_new, l_new
    return o


@misconception(
    "03.attend_one_query",
    "What is in o keeps the old denominator.",
    why="It was divided by the old ℓ: times ℓ, divided by ℓ_new, and times e^(m − m_new) where the maximum rose. (To "
    "shrink it by e^(m − m_new) alone is the rule for an o that is not divided before the end.)",
)
def o_not_rescaled(q, k, v, *, tile=16):
    return _stream(q, k, v, tile, "o not rescaled")


@misconception(
    "03.attend_one_query",
    "You divide what is in o by the new ℓ without multiplying it by the old one.",
    why="o is already divided by the old ℓ. To change the denominator, the old one has to come out first.",
)
def old_l_forgotten(q, k, v, *, tile=16):
    return _stream(q, k, v, tile, "old l forgotten")


@misconception(
    "03.attend_one_query",
    "You change o's denominator, but not its maximum.",
    why="The old weights were taken under m_old: they also shrink by e^(m_old − m_new).",
)
def no_maximum_in_o(q, k, v, *, tile=16):
    return _stream(q, k, v, tile, "no maximum in o")


@misconception(
    "03.attend_one_query",
    "What a tile adds to o is not divided by ℓ_new.",
    why="In (3), both terms stand above ℓ_new. This one is a numerator, the sum of e^(s − m) v: its weights do not sum "
    "to one.",
)
def never_divided(q, k, v, *, tile=16):
    return _stream(q, k, v, tile, "divided at the end only")


@misconception("03.attend_one_query", "You leave out the scale 1/√Dk.", why="The scores are q · k / √Dk.")
def no_scale(q, k, v, *, tile=16):
    return _stream(q, k, v, tile, "no scale")


@misconception(
    "03.attend_one_query",
    "You start with a maximum of 0.",
    why="Where all scores are far below 0, every e^(s − 0) vanishes and o is 0/0. The maximum of nothing is −∞.",
)
def maximum_from_zero(q, k, v, *, tile=16):
    return _stream(q, k, v, tile, "m from 0")


@misconception(
    "03.attend_one_query",
    "You do not rescale ℓ when the maximum rises.",
    why="Its terms were taken under m_old: ℓ · e^(m_old − m_new) comes first, while m_old is still at hand.",
)
def l_not_rescaled(q, k, v, *, tile=16):
    return _stream(q, k, v, tile, "l not rescaled")


@misconception(
    "03.attend_one_query",
    "Your m_new is the maximum of the tile, not of all scores so far.",
    why="Where the scores fall, e^(m − m_new) then has a positive exponent, and overflows. The maximum never falls.",
)
def maximum_of_the_tile(q, k, v, *, tile=16):
    return _stream(q, k, v, tile, "last maximum")


@misconception(
    "03.attend_one_query",
    "You leave out the last tile where it is not full.",
    why="T // tile counts full tiles. range(0, T, tile) begins the short one, too.",
)
def no_ragged_end(q, k, v, *, tile=16):
    return _stream(q, k, v, tile, "no ragged end")


@misconception(
    "03.attend_one_query",
    "You compute all the scores first.",
    why="That is a row of T: with all queries, the score matrix. A tile of k is loaded, used and forgotten.",
)
def all_scores_first(q, k, v, *, tile=16):
    p = torch.exp((s := k @ q / math.sqrt(q.shape[0])) - s.max())
    return (p / p.sum()) @ v


# 03.tiled_attention


def _attention(q, k, v, *, causal=False, scale=None, return_lse=False, block_q=64, block_k=64, hbm=DIRECT, wrong=""):
    B, Hq, Tq, Dk = q.shape
    Hkv, Tk, Dv = v.shape[1:]
    G = Hq // Hkv
    scale = Dk**-0.5 if scale is None else scale
    o, lse = hbm.empty((B, Hq, Tq, Dv), name="o"), hbm.empty((B, Hq, Tq), name="lse")
    heads = (lambda x: x.unflatten(1, (G, Hkv)).transpose(1, 2)) if wrong == "interleaved" else (
        lambda x: x.unflatten(1, (Hkv, G))
    )  # fmt: skip
    qg, og, lg = heads(q), heads(o), heads(lse)
    offset = 0 if wrong == "top-left" else Tk - Tq - (wrong == "strict")
    for i in range(0, Tq, block_q):
        rows = min(block_q, Tq - i)
        Q = hbm.load(qg[..., i : i + rows, :]).flatten(2, 3) * scale
        m, l, O = (
            Q.new_full(Q.shape[:3], 0.0 if wrong == "m from 0" else -math.inf),
            Q.new_zeros(Q.shape[:3]),
            Q.new_zeros(*Q.shape[:3], Dv),
        )
        stop = min(max(i + rows + offset, 0), Tk) if causal and wrong != "loads all" else Tk
        if causal and wrong == "no diagonal":
            stop = min(max(i + 1 + offset, 0), Tk) // block_k * block_k
        for j in range(0, stop, block_k):
            end = min(j + block_k, Tk if wrong == "last tile whole" else stop)
            if wrong == "q again":
                Q = hbm.load(qg[..., i : i + rows, :]).flatten(2, 3) * scale
            K, V = hbm.load(k[:, :, j:end]), hbm.load(v[:, :, j:end])
            for _ in range(G - 1 if wrong == "k per head" else 0):
                K, V = hbm.load(k[:, :, j:end]), hbm.load(v[:, :, j:end])
            S = Q @ K.mT
            m_new = torch.maximum(m, S.amax(-1))
            if causal and wrong != "no mask":
                query = torch.arange(i, i + rows)[:, None]
                S.unflatten(2, (G, rows)).masked_fill_(torch.arange(j, end) > query + offset, -math.inf)
            if wrong != "late mask":
                m_new = torch.maximum(m, S.amax(-1))
            finite = m_new if wrong in ("nan", "nan in a tile") else torch.where(m_new == -math.inf, 0.0, m_new)
            P, shrink = torch.exp(S - finite[..., None]), torch.exp(m - finite)
            l = (l if wrong == "l not rescaled" else l * shrink) + P.sum(-1)
            O = (O if wrong == "o not rescaled" else O * shrink[..., None]) + P @ V
            m = m_new
            if wrong == "stores often":
                hbm.store(og[..., i : i + rows, :], (O / torch.where(l > 0, l, 1)[..., None]).unflatten(2, (G, rows)))
        some = l if wrong == "nan" else torch.where(l > 0, l, 1)
        O = O if wrong == "not divided" else O / some[..., None]
        ln = {"no log": m + l, "base two": m + torch.log2(some), "only m": m}.get(wrong, m + torch.log(some))
        if not (wrong == "stores often" and stop):
            hbm.store(og[..., i : i + rows, :], O.unflatten(2, (G, rows)))
        hbm.store(lg[..., i : i + rows], ln.unflatten(2, (G, rows)))
    return (o, lse) if return_lse else o


@misconception(
    "03.tiled_attention",
    "You rescale ℓ when the maximum rises, but not o.",
    why="o is a sum under the same maximum, of the same terms times v: whatever happens to ℓ happens to o.",
)
def only_l_rescaled(q, k, v, **options):
    return _attention(q, k, v, **options, wrong="o not rescaled")


@misconception(
    "03.tiled_attention",
    "You never divide by ℓ.",
    why="With the deferred division, o is the numerator until the last tile; before it is stored, it is divided.",
)
def not_divided(q, k, v, **options):
    return _attention(q, k, v, **options, wrong="not divided")


@misconception(
    "03.tiled_attention",
    "Your mask is aligned top-left: query i sees the keys up to i.",
    why="The last query is the last token. With more keys than queries (a cache!), query i stands at i + Tk − Tq.",
)
def top_left(q, k, v, **options):
    return _attention(q, k, v, **options, wrong="top-left")


@misconception(
    "03.tiled_attention",
    "A query does not see its own key.",
    why="Causal means up to and including itself: key ≤ query + Tk − Tq.",
)
def strictly_before(q, k, v, **options):
    return _attention(q, k, v, **options, wrong="strict")


@misconception(
    "03.tiled_attention",
    "You leave out the tile on the diagonal.",
    why="Some of its queries see some of its keys: it is the one that needs a mask, not the one to skip.",
)
def no_diagonal(q, k, v, **options):
    return _attention(q, k, v, **options, wrong="no diagonal")


@misconception(
    "03.tiled_attention",
    "You skip tiles, but do not mask inside the ones that remain.",
    why="In the tile on the diagonal, early queries would see later keys.",
)
def not_masked(q, k, v, **options):
    return _attention(q, k, v, **options, wrong="no mask")


@misconception(
    "03.tiled_attention",
    "A query that sees no key makes a NaN.",
    why="Its maximum is −∞, and −∞ − (−∞) is NaN; so is 0/0. Subtract 0 there, and divide by 1.",
)
def blind_queries(q, k, v, **options):
    return _attention(q, k, v, **options, wrong="nan")


@misconception(
    "03.tiled_attention",
    "A query that sees no key in a tile makes a NaN.",
    why="Its maximum is still −∞, and −∞ − (−∞) is NaN. Where m_new is −∞, subtract 0 instead.",
)
def blind_in_a_tile(q, k, v, **options):
    return _attention(q, k, v, **options, wrong="nan in a tile")


@misconception(
    "03.tiled_attention",
    "You do not rescale ℓ when the maximum rises.",
    why="Its terms were taken under m_old: ℓ · e^(m_old − m_new) comes first, as for o.",
)
def only_o_rescaled(q, k, v, **options):
    return _attention(q, k, v, **options, wrong="l not rescaled")


@misconception(
    "03.tiled_attention",
    "You start with a maximum of 0.",
    why="Where all scores are far below 0, every e^(s − 0) vanishes and ℓ is 0. The maximum of nothing is −∞.",
)
def attention_from_zero(q, k, v, **options):
    return _attention(q, k, v, **options, wrong="m from 0")


@misconception(
    "03.tiled_attention",
    "You take the maximum before you mask.",
    why="A key that the query must not see then sets its m: where it is far above, all that it does see vanishes.",
)
def maximum_before_mask(q, k, v, **options):
    return _attention(q, k, v, **options, wrong="late mask")


@misconception(
    "03.tiled_attention",
    "You load the last tile of keys whole.",
    why="Some of its keys are seen by no query of the tile: let the slice end where they begin.",
)
def last_tile_whole(q, k, v, **options):
    return _attention(q, k, v, **options, wrong="last tile whole")


@misconception(
    "03.tiled_attention",
    "Your groups are interleaved: query head h reads key head h % Hkv.",
    why="The query heads of a group are neighbours: q.unflatten(1, (Hkv, G)), not (G, Hkv).",
)
def interleaved_groups(q, k, v, **options):
    return _attention(q, k, v, **options, wrong="interleaved")


@misconception(
    "03.tiled_attention",
    "Your log-sum-exp is in base two.",
    why="The contract is natural: lse = m + ln ℓ.",
)
def base_two(q, k, v, **options):
    return _attention(q, k, v, **options, wrong="base two")


@misconception("03.tiled_attention", "Your lse is m + ℓ, without the logarithm.", why="ln(e^m · ℓ) = m + ln ℓ.")
def no_logarithm(q, k, v, **options):
    return _attention(q, k, v, **options, wrong="no log")


@misconception(
    "03.tiled_attention",
    "You load K and V once for each query head of a group.",
    why="The heads of a group share their keys: stack their rows in one tile, and one load serves all of them.",
)
def keys_per_head(q, k, v, **options):
    return _attention(q, k, v, **options, wrong="k per head")


@misconception(
    "03.tiled_attention",
    "You load q again for every tile of keys.",
    why="It stays on the chip for the whole inner loop: load it before.",
)
def queries_again(q, k, v, **options):
    return _attention(q, k, v, **options, wrong="q again")


@misconception(
    "03.tiled_attention",
    "You store o after every tile of keys.",
    why="It is not finished, and it is on the chip anyway. One store, after the inner loop.",
)
def stored_after_every_tile(q, k, v, **options):
    return _attention(q, k, v, **options, wrong="stores often")


@misconception(
    "03.tiled_attention",
    "With causal, you load tiles that no query of the tile sees, and mask them away.",
    why="The result is right; half of the traffic and of the products is for nothing. End the inner loop earlier.",
)
def loads_all(q, k, v, **options):
    return _attention(q, k, v, **options, wrong="loads all")


@misconception(
    "03.tiled_attention",
    "You compute all scores of a head at once (or in tiles of a size of your own, which here is all of it).",
    why="That is the T × T matrix that this is about. block_q queries meet block_k keys, never more.",
)
def whole_matrix(q, k, v, *, block_q=64, block_k=64, **options):
    return _attention(q, k, v, block_q=q.shape[2] or 1, block_k=k.shape[2] or 1, **options)


# 03.tiled_bytes


def _bytes(T, D, block_q, *, itemsize=4, causal=False, wrong=""):
    full, ragged = divmod(T, block_q)
    tiles = full if wrong == "floor" else full + (ragged > 0)
    total = (2 * T * D) * itemsize * (tiles if wrong == "q each time" else 1)
    if wrong != "no lse":
        total += T * (itemsize if wrong == "lse in itemsize" else 4)
    for i in range(tiles):
        seen = min((i + 1) * block_q, T) if causal else T
        if causal and wrong == "not causal":
            seen = T
        if causal and wrong == "one short":
            seen -= 1
        if causal and wrong == "half":
            seen = T / 2
        if causal and wrong == "before the diagonal":
            seen = i * block_q
        if wrong == "once":
            seen = T / tiles
        total += seen * D * itemsize * (1 if wrong == "only k" else 2)
    return int(total)


@misconception(
    "03.tiled_bytes",
    "You count K and V once, whatever the tile is.",
    why="That is said often, and true only if all of q fits on the chip. They stream by once for each tile of queries.",
)
def keys_once(T, D, block_q, *, itemsize=4, causal=False):
    return _bytes(T, D, block_q, itemsize=itemsize, causal=causal, wrong="once")


@misconception("03.tiled_bytes", "You count K, but not V.", why="Both stream by: 2·T·D elements a query tile.")
def only_keys(T, D, block_q, *, itemsize=4, causal=False):
    return _bytes(T, D, block_q, itemsize=itemsize, causal=causal, wrong="only k")


@misconception(
    "03.tiled_bytes",
    "You count only the full tiles of queries.",
    why="A last tile that is not full loads as many keys as a full one: ceil(T / block_q) tiles.",
)
def full_tiles_only(T, D, block_q, *, itemsize=4, causal=False):
    return _bytes(T, D, block_q, itemsize=itemsize, causal=causal, wrong="floor")


@misconception("03.tiled_bytes", "You forget the log-sum-exp.", why="It is stored, too: T numbers in fp32.")
def no_lse(T, D, block_q, *, itemsize=4, causal=False):
    return _bytes(T, D, block_q, itemsize=itemsize, causal=causal, wrong="no lse")


@misconception(
    "03.tiled_bytes",
    "You count the log-sum-exp in the elements' size.",
    why="It is kept in fp32 in every precision: 4 bytes a row.",
)
def lse_in_itemsize(T, D, block_q, *, itemsize=4, causal=False):
    return _bytes(T, D, block_q, itemsize=itemsize, causal=causal, wrong="lse in itemsize")


@misconception(
    "03.tiled_bytes",
    "With causal, you take half of the keys for each tile.",
    why="A tile loads the keys up to its last query: on average T/2 + block_q/2, because the diagonal tile is whole.",
)
def half_of_the_keys(T, D, block_q, *, itemsize=4, causal=False):
    return _bytes(T, D, block_q, itemsize=itemsize, causal=causal, wrong="half")


@misconception(
    "03.tiled_bytes",
    "With causal, you leave out the tile on the diagonal.",
    why="Its queries see part of it, so it has to be loaded: up to the tile's last query, and that one included.",
)
def before_the_diagonal(T, D, block_q, *, itemsize=4, causal=False):
    return _bytes(T, D, block_q, itemsize=itemsize, causal=causal, wrong="before the diagonal")


@misconception(
    "03.tiled_bytes",
    "You do not count causal any differently.",
    why="The first tile of queries sees its own keys and no others; only the last one loads all of them.",
)
def not_causal(T, D, block_q, *, itemsize=4, causal=False):
    return _bytes(T, D, block_q, itemsize=itemsize, causal=causal, wrong="not causal")


@misconception(
    "03.tiled_bytes",
    "With causal, you are one key short for each tile.",
    why="Query i sees itself, too: that makes i + 1 keys.",
)
def one_key_short(T, D, block_q, *, itemsize=4, causal=False):
    return _bytes(T, D, block_q, itemsize=itemsize, causal=causal, wrong="one short")
