"""Disaggregated serving: prompts are computed by some engines, and answers by others.

    from llmsys.serving.disaggregate import start
    with start(partial(load_model, dtype=torch.bfloat16), prefill=1, decode=1) as engine:     two processes, two GPUs
        engine.generate(["What is 2 + 2?", "Name a colour."])                                 as any engine's

**Why.** A prefill computes thousands of tokens at once and is bound by arithmetic; a decode step computes one token of
each request and is bound by memory's speed. In one engine each stands in the other's way: while a prompt is computed,
every answer waits for its next token, and the one setting of steps, batches and parallelism suits at most one of the
two. Apart, each has its own. What it costs is that a prompt's keys and values travel (DistServe,
https://arxiv.org/abs/2401.09670; Splitwise, https://arxiv.org/abs/2311.18677; Mooncake,
https://arxiv.org/abs/2407.00079). Whether that pays is a matter of lengths, rates and limits.

**The way of a request.**

               ┌─ 1 Reserve(tokens) ──► decode engine      blocks for all of the prompt; a prefix that it has is kept
    front ─────┤  2 Granted(start) ◄──                     "I have the first `start` tokens"
               ├─ 3 Prefill(start) ───► prefill engine     chunks of the prompt, beside others'
               │                           ├══ layer 0, 1, 2 … of each chunk ══► decode engine, into the blocks
               ├─ 4 the first token ◄──────┘               its client has it now
               └─ 5 GoOn(token) ──────► decode engine      once all layers have landed: a request like any other

*Layer by layer.* A layer's rows leave when that layer is computed, while the next ones still are (`push`), so what is
left to wait for at a prompt's end is the last layer of its last chunk.

*Only what is lacking.* Before anything is sent the receiver looks the tokens up in its own prefix cache. It is told the
tokens, and not hashes of blocks: it needs them anyhow, and its blocks may be of another size, with other hashes.

*In any blocks.* Rows know of no block: each side reads and writes them where its own table says (`relayout`).

*Credits.* Nothing is computed for a decode engine that has not reserved blocks for it (`reserving`). A slow one grants
less; its requests wait in its queue, where they hold nothing, and not in the prefill engine's blocks, which are free
again when a prompt's last layer is computed.

*Who dies.* The front knows each request's tokens so far. Where an engine dies that a request still needs, the living
side gives its blocks back, and the request begins anew with these tokens (`router`). Where none of one kind is left,
the others do both. Nothing is said twice, and draws are the same, for they depend on the seed and the place. Who hangs
is asked whether it is there, and counts as dead when it has not answered in time (`pulse`); a transfer that does not
end breaks its pair (`wires`).

*Who does what* can be told anew while they serve: `engine.scheduler.assign(prefill=(), decode=names)` has each of them
do everything.

*What is the same.* The tokens: as one engine's, greedy or drawn with a seed, whatever the order of things.

How it is made, from the outside in: ranks (processes; links, the front's connections to them) → front (an `Engine` to
whoever uses it; pulse, who is silent) → router (which request is where) → instance (one engine, which does what it is
told) → push, arrivals, reserving → relayout, messages. wires are between processes, here is several engines in one
process. An instance's loop is that of any engine, and so is its scheduler, whose one rule, computed catches up with
known, is all that prefill and decode have ever been.

`start`              engines as processes of this machine
`Plan`, `serve_as_rank`, `front_of`     the same on many machines, by `torchrun`
`disaggregated_here` several engines in this process, to look at
`DisaggregatedEngine` what these return
`push_each_layer`    when a layer leaves; `transfer=` takes a function of your own in its place, `log=` hears in which
                     order things happen (`LayerEvent`)
`relay`, `head_moves`     pages of one block size and split of heads as pages of another
"""

from llmsys.serving.disaggregate.front import DisaggregatedEngine
from llmsys.serving.disaggregate.here import disaggregated_here
from llmsys.serving.disaggregate.instance import Instance
from llmsys.serving.disaggregate.push import LayerEvent, Transfer, push_each_layer
from llmsys.serving.disaggregate.ranks import Plan, front_of, serve_as_rank, start
from llmsys.serving.disaggregate.relayout import HeadMove, head_moves, relay

__all__ = [
    "DisaggregatedEngine",
    "HeadMove",
    "Instance",
    "LayerEvent",
    "Plan",
    "Transfer",
    "disaggregated_here",
    "front_of",
    "head_moves",
    "push_each_layer",
    "relay",
    "serve_as_rank",
    "start",
]
