"""A request's way through the service, without HTTP: what is passed on when it comes faster than it is read."""

import asyncio

import pytest

pytest.importorskip("fastapi", reason="the serving extra is not installed")

from hypothesis import given
from hypothesis import strategies as st

from llmsys.serving import Answer, Response, TokenLogprobs, Update
from llmsys.serving.server.errors import ApiError
from llmsys.serving.server.service import Asked


class Noted:
    """In place of the measurements."""

    def __init__(self):
        self.first, self.tokens = 0, []

    def first_token(self, seconds):
        self.first += 1

    def ended(self, reason, seconds, after_first, tokens):
        self.tokens.append(tokens)


def asked(prompts: int, n: int, updates: list[Update], noted: Noted) -> Asked:
    answers = [[Answer(i) for i in range(n)] for _ in range(prompts)]
    responses = [Response(f"a-{p}", (1,), answers[p]) for p in range(prompts)]
    queue = asyncio.Queue()
    for update in updates:
        queue.put_nowait(update)
        answers[int(update.id[2:])][update.index].tokens.extend(update.tokens)
    return Asked(responses, queue, n, 0.0, noted)


def read(one: Asked) -> list[tuple[int, Update]]:
    async def go():
        return [each async for each in one]

    return asyncio.run(asyncio.wait_for(go(), 10))


@given(st.data(), st.integers(1, 3), st.integers(1, 3), st.booleans())
def test_what_waits_is_passed_on_together_and_nothing_is_lost(data, prompts, n, logprobs):
    lengths = [data.draw(st.integers(1, 4), label="updates of a choice") for _ in range(prompts * n)]
    order = data.draw(st.permutations([choice for choice, length in enumerate(lengths) for _ in range(length)]))
    updates, so_far = [], [0] * len(lengths)
    for token, choice in enumerate(order):
        so_far[choice] += 1
        reason = "length" if so_far[choice] == lengths[choice] else None
        its = (TokenLogprobs(-float(token)),) if logprobs else None
        updates.append(Update(f"a-{choice // n}", choice % n, f"{token},", (token,), its, reason))
    noted = Noted()
    found = read(asked(prompts, n, updates, noted))
    for choice in range(len(lengths)):
        tokens = tuple(token for token, owner in enumerate(order) if owner == choice)
        mine = [update for owner, update in found if owner == choice]
        assert sum((update.tokens for update in mine), ()) == tokens
        assert "".join(update.text for update in mine) == "".join(f"{token}," for token in tokens)
        assert [update.reason for update in mine][:-1] == [None] * (len(mine) - 1) and mine[-1].reason == "length"
        if logprobs:
            assert tuple(each.logprob for update in mine for each in update.logprobs) == tuple(-t for t in tokens)
        else:
            assert all(update.logprobs is None for update in mine)
    changes = 1 + sum(a != b for a, b in zip(order, order[1:], strict=False))
    assert len(found) == changes, "all that waits of one answer in a row is one piece"
    assert noted.first == len(lengths) and sorted(noted.tokens) == sorted(lengths)


@pytest.mark.parametrize(("reason", "status"), [("error", 500), ("abort", 503)])
def test_an_answer_that_fails_ends_the_request(reason, status):
    noted = Noted()
    with pytest.raises(ApiError) as failed:
        read(asked(1, 2, [Update("a-0", 1, "x", (5,)), Update("a-0", 0, reason=reason, error="why")], noted))
    assert failed.value.status == status and noted.tokens == [0]
