"""How many blocks there are: what fits into the memory that is given or measured, and no more than can be used."""

import pytest

from llmsys.serving import memory
from llmsys.serving.engine import Engine
from llmsys.serving.memory import available_memory, blocks_that_fit
from llmsys.serving.sampling.sampling_params import SamplingParams

SIZES = dict(block_size=4, max_tokens_per_step=64, max_sequences=8, max_model_len=100)
EACH = 4 * 2 * 2 * (16 + 16) * 4  # bytes of a block: 4 tokens, 2 layers, 2 heads of keys and values of 16 floats


def test_as_many_blocks_as_fit_into_what_is_given(llama):
    for blocks in (2, 3, 57):
        for more in (0, EACH - 1):
            assert blocks_that_fit(llama.ours, memory=blocks * EACH + more, **SIZES) == blocks


def test_no_more_than_the_longest_sequences_fill(llama):
    assert blocks_that_fit(llama.ours, memory=10**9, **SIZES) == 1 + 8 * 25
    assert blocks_that_fit(llama.ours, **SIZES) == 1 + 8 * 25


def test_half_of_what_is_available_on_a_cpu(llama, monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 101 * EACH)
    assert blocks_that_fit(llama.ours, **SIZES) == 50
    monkeypatch.setattr(memory, "available_memory", lambda: 3 * EACH)
    with pytest.raises(ValueError, match="2 blocks of 4 tokens, 4,096 bytes, and only 3,072 bytes are free here"):
        blocks_that_fit(llama.ours, **SIZES)


def test_what_a_container_may_have_counts_and_files_that_were_read_do_not(tmp_path, monkeypatch):
    free = available_memory()
    assert 10**6 < free < 10**15
    files = {"memory.max": "5000000", "memory.current": "4000000", "memory.stat": "anon 1\ninactive_file 500000"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(memory, "GROUPS", ((str(tmp_path), "memory.max", "memory.current"),))
    assert available_memory() == 1_500_000
    (tmp_path / "memory.max").write_text("max")
    assert available_memory() == pytest.approx(free, rel=0.5)


def test_the_pages_take_no_more_than_was_said(llama):
    engine = Engine(llama.ours, memory=20 * EACH + 5, block_size=4)
    engine.generate([[5, 6, 7]], SamplingParams(max_tokens=3))
    assert engine.pool.num_blocks == 20 and engine.runner.cache.bytes == 20 * EACH
