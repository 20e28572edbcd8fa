"""Attention through block tables: K and V lie in pages, and a step's sequences are ragged. The chapter, in the order in
which to read it:

    arguments       the contract: what is handed over, and what is refused
    reference       attention over pages in plain PyTorch: gather, then any stage. What every kernel is tested against
    write           K and V of new tokens into their slots; on the way q and k are turned, and normalised before
    write_kernels   the kernel for that
    forward         what surrounds the attention kernels: grids, scratch memory, launches
    plans           which kernels, with which tiles
    walk            how a kernel walks over the keys of one sequence, page after page
    ragged_kernel   many query tokens a sequence: a program for each tile of queries
    split_kernels   few query tokens a sequence: all tiles of all keys in a line, cut into equal runs; then the merge
    hopper/         one query token a sequence on an H100 or H200, in Gluon

and, as lesson 08 builds them, simpler than a server would have them:

    one_token         decoding alone: its launch, and its place in a model
    one_token_kernel  the walk through the table, for one query token a sequence
    pieces            the keys of a sequence in pieces, and the combine, by whatever attends to one token a sequence
"""

from llmsys.attention.paged.arguments import PagedAttention
from llmsys.attention.paged.forward import paged_attention
from llmsys.attention.paged.reference import gather_pages, paged_attention_reference, write_pages_reference
from llmsys.attention.paged.write import write_pages

__all__ = [
    "PagedAttention",
    "gather_pages",
    "paged_attention",
    "paged_attention_reference",
    "write_pages",
    "write_pages_reference",
]
