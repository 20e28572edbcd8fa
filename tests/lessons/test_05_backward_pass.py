"""Lesson 05's checks accept correct answers that differ from the solution, and refuse autograd."""

import pytest
import torch

from llmsys.course.checking.checks import get_check, run_check
from llmsys.course.checking.mistakes import edited
from llmsys.hardware import sanitizer
from tests.support.self_tests import assert_check_stands, exercises_of


def stored_head_by_head(q, k, v, p, do, *, scale=None):
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    G = q.shape[1] // k.shape[1]
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            P, dO, key = p[b, h], do[b, h], h // G
            dP = torch.einsum("id,jd->ij", dO, v[b, key])
            jacobian = torch.diag_embed(P) - P[:, :, None] * P[:, None, :]  # of each row's softmax
            dS = scale * (dP[:, None, :] @ jacobian)[:, 0]
            dq[b, h] = dS @ k[b, key]
            dk[b, key] += dS.T @ q[b, h]
            dv[b, key] += P.T @ dO
    return dq, dk, dv


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
    return torch.cat(tiles, dim=2), dk, dv


@pytest.mark.parametrize(
    "exercise, answer",
    [("05.backward_stored", stored_head_by_head), ("05.backward_tiled", tiled_with_queries_outside)],
)
def test_a_correct_answer_that_differs_from_the_solution_passes(exercise, answer):
    check = get_check(exercise)
    result = run_check(check, check.local_runner(answer))
    assert result, result


@pytest.mark.parametrize("asks", [torch.autograd.grad, torch.Tensor.backward])
def test_autograd_is_forbidden(asks):
    def backward_stored(q, k, v, p, do, *, scale=None):
        with torch.enable_grad():
            leaves = [x.requires_grad_() for x in (q, k, v)]
            o = p @ leaves[2]
            if asks is torch.autograd.grad:
                return asks(o, leaves, do, allow_unused=True)
            asks(o, do)
        return tuple(x.grad for x in leaves)

    check = get_check("05.backward_stored")
    result = run_check(check, check.local_runner(backward_stored))
    assert not result and result.failure.kind == "forbidden"


@pytest.mark.skipif(not sanitizer.available(), reason="the sanitizer watches the interpreter, and is not here")
def test_a_kernel_that_computes_the_transposed_scores_passes():
    # Not at the top: it loads Triton, which is not everywhere.
    from llmsys.lessons.lesson_05_backward_pass.kernel_mistakes import DK, DS, DV, SEEN, P, S, one_loop_kernel

    transposed = edited(
        one_loop_kernel, "dkdv_kernel",
        (S, S.replace("q, tl.trans(k)", "k, tl.trans(q)")),
        (P, P.replace("[:, None]", "[None, :]")),
        (SEEN, "keys[:, None] <= (query + Tk - Tq)[None, :]"),
        ("dp = tl.dot(do, tl.trans(v)", "dp = tl.dot(v, tl.trans(do)"),
        (DS, DS.replace("[:, None]", "[None, :]")),
        (DV, DV.replace("tl.trans(p.to(do.dtype))", "p.to(do.dtype)")),
        (DK, DK.replace("tl.trans(ds.to(q.dtype))", "ds.to(q.dtype)")),
    )  # fmt: skip
    check = get_check("05.dkdv_kernel")
    result = run_check(check, check.local_runner(transposed))
    assert result, result


@pytest.mark.parametrize("exercise", exercises_of("05"))
@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")  # wrong kernels divide by zero
def test_the_check_stands_its_self_test(exercise):
    assert_check_stands(exercise)
