"""Lesson 05: right answers are taken, wrong ones rejected, and named only where they are what the name says."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from llmsys.course.checking.mistakes import edited
from llmsys.hardware import sanitizer
from llmsys.lessons.lesson_05_backward_pass import mistakes
from tests.support.self_tests import assert_check_stands, exercises_of
from tests.support.verdicts import SEEDS, assert_rejected, assert_taken, fresh, verdict

STORED, TILED, KERNEL = "05.backward_stored", "05.backward_tiled", "05.dkdv_kernel"


def stored_but(name, *changes):
    return edited(mistakes.stored, name, *changes)


def tiled_but(name, *changes):
    return edited(mistakes.tiled, name, *changes)


# From the stored weights


def stored_head_by_head(q, k, v, p, do, *, scale=None):
    """With the whole Jacobian of each row's softmax."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    G = q.shape[1] // k.shape[1]
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            P, dO, key = p[b, h], do[b, h], h // G
            dP = torch.einsum("id,jd->ij", dO, v[b, key])
            jacobian = torch.diag_embed(P) - P[:, :, None] * P[:, None, :]
            dS = scale * (dP[:, None, :] @ jacobian)[:, 0]
            dq[b, h] = dS @ k[b, key]
            dk[b, key] += dS.T @ q[b, h]
            dv[b, key] += P.T @ dO
    return dq, dk, dv


def stored_by_einsum(q, k, v, p, do, *, scale=None):
    """Groups as a dimension of their own, and a list."""
    (B, Hkv), scale = k.shape[:2], q.shape[-1] ** -0.5 if scale is None else scale
    Q, P, dO = (x.reshape(B, Hkv, -1, *x.shape[2:]) for x in (q, p, do))
    dP = torch.einsum("bhgid,bhjd->bhgij", dO, v)
    dS = scale * (P * dP - P * torch.einsum("bhgij,bhgij->bhgi", P, dP)[..., None])
    dQ = torch.einsum("bhgij,bhjd->bhgid", dS, k).reshape(q.shape)
    return [dQ, torch.einsum("bhgij,bhgid->bhjd", dS, Q), torch.einsum("bhgij,bhgid->bhjd", P, dO)]


def stored_in_a_pool(q, k, v, p, do, *, scale=None):
    """A sequence a thread."""
    with ThreadPoolExecutor(2) as pool:
        rows = zip(*(x.split(1) for x in (q, k, v, p, do)), strict=True)
        done = pool.map(lambda tensors: mistakes.stored(*tensors, scale=scale), rows)
        return tuple(map(torch.cat, zip(*done, strict=True)))


@pytest.mark.parametrize("answer", [mistakes.stored, stored_head_by_head, stored_by_einsum, stored_in_a_pool])
def test_right_gradients_from_stored_weights_are_taken(answer):
    assert_taken(STORED, answer)


def by_autograd(q, k, v, p, do, *, scale=None):
    with torch.enable_grad():
        q, k, v = (x.detach().clone().requires_grad_() for x in (q, k, v))
        return torch.autograd.grad(attention(q, k, v, scale), (q, k, v), do)


def attention(q, k, v, scale):
    G = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(G, 1) for x in (k, v))
    return (q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)).softmax(-1) @ v


def by_backward(q, k, v, p, do, *, scale=None):
    with torch.enable_grad():
        leaves = [x.requires_grad_() for x in (q, k, v)]
        (p @ leaves[2]).backward(do)
    return tuple(x.grad for x in leaves)


def by_autograd_in_a_thread(*tensors, scale=None):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(by_autograd, *tensors, scale=scale).result()


def by_vjp(q, k, v, p, do, *, scale=None):
    return torch.func.vjp(lambda q, k, v: attention(q, k, v, scale), q, k, v)[1](do)


