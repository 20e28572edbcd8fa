"""Requests that are drawn: they come, many at a time and one by one, share beginnings, and some are aborted."""

from llmsys.course.checking.answer import Answer


def life(answer: Answer, *, room: int, requests: int = 12) -> list[list]:
    """A script in which no request has more than `room` tokens in the cache."""
    script, turn = [], 0
    starts = [[n] * 3 + list(range(n, n + 6)) for n in (100, 200, 300)]
    for n in range(requests):
        name = f"r{n}"
        turn += int(answer.randint(0, 3)) * int(answer.randint(0, 2))
        prompt = starts[int(answer.randint(0, 3))][: int(answer.randint(0, 10))]
        prompt += [n, *range(int(answer.randint(0, 10)))]
        longest = max(1, min(12, room + 1 - len(prompt)))
        script.append([turn, "add", name, prompt, int(answer.randint(1, longest + 1))])
        if int(answer.randint(0, 6)) == 0:
            script.append([turn + int(answer.randint(1, 8)), "abort", name])
    return script
