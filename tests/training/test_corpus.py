"""The corpus: split by file, every token once a pass, a batch a function of its number, SymPy as released."""

import importlib.machinery
import importlib.util
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmsys.training import Batches, Corpus
from llmsys.training import corpus as module


def files_in(tokens, tokenizer):
    """The texts between the ends."""
    *texts, rest = tokenizer.decode(tokens.tolist(), special=True).split("<|endoftext|>")
    assert rest == ""
    return texts


def test_each_file_is_held_out_or_trained_on_as_a_whole(texts, tokenizer, corpus):
    train, held_out = files_in(corpus.train, tokenizer), files_in(corpus.held_out, tokenizer)
    assert sorted(train + held_out) == sorted(texts.values())
    assert 1 <= len(held_out) <= 5


def test_a_new_file_moves_no_other(texts, tokenizer, corpus):
    more = Corpus.from_texts(texts | {"new.txt": "new"}, tokenizer)
    for before, after in ((corpus.train, more.train), (corpus.held_out, more.held_out)):
        assert set(files_in(before, tokenizer)) == set(files_in(after, tokenizer)) - {"new"}


def test_two_texts_make_both_parts(tokenizer):
    for i in range(50):
        small = Corpus.from_texts({f"{i} a": "first", f"{i} b": "second"}, tokenizer)
        assert len(small.train) and len(small.held_out)
    with pytest.raises(ValueError, match="at least two"):
        Corpus.from_texts({"alone": "text"}, tokenizer)


@given(tokens=st.integers(10, 300), batch=st.integers(1, 4), context=st.integers(1, 9), seed=st.integers(0, 3))
def test_a_pass_sees_every_token_once(tokens, batch, context, seed):
    windows = (tokens - 1) // context
    if windows < batch:
        return
    batches = Batches(torch.arange(tokens, dtype=torch.int32), batch, context, seed)
    for epoch in range(2):
        a_pass = torch.cat([batches[epoch * len(batches) + i] for i in range(len(batches))])
        assert torch.equal(a_pass[:, 1:], a_pass[:, :-1] + 1)  # what comes after
        targets = a_pass[:, 1:].flatten().sort().values
        assert len(targets.unique()) == len(targets) == windows // batch * batch * context
        if windows % batch == 0:
            assert torch.equal(targets, 1 + torch.arange(windows * context))


def test_a_batch_is_a_function_of_its_number(corpus):
    first, second = (corpus.batches(3, 16, seed=5) for _ in range(2))
    later = len(first) + 2
    assert not torch.equal(first[2], first[later])  # another pass, another order
    assert torch.equal(second[later], first[later]) and torch.equal(second[2], first[2])
    assert not torch.equal(corpus.batches(3, 16, seed=6)[2], first[2])
    assert first[0].shape == (3, 17) and first[0].dtype == torch.int64


@pytest.mark.parametrize("seed", [None, 0])
@pytest.mark.parametrize("tokens, batch, context", [(101, 2, 10), (11, 1, 10), (100, 3, 7)])
def test_a_for_loop_is_one_pass_and_ends(tokens, batch, context, seed):
    batches = Batches(torch.arange(tokens), batch, context, seed)
    numbered = [batches[i] for i in range(len(batches))]
    for _ in range(2):  # and begins again
        seen = list(itertools.islice(batches, len(batches) + 1))
        assert len(seen) == len(batches) and all(map(torch.equal, seen, numbered))
    assert [number for number, _ in zip(range(99), batches, strict=False)] == list(range(len(batches)))
    assert all(map(torch.equal, reversed(batches), reversed(numbered)))
    assert batches[len(batches)].shape == numbered[0].shape  # the numbers go on


def test_a_batch_is_asked_for_by_a_whole_number(corpus):
    batches = corpus.batches(3, 16)
    assert all(torch.equal(batches[i], batches[2]) for i in (np.int64(2), torch.tensor(2)))
    for number in (slice(0, 2), 1.0, "1", None, (0, 1)):
        with pytest.raises(TypeError, match=r"a batch has a number, got .*\[batches\[i\] for i in range"):
            batches[number]
    for number in (-1, np.int64(-1)):
        with pytest.raises(IndexError, match="numbered from 0.*there is no last; got -1"):
            batches[number]