def by_the_librarys_tiles(q, k, v, p, do, *, scale=None):
    from llmsys.attention.flash import backward

    o = p @ v.repeat_interleave(q.shape[1] // v.shape[1], 1)
    return backward.backward(q, k, v, o, p.sum(-1), do, None, False, 1.0 if scale is None else scale, "ieee")


@pytest.mark.parametrize("answer", [by_autograd, by_backward, by_autograd_in_a_thread, by_vjp, by_the_librarys_tiles])
def test_derivatives_by_machine_and_the_librarys_own_are_forbidden(answer):
    assert verdict(STORED, answer).failure.kind == "forbidden"


@fresh
def remembers_the_weights():
    known = {}

    def backward_stored(q, k, v, p, do, *, scale=None):
        key = q.shape, k.shape, v.shape, q.dtype, scale
        return known.setdefault(key, mistakes.stored(q, k, v, p, do, scale=scale))

    return backward_stored


DELTA, SCALE = "delta = (P * dP).sum(-1, keepdim=True)", "if scale is None else scale"
STACKED = "(x.unflatten(1, (Hkv, G)).flatten(2, 3) for x in (q, p, do))"


@pytest.mark.parametrize(
    "answer",
    [
        remembers_the_weights,
        stored_but("default_scale_of_the_values", ("q.shape[3] **", "v.shape[3] **")),
        stored_but("own_scale_only_for_one_sequence", (SCALE, "if scale is None or len(q) > 1 else scale")),
        stored_but("own_scale_not_with_groups", (SCALE, "if scale is None or G > 1 else scale")),
        stored_but("softmax_by_its_own", (DELTA, "P = (scale * Q @ k.mT).softmax(-1)\n    " + DELTA)),
        stored_but("weights_made_to_sum_to_one", (DELTA, "P = P / P.sum(-1, keepdim=True)\n    " + DELTA)),
        stored_but("over_memory", (STACKED, "(x.view(x.shape[0], Hkv, -1, x.shape[3]) for x in (q, p, do))")),
        stored_but("result_in_float32", ("scale * (dS @ k)", "(scale * (dS @ k)).float()")),
        stored_but("gradient_of_do_in_place", (DELTA, "do.mul_(1.0)\n    do[..., :1].neg_()\n    " + DELTA)),
        stored_but("delta_of_all_sequences", (".sum(-1, keepdim=True)", ".sum(-1, keepdim=True).mean(0)")),
        stored_but("torchs_softmax_backwards", ("dS = P * (dP - delta)", "dS = torch._softmax_backward_data("
                   "dP, P, -1, P.dtype)")),
        stored_but("square_weights", ("dP = dO @ v.mT", "dP = dO @ v.mT if P.shape[-1] == P.shape[-2] // G else "
                   "(dO @ v.mT).flip(-1)")),
    ],
)  # fmt: skip
def test_wrong_gradients_from_stored_weights_are_rejected(answer):
    assert_rejected(STORED, answer)


# Tile by tile


def tiled_with_queries_outside(q, k, v, o, lse, do, *, causal=False, scale=None, block_q=64, block_k=64):
    (Hkv, Tk), Tq = k.shape[1:3], q.shape[2]
    scale = q.shape[3] ** -0.5 if scale is None else scale
    lse = lse.masked_fill(lse == -torch.inf, torch.inf)
    dk, dv = torch.zeros_like(k), torch.zeros_like(v)
    tiles = []
    for i in range(0, Tq, block_q):
        rows = [x[:, :, i : i + block_q].unflatten(1, (Hkv, -1)).flatten(2, 3) for x in (q, o, lse, do)]
        Q, O, L, dO = rows
        Q, dQ, delta = Q * scale, torch.zeros_like(Q), (O * dO).sum(-1, keepdim=True)
        last = min(i + block_q, Tq) - 1 + Tk - Tq if causal else Tk
        for j in range(0, min(last + 1, Tk), block_k):
            K, V = k[:, :, j : j + block_k], v[:, :, j : j + block_k]
            S = Q @ K.mT
            if causal:  # hidden in S, which is why lse is not −∞ any more
                query = torch.arange(i, min(i + block_q, Tq)).repeat(q.shape[1] // Hkv)[:, None]
                S = S.masked_fill(torch.arange(j, j + K.shape[2]) > query + Tk - Tq, -torch.inf)
            P = torch.exp(S - L[..., None])
            dS = P * (dO @ V.mT - delta)
            dv[:, :, j : j + block_k] += P.mT @ dO
            dk[:, :, j : j + block_k] += dS.mT @ Q  # Q is scaled
            dQ += scale * (dS @ K)
        tiles.append(dQ.unflatten(2, (q.shape[1] // Hkv, -1)).flatten(1, 2))
    return [torch.cat(tiles, dim=2), dk, dv]


def tiled_in_a_pool(q, k, v, o, lse, do, *, causal=False, scale=None, block_q=64, block_k=64):
    """A tile of keys a thread, which add to dq in turn; in base two."""
    (Hkv, Tk), Tq = k.shape[1:3], q.shape[2]
    scale = q.shape[3] ** -0.5 if scale is None else scale
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    q_groups, do_groups, dq_groups = (x.unflatten(1, (Hkv, -1)) for x in (q, do, dq))
    delta = torch.einsum("bhid,bhid->bhi", do, o).unflatten(1, (Hkv, -1))[..., None]
    lse, adding = (lse / np.log(2)).to(q.dtype).unflatten(1, (Hkv, -1))[..., None], threading.Lock()

    def of_keys(j):
        K, V = k[:, :, None, j : j + block_k], v[:, :, None, j : j + block_k]
        key = torch.arange(j, j + K.shape[3])
        for i in range(max(j + Tq - Tk, 0) // block_q * block_q if causal else 0, Tq, block_q):
            rows = slice(i, min(i + block_q, Tq))
            Q, dO = q_groups[..., rows, :], do_groups[..., rows, :]
            P = torch.exp2(Q @ K.mT * (scale / np.log(2)) - lse[..., rows, :])
            if causal:
                P = torch.where(key <= torch.arange(i, rows.stop)[:, None] + Tk - Tq, P, 0)
            dS = P * (dO @ V.mT - delta[..., rows, :]) * scale
            with adding:
                dv[:, :, j : j + block_k] += (P.mT @ dO).sum(2)
                dk[:, :, j : j + block_k] += (dS.mT @ Q).sum(2)
                dq_groups[..., rows, :] += dS @ K

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(of_keys, range(0, Tk, block_k)))
    return dq, dk, dv


@torch.inference_mode()
def tiled_on_copies(q, k, v, o, lse, do, **options):
    return mistakes.tiled(*(x.clone(memory_format=torch.contiguous_format) for x in (q, k, v, o, lse, do)), **options)


@pytest.mark.parametrize("answer", [tiled_with_queries_outside, tiled_in_a_pool, tiled_on_copies])
def test_right_gradients_tile_by_tile_are_taken(answer):
    assert_taken(TILED, answer)


@fresh
def remembers_the_tiles():
    known = {}

    def backward_tiled(q, *tensors, **options):
        key = q.shape, tensors[0].shape, q.dtype, tuple(options.items())
        return known.setdefault(key, mistakes.tiled(q, *tensors, **options))

    return backward_tiled


@fresh
def remembers_the_delta():
    known = {}

    def backward_tiled(q, k, v, o, lse, do, **options):
        o = known.setdefault((o.shape, o.dtype), o)
        return mistakes.tiled(q, k, v, o, lse, do, **options)

    return backward_tiled


def by_autograd_of_another_thread(q, k, v, o, lse, do, *, scale=None, **_):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(by_autograd, q, k, v, None, do, scale=scale).result()


def by_the_next_stage(q, k, v, o, lse, do, *, causal=False, scale=None, **_):
    from llmsys.attention.flash.backward import launch_dkdv, launch_dq
    from llmsys.attention.flash.tiles import TileConfig

    scale, tiles = q.shape[3] ** -0.5 if scale is None else scale, TileConfig(16, 16, 4, 1)
    given = q, k, v, do, lse * 1.4426950408889634, (do * o).sum(-1), causal, scale, "ieee", tiles
    return launch_dq(*given), *launch_dkdv(*given)


@pytest.mark.parametrize("answer", [by_autograd_of_another_thread, by_the_next_stage])
def test_derivatives_and_later_stages_are_forbidden_tile_by_tile(answer):
    assert verdict(TILED, answer).failure.kind == "forbidden"


EXP, KEEP = mistakes.EXPONENTIALS, ("    delta =", "    kept = []\n    delta =")
S, DP, DQ = "S = scale * (Q @ K.mT)", "dP = dO @ V.mT", "dQ = dS @ K"


@pytest.mark.parametrize(
    "answer",
    [
        remembers_the_tiles, remembers_the_delta,
        tiled_but("list_of_tiles", KEEP, (DP, "kept.append(P)\n            " + DP)),
        tiled_but("dict_of_masks", KEEP, (mistakes.HIDE, "kept.append({(i, j): hidden.float()})\n                "
                  + mistakes.HIDE)),
        tiled_but("list_of_numpy", KEEP, (DP, "kept.append(P.detach().double().numpy())\n            " + DP)),
        tiled_but("list_of_numbers", KEEP, (DP, "kept.append(P.flatten().tolist())\n            " + DP)),
        tiled_but("scores_element_by_element", (S, "S = scale * (Q[..., None, :] * K[:, :, None]).sum(-1)")),
        tiled_but("dv_element_by_element", ("dV += P.mT @ dO", "dV += (P[..., None] * dO[..., None, :]).sum(2)")),
        tiled_but("own_scale_ignored_with_a_mask", (SCALE, "if scale is None or causal else scale")),
        tiled_but("default_scale_of_the_values", ("q.shape[3] **", "v.shape[3] **")),
        tiled_but("one_block_for_both", ("range(0, Tk, block_k)", "range(0, Tk, block_q)"),
                  ("min(j + block_k, Tk)", "min(j + block_q, Tk)")),
        tiled_but("all_queries_at_once", ("    delta =", "    block_q = Tq\n    delta =")),
        tiled_but("not_below_a_number", (EXP, EXP.replace("L[", "L.clamp(min=-1e4)["))),
        tiled_but("over_memory", ("x[:, :, rows].unflatten(1, (Hkv, G)).flatten(2, 3)",
                                  "x.view(x.shape)[:, :, rows].view(len(x), Hkv, -1, *x.shape[3:])")),
        tiled_but("gradients_in_float32", ("torch.zeros_like(k), torch.zeros_like(v)\n    for",
                                           "torch.zeros(k.shape), torch.zeros(v.shape)\n    for")),
        tiled_but("no_key_only_in_one_head", (mistakes.HIDE, "P = P.masked_fill(hidden, 0) if G == 1 else "
                  "torch.exp(S.masked_fill(hidden, -torch.inf) - L[..., None])")),
        tiled_but("whole_mask", ("    delta =", "    every = torch.arange(Tk) > torch.arange(Tq)[:, None] + Tk - Tq\n"
                  "    delta =")),
    ],
)  # fmt: skip
def test_wrong_gradients_tile_by_tile_are_rejected(answer):
    assert_rejected(TILED, answer)


def test_another_product_that_is_made_twice_is_not_taken_for_the_scores():
    result = verdict(TILED, tiled_but("shares_of_dq_made_twice", (DQ, f"{DQ}\n            {DQ}")), name_mistakes=True)
    assert not result and result.misconception is None, result


FIRST_SEEN = "max(j - (Tk - Tq), 0) // block_q * block_q"


@pytest.mark.parametrize(
    ("begins", "said"),
    [
        ("max(0, min(j + block_k, Tk) - 1 + Tq - Tk) // block_q * block_q", "sees the tile's last key"),
        ("(max(j + Tq - Tk, 0) + block_q - 1) // block_q * block_q", "round the first query up"),
        ("max(0, j + 1 + Tq - Tk) // block_q * block_q", "the query after the first one"),
        ("max(0, Tk - Tq + j) // block_q * block_q", "query j + (Tk − Tq)"),
        ("j // block_q * block_q", "query j for key j"),
    ],
)
def test_a_loop_that_begins_at_the_wrong_query_is_named(begins, said):
    result = verdict(TILED, tiled_but("begins_elsewhere", (FIRST_SEEN, begins)), name_mistakes=True)
    assert not result and said in result.misconception.message, result


def test_queries_repeated_where_rows_are_stacked_are_named():
    other = tiled_but("queries_repeated", ("torch.arange(i, rows.stop).repeat(G)[:, None]",
                                           "torch.arange(i, rows.stop)[:, None].repeat_interleave(G, 0)"))  # fmt: skip
    result = verdict(TILED, other, name_mistakes=True)
    assert not result and "stacked head after head" in result.misconception.message, result


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("P = P.masked_fill(hidden, 0)", "P = P * ~hidden"), "You multiply P by the mask"),
        (("P = P.masked_fill(hidden, 0)", "P = torch.exp(S.masked_fill(hidden, -torch.inf) - L[..., None])"), "a NaN"),
        (("first = " + FIRST_SEEN + " if causal else 0", "first = 0"), "do not see each other"),
        (("dS = P * (dP - Delta[..., None])", "dS = P * (dP - (P * dP).sum(-1, keepdim=True))"), "over a tile of keys"),
    ],
)
def test_a_mistake_is_named_in_an_answer_that_rounds_otherwise(change, said):
    scaled_first = ("S = scale * (Q @ K.mT)", "S = (scale * Q) @ K.mT")
    result = verdict(TILED, tiled_but("scaled_first", scaled_first, change), name_mistakes=True)
    assert not result and result.misconception and said in result.misconception.message, result


# The kernel

kernels = pytest.mark.skipif(not sanitizer.available(), reason="the sanitizer watches the interpreter, and is not here")


def kernel_but(name, *changes):
    """The kernel that the mistakes are edits of, with changes in which {DK} stands for the line of that name there."""
    from llmsys.lessons.lesson_05_backward_pass import kernel_mistakes as known  # loads Triton

    written = ((old.format(**vars(known)), new.format(**vars(known))) for old, new in changes)
    return edited(known.one_loop_kernel, name, *written)


MASK = "        if CAUSAL:\n            p = tl.where({SEEN}, p, 0.0)\n"
RIGHT_KERNELS = {
    "transposed_scores": (
        ("{S}", "s = tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale_log2"),
        ("{P}", "p = tl.exp2(s - lse_log2[None, :])"),
        ("{SEEN}", "keys[:, None] <= (query + Tk - Tq)[None, :]"),
        ("{DP}", "dp = tl.dot(v, tl.trans(do), input_precision=PRECISION)"),
        ("{DS}", "ds = p * (dp - delta[None, :])"),
        ("{DV}", "dv += tl.dot(p.to(do.dtype), do, input_precision=PRECISION)"),
        ("{DK}", "dk += tl.dot(ds.to(q.dtype), q, input_precision=PRECISION)"),
    ),
    "begins_within_a_tile_sums_in_the_dot_hides_scores": (
        (MASK, ""),
        ("{P}", "if CAUSAL:\n            s = tl.where({SEEN}, s, float('-inf'))\n        {P}"),
        ("{START}", "start = tl.maximum(first_key - (Tk - Tq), 0) * G"),
        ("{DV}", "dv = tl.dot(tl.trans(p.to(do.dtype)), do, dv, input_precision=PRECISION)"),
        ("{DK}", "dk = tl.dot(tl.trans(ds.to(q.dtype)), q, dk, input_precision=PRECISION)"),
    ),
}


@kernels
@pytest.mark.parametrize("name", RIGHT_KERNELS)
def test_right_kernels_are_taken(name):
    for seed in SEEDS:
        result = verdict(KERNEL, kernel_but(name, *RIGHT_KERNELS[name]), seed, watched=False)
        assert result, result


AGAIN = "tl.load(q_at, mask=exists[:, None] & (columns_k < DK)[None, :], other=0.0)"
WRONG_KERNELS = {
    "products_of_single_elements": (
        ("{S}", "s = tl.sum(q[:, None, :].to(tl.float32) * k[None, :, :].to(tl.float32), axis=2) * scale_log2"),
    ),
    "no_mask_in_half_precision": (
        ("if CAUSAL:\n            p", "if CAUSAL and q.dtype == tl.float32:\n            p"),
    ),
    "no_mask_for_groups_of_three": (("if CAUSAL:\n            p", "if CAUSAL and G != 3:\n            p"),),
    "no_mask_where_heads_differ": (("if CAUSAL:\n            p", "if CAUSAL and DK == DV:\n            p"),),
    "default_scale": (
        ("{S}", "s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (1.4426950408889634 / (DK ** 0.5))"),
    ),
    "sequences_only_without_groups": (("(b * Hkv * G + head) * Tq", "(b * Hkv * (G if G < 3 else 1) + head) * Tq"),),
    "begins_with_the_next_tile": (
        ("* G // BLOCK_M * BLOCK_M", "* G + G - 1) // BLOCK_M * BLOCK_M"),
        ("tl.maximum(first_key", "(tl.maximum(first_key"),
    ),
    "k_loaded_at_each_step": (("{S}", "k = tl.load(k_at, mask=k_inside, other=0.0)\n        {S}"),),
    "tokens_of_do_as_of_q": (("query * do_stride_t", "query * q_stride_t"),),
    "q_loaded_again": (("{DK}", f"q = {AGAIN}\n        {{DK}}"),),
    "always_half_precision": (
        ("{DV}", "dv += tl.dot(tl.trans(p.to(tl.float16)), do.to(tl.float16), input_precision=PRECISION)"),
    ),
    "smaller_tiles": (
        ("range(start, G * Tq, BLOCK_M)", "range(start, G * Tq, 16)"),
        ("row + tl.arange(0, BLOCK_M)", "row + tl.arange(0, 16)"),
    ),
    "delta_in_half_precision": (("{DS}", "ds = p * (dp - delta.to(q.dtype)[:, None])"),),
    "sums_out_of_the_dot_in_half_precision": (
        ("{DK}", "dk += tl.dot(tl.trans(ds.to(q.dtype)), q, input_precision=PRECISION).to(q.dtype)"),
    ),
}


@kernels
@pytest.mark.parametrize("name", WRONG_KERNELS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")
def test_wrong_kernels_are_rejected(name):
    assert_rejected(KERNEL, kernel_but(name, *WRONG_KERNELS[name]))


@kernels
def test_a_kernel_that_only_the_interpreter_runs_is_refused():
    ends_early = "        if row >= G * Tq:\n            break\n        query = rows // G"
    result = verdict(KERNEL, kernel_but("ends_early", ("        query = rows // G", ends_early)), watched=False)
    assert result.failure.kind == "compile" and "Break" in result.failure.message


@pytest.mark.parametrize("exercise", exercises_of("05"))
@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")  # wrong kernels divide by zero
def test_the_check_stands_its_self_test(exercise):
    assert_check_stands(exercise)
