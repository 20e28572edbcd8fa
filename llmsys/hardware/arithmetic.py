"""What torch's operations compute: how many floating-point operations, and which operations are not known here.

`count` knows an operation by its name, or by its tag where torch calls it pointwise. Three kinds are told apart: those
that multiply matrices, all others that compute, and those that only make, choose, compare, convert or copy numbers. An
operation that is none of these is not counted as nothing: the answer is None, and `meters.work` names it.
"""

import math
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from llmsys.hardware.dispatch import tensors_in


class Operations(NamedTuple):
    """Operations of matrix products, all others, and how many of these were exponentials."""

    matmul: int = 0
    other: int = 0
    exponentials: int = 0


def count(operator, args: tuple, kwargs: dict, result) -> Operations | None:
    """What a call of the operator computed. None: it is not known here."""
    name = name_of(operator)
    if not tensors_in((args, kwargs, result)):
        return Operations()  # a profiler's mark, say
    if operator.namespace not in ("aten", "prims", "prim"):
        return None  # somebody's own
    given = _named(operator, args, kwargs)
    if name in _FORMULAS:
        return _FORMULAS[name](given, result)
    if name.startswith("_scaled_dot_product"):
        return (_attention_backward if name.endswith("backward") else _attention)(given, result)
    if name.startswith("_foreach_"):
        name = name.removeprefix("_foreach_")
        if name not in _MOVES and not is_pointwise(operator.namespace, name) and name != "norm":
            return None
        each = sum(x.numel() for x in tensors_in(args[0]) if x.is_floating_point())
        return Operations(other=0 if name in _MOVES else 2 * each if name == "norm" else each)
    first = next(iter(tensors_in(args)), None)
    elements = 0 if first is None else first.numel()
    exponentials = elements if name in _EXPONENTIALS else 0
    if name in _PER_ELEMENT:
        return Operations(other=_PER_ELEMENT[name] * elements, exponentials=exponentials)
    if name in _MOVES or "empty" in name or name.startswith(("new_", "sym_", "_assert")) or name.endswith("_like"):
        return Operations()
    if is_pointwise(operator.namespace, name):
        made = (x.numel() for x in tensors_in(result) if x.is_floating_point() or x.is_complex())
        return Operations(other=sum(made), exponentials=exponentials)
    if name.endswith("_copy"):  # of what is a view
        return Operations()
    return None


def name_of(operator) -> str:
    """The operator's name without its variant: "add" for aten::add, aten::add_ and aten::add.out."""
    return operator._schema.name.partition("::")[2].removesuffix("_")


@cache
def is_pointwise(namespace: str, name: str) -> bool:
    """Whether torch calls an operation pointwise, in any of its variants: those with out= and in place lack the tag."""
    packet = getattr(getattr(torch.ops, namespace), name, None)
    variants = packet.overloads() if packet is not None else ()
    return any(torch.Tag.pointwise in getattr(packet, variant).tags for variant in variants)


def _named(operator, args: tuple, kwargs: dict) -> dict:
    """The arguments by their names in the schema."""
    return {argument.name: value for argument, value in zip(operator._schema.arguments, args, strict=False)} | kwargs


def _made(result) -> int:
    return sum(x.numel() for x in tensors_in(result))


# Matrix products. A multiply-add is two operations.


def _product(left: str, added: bool = False, summed: bool = False):
    """A product of `left` (…, M, K) with another matrix; `added` to something; `summed` over its first dimension."""

    def formula(given: dict, result) -> Operations:
        made, K = _made(result), given[left].shape[-1]
        return Operations(2 * made * K * (given[left].shape[0] if summed else 1), made * added)

    return formula


def _grouped_product(given: dict, result) -> Operations:
    """Rows of several matrices side by side, each group with its own right side, or (2-D by 2-D) a sum for each."""
    left, right = given["self"], given["mat2"]
    if left.dim() == right.dim() == 2:  # groups divide K: all together multiply each pair of rows and columns once
        return Operations(2 * left.shape[0] * left.shape[1] * right.shape[1])
    return Operations(2 * _made(result) * left.shape[-1])


def _convolution(given: dict, result) -> Operations:
    out = tensors_in(result)[0]
    return Operations(_convolution_flops(given, out), out.numel() if given.get("bias") is not None else 0)


def _convolution_backward(given: dict, result) -> Operations:
    of_input, of_weight, of_bias = given["output_mask"]
    products = _convolution_flops(given, given["grad_output"]) * (bool(of_input) + bool(of_weight))
    return Operations(products, given["grad_output"].numel() if of_bias else 0)


def _convolution_flops(given: dict, out: Tensor) -> int:
    """Each output, or where the convolution is transposed each input, meets the weights of its group once."""
    many = given["input"] if given.get("transposed") else out
    return 2 * many.numel() * given["weight"].shape[1:].numel()


def _linear_backward(given: dict, result) -> Operations:
    of_input, of_weight, of_bias = given["output_mask"]
    d = given["grad_output"]
    return Operations(2 * d.numel() * given["weight"].shape[-1] * (of_input + of_weight), d.numel() if of_bias else 0)


def _attention(given: dict, result) -> Operations:
    """Fused attention: q kᵀ and p v; the scale, and a softmax."""
    q, k, v = given["query"], given["key"], given["value"]
    scores = q.shape[:-1].numel() * k.shape[-2]
    return Operations(2 * scores * (q.shape[-1] + v.shape[-1]), 6 * scores, scores)


