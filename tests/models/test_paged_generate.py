"""SmolLM2 through the paged cache: the tokens of the model that keeps nothing, whatever the size of a page."""

import pytest

from llmsys.cache import PagedCache
from llmsys.models import generate

PROMPT = "The capital of France is"


@pytest.fixture(scope="module")
def tokens(smollm2):
    return generate(smollm2, PROMPT, cache=False, max_new_tokens=8).tokens


def test_the_name_alone_gives_the_same_tokens(smollm2, tokens):
    assert generate(smollm2, PROMPT, attention="paged", max_new_tokens=8).tokens == tokens


@pytest.mark.parametrize("block_size", [1, 7, 64])
def test_pages_of_any_size_give_the_same_tokens(smollm2, tokens, block_size):
    cache = PagedCache(capacity=64, block_size=block_size, spec=smollm2.cache_spec())
    assert generate(smollm2, PROMPT, attention=cache, max_new_tokens=8).tokens == tokens
