"""How a request gets in: whether it can ever fit, which of its tokens are in the cache already, and its first blocks.

Keys and values that need not be computed come from two places. Blocks that anybody has filled and registered can be
**hit**, whole ones only; a preempted request hits its own in this way, as long as nobody needed them. Of several
answers to one prompt, the second to the last **share** the blocks of the first one while that is running: all of the
prompt's, the last and unfinished block as well, which is then copied before it is written. Either way at least one
token is left to compute, for only a computed token says what is next.
"""

from dataclasses import dataclass

from llmsys.cache.block_pool import BlockPool
from llmsys.cache.block_table import Copy, OutOfBlocks, PrefixHit
from llmsys.serving.request import Request, Status


def token_limit(request: Request, pool: BlockPool, max_model_len: int | None) -> int:
    """How many tokens the request can have, prompt included. ValueError where its prompt and `max_tokens` never fit.

    All that are known but the last have a slot in the cache, so the pool has room for one more than it has slots.
    """
    prompt, wanted = len(request.prompt), request.sampling.max_tokens
    slots = (pool.num_blocks - 1) * pool.block_size
    longest, whose = slots + 1, f"the cache has room for {slots}, and for one that is not computed"
    if max_model_len is not None and max_model_len < longest:
        longest, whose = max_model_len, f"max_model_len is {max_model_len}"
    if prompt + 1 > longest:
        raise ValueError(
            f"prompt must have at most {longest - 1} tokens, got {prompt}: {whose}. Shorten it, or serve with more room"
        )
    if wanted is not None and prompt + wanted > longest:
        raise ValueError(
            f"max_tokens must be at most {longest - prompt} after a prompt of {prompt} tokens, got {wanted}: {whose}. "
            "Lower it, or give None to go on as long as there is room"
        )
    return longest if wanted is None else prompt + wanted


def other_answers(request: Request) -> list[Request]:
    """The requests for the second to the n-th answer to one prompt."""
    shared = {"arrival": request.arrival, "salt": request.salt, "parent": request}
    return [
        Request(f"{request.id}.{i}", request.prompt, request.sampling.of_answer(i), **shared)
        for i in range(1, request.sampling.n)
    ]


@dataclass(frozen=True)
class Entrance:
    """With how many tokens computed a request can begin, and whose they are: a hit's blocks, or its parent's."""

    computed: int
    hit: PrefixHit
    shared: bool = False


def entrance(request: Request, pool: BlockPool) -> Entrance:
    """The best one as things are, for a request that does not wait for its parent. Changes nothing."""
    hit = pool.match(request.tokens, salt=request.salt)
    parent = request.parent
    if parent is not None and parent.status is Status.RUNNING:
        common = min(len(request.prompt), parent.computed, len(request.tokens) - 1)
        if common > hit.tokens:
            return Entrance(common, hit, shared=True)
    return Entrance(hit.tokens, hit)


def waits_for_parent(request: Request) -> bool:
    """Whether the prompt that it shares is still to be computed by the first of its answers."""
    return request.parent is not None and not request.parent.ended and not request.parent.num_generated


def take_blocks(request: Request, pool: BlockPool, found: Entrance, *, reserve: int) -> list[Copy]:
    """Gives the request a table with slots for all known tokens, and says which blocks are to be copied first.

    OutOfBlocks, and nothing has changed, where fewer than `reserve` blocks would be left free.
    """
    known = len(request.tokens)
    copies: list[Copy] = []
    if found.shared:
        # A block that is shared in part is copied, so it needs a new one, too.
        needed, free = pool.blocks_for(known) - found.computed // pool.block_size, pool.free_blocks
        if needed + reserve > free:
            raise OutOfBlocks(f"{needed} blocks are needed and {reserve} must stay free, of {free}", needed, free)
        request.table = pool.fork(request.parent.table)
        pool.truncate(request.table, found.computed)
        copies = pool.extend(request.table, known)
    else:
        request.table = pool.allocate(known, found.hit, reserve=reserve)
    request.computed = found.computed
    return copies