def _attention_backward(given: dict, result) -> Operations:
    """Five products: q kᵀ once more, dP = dO vᵀ, dV = pᵀ dO, dQ = dS k, dK = dSᵀ q.

    Of each score: scale, difference with lse, exponential; dP − delta, times p, times the scale. And delta of each row.
    """
    q, k, v = given["query"], given["key"], given["value"]
    rows = q.shape[:-1].numel()
    scores = rows * k.shape[-2]
    products = 2 * scores * (3 * q.shape[-1] + 2 * v.shape[-1])
    return Operations(products, 6 * scores + 2 * rows * v.shape[-1], scores)


# Others


def _norm(operations: int):
    """A normalisation: operations for each element, one more each for weight and bias, and two for each row."""

    def formula(given: dict, result) -> Operations:
        x = given["input"]
        rows = x.numel() // math.prod(given["normalized_shape"])
        further = sum(given.get(name) is not None for name in ("weight", "bias"))
        return Operations(other=(operations + further) * x.numel() + 2 * rows)

    return formula


def _norm_backward(operations: int, of_weight: int, of_bias: int = 0):
    """Its backward pass: operations for each element, and those for the gradients of weight and bias."""

    def formula(given: dict, result) -> Operations:
        each = operations
        each += of_weight * (given.get("weight") is not None) + of_bias * (given.get("bias") is not None)
        return Operations(other=each * given["input"].numel())

    return formula


def _additions(source: str):
    """An addition for each element of the source, unless it is only put there."""

    def formula(given: dict, result) -> Operations:
        return Operations(other=given[source].numel() if given.get("accumulate", True) else 0)

    return formula


def _put(given: dict, result) -> Operations:
    return Operations(other=given["values"].numel() if given.get("accumulate", False) else 0)


_FORMULAS = {
    **{name: _product("self") for name in ("mm", "bmm", "mv", "dot", "vdot", "_int_mm", "_weight_int8pack_mm")},
    **{name: _product("self") for name in ("_scaled_mm", "_scaled_mm_v2")},
    **{name: _grouped_product for name in ("_grouped_mm", "_scaled_grouped_mm", "_scaled_grouped_mm_v2")},
    "addmm": _product("mat1", added=True), "_addmm_activation": _product("mat1", added=True),
    "baddbmm": _product("batch1", added=True), "addmv": _product("mat", added=True),
    "addbmm": _product("batch1", added=True, summed=True),
    **{name: _convolution for name in ("convolution", "_convolution", "convolution_overrideable")},
    "convolution_backward": _convolution_backward, "linear_backward": _linear_backward,
    "native_layer_norm": _norm(5), "_fused_rms_norm": _norm(3),
    # x̂ = (x − mean)/σ, dx = (g − mean(g) − x̂ · mean(g x̂))/σ; dw = Σ dy x̂, db = Σ dy. With g = dy · w.
    "native_layer_norm_backward": _norm_backward(9, 3, 1),
    # dx = (g − x̂ · mean(g x̂))/σ with x̂ = x/σ
    "_fused_rms_norm_backward": _norm_backward(6, 3),
    "index_put": _put, "_index_put_impl": _put, "_unsafe_index_put": _put,
    "index_add": _additions("source"), "scatter_add": _additions("src"),
    "embedding_dense_backward": _additions("grad_output"),
    "nll_loss_forward": _additions("target"), "nll_loss_backward": _additions("target"),
}  # fmt: skip

_PER_ELEMENT = {  # name -> operations for each element of the first tensor
    "sum": 1, "mean": 1, "prod": 1, "max": 1, "min": 1, "amax": 1, "amin": 1, "argmax": 1, "argmin": 1, "aminmax": 2,
    "cumsum": 1, "cumprod": 1, "nansum": 1, "trace": 1, "linalg_vector_norm": 2, "norm": 2, "var": 4, "std": 4,
    "var_mean": 4, "std_mean": 4, "logsumexp": 4, "_softmax": 5, "_log_softmax": 5, "_safe_softmax": 5,
    "_softmax_backward_data": 4, "_log_softmax_backward_data": 4, "native_dropout": 1, "native_dropout_backward": 1,
}  # fmt: skip

_EXPONENTIALS = frozenset(
    "exp exp2 expm1 sigmoid tanh silu gelu _softmax _log_softmax _safe_softmax _log_softmax_backward_data logsumexp"
    " silu_backward gelu_backward".split()
)

# Making, choosing, sorting, comparing, converting, masking and copying computes nothing; nor do questions to a tensor.
_MOVES = frozenset(
    """
    clone copy _to_copy where masked_fill fill zero set resize resize_as lift _lazy_clone _pin_memory _copy_from
    zeros ones full scalar_tensor arange range linspace logspace eye rand randn randint randperm
    normal uniform bernoulli exponential random cauchy geometric log_normal
    cat stack _stack _chunk_cat block_diag diag_embed repeat repeat_interleave roll flip rot90
    unsafe_split unsafe_split_with_sizes slice_scatter select_scatter diagonal_scatter as_strided_scatter
    slice_backward select_backward diagonal_backward unfold_backward
    tril triu tril_indices triu_indices constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d
    replication_pad1d replication_pad2d replication_pad3d pixel_shuffle pixel_unshuffle channel_shuffle
    embedding index _unsafe_index index_select gather take masked_select nonzero nonzero_static
    index_copy index_fill scatter masked_scatter put
    sort topk kthvalue median nanmedian mode _unique _unique2 unique_dim unique_consecutive searchsorted bucketize isin
    any all allclose equal count_nonzero is_same_size is_set_to is_pinned isnan isinf
    _local_scalar_dense item _is_all_true _is_any_true _has_same_storage_numel _nnz record_stream
    _functional_assert_async _fused_sdp_choice cummax cummin _cummax_helper _cummin_helper
    """.split()
)
