"""The experts: small MLPs, of which each token goes through a few. The chapter, in the order in which to read it:

reference        what is computed: a loop to read, and torch's own products for a CPU
groups           a step's tokens sorted by expert, and tiles of rows that are of one expert
rows             to the experts and back, and the gated SiLU: launches and gradients
row_kernels      the kernels for that
matmul           each row times the matrix of its expert: launches and gradients
matmul_kernels   the two grouped products
hopper           the same products on Hopper: tiles, descriptors, launches
hopper_kernels   the kernels for that, in Gluon
forward          `run_experts`: all of it together
"""

from llmsys.moe.experts.forward import run_experts
from llmsys.moe.experts.groups import Groups, group_by_expert
from llmsys.moe.experts.matmul import grouped_matmul
from llmsys.moe.experts.reference import experts_loop, experts_torch
from llmsys.moe.experts.rows import gated_silu, permute, unpermute

__all__ = [
    "Groups",
    "experts_loop",
    "experts_torch",
    "gated_silu",
    "group_by_expert",
    "grouped_matmul",
    "permute",
    "run_experts",
    "unpermute",
]