def test_held_out_batches_are_the_text_in_order(corpus, tokenizer):
    batches = corpus.held_out_batches(2, 10)
    row = torch.cat([batches[i][:, :-1].flatten() for i in range(len(batches))])
    assert torch.equal(row, corpus.held_out[: len(row)].long())


@pytest.mark.parametrize(
    "batch, context, message", [(0, 4, "batch must"), (1, 0, "context must"), (9, 99_999, "not enough")]
)
def test_batches_that_cannot_be_are_refused(corpus, batch, context, message):
    with pytest.raises(ValueError, match=message):
        corpus.batches(batch, context)
    with pytest.raises(IndexError, match="from 0"):
        corpus.batches(1, 4)[-1]


def test_a_text_begins_with_what_the_model_wants(texts, tokenizer):
    from llmsys.models import Tokenizer

    with_bos = Tokenizer(tokenizer.core, eos_ids=[257], bos_id=257)
    corpus = Corpus.from_texts(texts, with_bos)
    assert corpus.train[0] == 257 and int((corpus.train == 257).sum()) == int((corpus.train == 256).sum())
    assert corpus.digest != Corpus.from_texts(texts, tokenizer).digest


class TestCache:
    def test_tokens_are_made_once(self, texts, tokenizer, corpus, tmp_path):
        told = []

        def make(texts=texts):
            return Corpus.from_texts(texts, tokenizer, cache=tmp_path / "new", progress=lambda *x: told.append(x))

        first, again = make(), make()
        assert told == [(40, 40)]
        for one in (first, again):
            assert torch.equal(one.train, corpus.train) and torch.equal(one.held_out, corpus.held_out)
            assert one.digest == corpus.digest
        make(texts | {"0.txt": "changed"})
        assert len(told) == 2
        (kept, _) = sorted((tmp_path / "new").iterdir())
        for file in (tmp_path / "new").iterdir():
            file.write_bytes(kept.read_bytes()[:100])
        assert torch.equal(make().train, corpus.train) and len(told) == 3

    def test_no_place_for_it_costs_time_only(self, texts, tokenizer, corpus, tmp_path):
        (tmp_path / "file").write_text("no folder")
        made = Corpus.from_texts(texts, tokenizer, cache=tmp_path / "file")
        assert torch.equal(made.train, corpus.train)


@pytest.fixture(scope="module")
def sources():
    return module.sympy_sources()


class TestSymPy:
    def test_it_is_the_release(self, sources):
        assert len(sources) == module.SYMPY_FILES and "core/expr.py" in sources

    def test_a_part_of_it_is_always_the_same_part(self, sources, tokenizer, tmp_path):
        few = module._chosen(sources, 20)
        assert len(few) == 20 and few.items() <= sources.items()
        assert few.items() <= module._chosen(sources, 40).items()
        assert module._chosen(sources, None) == module._chosen(sources, 9999) == sources
        with pytest.raises(ValueError, match="at least 2"):
            module._chosen(sources, 1)
        corpus = Corpus.load(tokenizer, files=20, cache=tmp_path)
        assert corpus.files == 20 and len(files_in(corpus.held_out, tokenizer)) == 1
        whole = {name for name in sources if module._rank(name) < module.HELD_OUT}
        assert 0.03 < len(whole) / len(sources) < 0.08

    @pytest.fixture
    def installed(self, monkeypatch):
        """Make another package be SymPy."""

        def install(folder: Path | None):
            spec = folder and importlib.machinery.ModuleSpec("sympy", None, origin=str(folder / "__init__.py"))
            monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)

        return install

    def test_another_one_is_refused(self, installed, tmp_path):
        (tmp_path / "__init__.py").write_text("__version__ = '1.13'\n")
        installed(tmp_path)
        with pytest.raises(ValueError, match="its 1 files are not those of sympy==1.14.0.*pip install"):
            module.sympy_sources()
        installed(None)
        with pytest.raises(FileNotFoundError, match="pip install sympy==1.14.0"):
            module.sympy_sources()
