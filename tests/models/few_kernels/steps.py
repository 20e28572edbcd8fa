"""Models and decode steps for the tests of the few-kernel step."""

from dataclasses import dataclass

import torch
from torch import Tensor

from llmsys.cache import Batch, Chunk, Layout, PagedCache, batch_of
from llmsys.models import Llama, LlamaConfig

PAGE = 4
QWEN3 = dict(hidden_size=48, heads=6, kv_heads=2, head_size=16, mlp_size=80, qk_norm=True, norm_eps=1e-6)
"""Heads with norms, which are wider in all than the residual, as Qwen3's are."""
SMOLLM2 = dict(hidden_size=36, heads=3, kv_heads=3, head_size=16, mlp_size=50)
"""No size is a power of two, and the residual is no multiple of one."""
STRETCHED = dict(QWEN3, qk_norm=False, tied_embeddings=False, rope_divisors=(1.0, 1.0, 1.5, 2.0, 4.0, 8.0, 8.0, 8.0))


def random_model(sizes: dict, *, layers: int = 2, vocab_size: int = 61, device="cpu", dtype=torch.float32) -> Llama:
    """Its logits are far enough apart for greedy decoding to be stable, and its norms are no ones."""
    torch.manual_seed(0)
    config = LlamaConfig(name="small", vocab_size=vocab_size, layers=layers, context_length=64, **sizes)
    model = Llama(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn_like(weight) * (0.3 if weight.dim() == 2 else 1))
    return model.to(device, dtype).requires_grad_(False)


@dataclass
class Decoding:
    """Sequences that are decoded side by side, of which each cache holds the same."""

    model: Llama
    tokens: list[list[int]]
    blocks: list[list[int]]
    page: int = PAGE

    @classmethod
    def of(cls, model: Llama, lengths: list[int], *, page: int = PAGE, room: int = 8) -> "Decoding":
        """Random prompts of these lengths, whose pages lie about in the cache."""
        random = torch.Generator().manual_seed(sum(lengths))
        tokens = [torch.randint(0, model.config.vocab_size, (n,), generator=random).tolist() for n in lengths]
        held = [-(-(n + room) // page) for n in lengths]
        order = (1 + torch.randperm(sum(held) + 1, generator=random)).tolist()
        starts = [sum(held[:i]) for i in range(len(held))]
        return cls(model, tokens, [order[a : a + n] for a, n in zip(starts, held, strict=True)], page)

    def cache(self) -> PagedCache:
        """One that holds the prompts but for their last tokens."""
        count = 2 + max(max(blocks) for blocks in self.blocks)
        cache = PagedCache(num_blocks=count, block_size=self.page, spec=self.model.cache_spec())
        for spec in self.model.cache_spec().layers:
            for pages in cache.pages_of(spec, self.model.device):
                pages.fill_(float("nan"))  # who reads what nobody wrote shall not go unnoticed
        chunks = [Chunk(x[:-1], 0, b) for x, b in zip(self.tokens, self.blocks, strict=True) if len(x) > 1]
        if chunks:
            batch = batch_of(chunks, block_size=self.page, device=self.model.device)
            self.model(batch.tokens, cache, batch)
        return cache

    def step(self, rows: int = 0) -> Batch:
        """Of each sequence's newest token; with so many rows, where that is more."""
        S = len(self.tokens)
        chunks = [Chunk(x[-1:], len(x) - 1, b) for x, b in zip(self.tokens, self.blocks, strict=True)]
        rows = max(rows, S)
        layout = Layout(rows, rows, 2 + max(map(len, self.blocks)), rows)
        return batch_of(chunks, block_size=self.page, device=self.model.device, layout=layout)

    def append(self, logits: Tensor) -> list[int]:
        """Take the greedy tokens of (1, rows, V) into the sequences."""
        found = logits[0, : len(self.tokens)].argmax(-1).tolist()
        for tokens, token in zip(self.tokens, found, strict=True):
            tokens.append(token)
        return found


def written(cache: PagedCache, decoding: Decoding) -> list[Tensor]:
    """All keys and values that the sequences have in the cache, layer by layer."""
    found = []
    for spec in decoding.model.cache_spec().layers:
        for pages in cache.pages_of(spec, decoding.model.device):
            for tokens, blocks in zip(decoding.tokens, decoding.blocks, strict=True):
                found.append(pages[blocks].flatten(0, 1)[: len(tokens)])
    return found
