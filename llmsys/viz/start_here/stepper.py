"""How a model writes: the candidates for the next token, the one that is taken, and the text that grows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llmsys.viz.kit.stepper import Stepper
from llmsys.viz.kit.svg import Svg

SHOWN = 8
"""How many candidates are drawn."""


def stepper(model, prompt: str, *, steps: int = 12, next_token: Callable[[Tensor], Tensor] | None = None) -> Stepper:
    """Step through a sentence while the model writes it.

    model         has a `tokenizer` (encode, decode, eos_ids), and gives logits (B, T, V) for tokens (B, T)
    prompt        text to go on with, as it is
    next_token    logits (B, T, V) -> (B,) token ids; the library's `greedy` if none is given

    Raises ValueError for an empty prompt, or steps below 1.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    frames = written(model, prompt, steps, next_token)
    return Stepper(
        frames,
        draw,
        title="How a model writes: one token at a time",
        describe=describe,
        static=lambda frames: min(frames, key=lambda frame: frame.candidates[0][1]).step,
        interval=1300,
    )


@dataclass(frozen=True)
class Frame:
    """The moment before a new token is appended; `step` counts them from 0."""

    step: int
    prompt: tuple[str, ...]  # the prompt's tokens, as text
    new: tuple[str, ...]  # the tokens written so far
    candidates: tuple[tuple[str, float], ...]  # the likeliest next ones, with their probabilities
    chosen: str
    probability: float


def written(model, prompt: str, steps: int, next_token: Callable[[Tensor], Tensor] | None = None) -> list[Frame]:
    """One frame for each new token. Stops early where the model says that it is done."""
    if next_token is None:
        from llmsys.models import greedy as next_token

    tokenizer = model.tokenizer
    ids = list(tokenizer.encode(prompt))
    if not ids:
        raise ValueError("the prompt has no tokens: give the model some text to go on with")
    start, frames = len(ids), []
    with torch.no_grad():
        for step in range(steps):
            logits = model(torch.tensor([ids]))  # (1, T, V)
            chosen = int(next_token(logits)[0])
            weights = torch.softmax(logits[0, -1].float(), dim=-1)  # (V,)
            best = weights.topk(min(SHOWN, len(weights)))
            candidates = tuple((_text(tokenizer, i), p) for p, i in zip(*map(Tensor.tolist, best), strict=True))
            words = tuple(_text(tokenizer, i) for i in ids)
            probability = weights[chosen].item()
            frames.append(Frame(step, words[:start], words[start:], candidates, _text(tokenizer, chosen), probability))
            ids.append(chosen)
            if chosen in getattr(tokenizer, "eos_ids", ()):
                break
    return frames


def describe(frame: Frame) -> str:
    """The caption of a frame: which token is taken, and how likely it was."""
    best, probability = frame.candidates[0]
    taken = f"{_quoted(frame.chosen)}, with a probability of {_percent(frame.probability)}"
    text = f"After “{_line(frame.prompt + frame.new)}” the model takes {taken}"
    if frame.chosen == best:
        return text + "."
    return f"{text}; the likeliest would have been {_quoted(best)}, with {_percent(probability)}."


def draw(frame: Frame) -> Svg:
    """One frame as a picture: the tokens so far, the candidates below."""
    lines = _wrapped([(text, "blue-soft") for text in frame.prompt] + [(text, "green-soft") for text in frame.new])
    top = 30 * max(len(lines), 2) + 34
    svg = Svg(760, top + 25 * SHOWN + 8, alt="")
    x, y = 4.0, 0
    for i, line in enumerate(lines):
        x, y = 4.0, 18 + 30 * i
        for text, fill in line:
            width = _width(text)
            svg.rect(x, y - 14, width, 24, fill, rx=5)
            svg.text(x + width / 2, y + 3, _visible(text), "middle mono")
            x += width + 4
    svg.rect(x, y - 14, 26, 24, "line-orange dashed", rx=5)
    svg.text(x + 13, y + 3, "?", "middle bold orange")

    longest = frame.candidates[0][1] or 1.0
    svg.text(0, top - 18, "the likeliest next tokens", "bold")
    taken = False
    for i, (text, probability) in enumerate(frame.candidates):
        y, now = top + 25 * i, text == frame.chosen
        taken |= now
        svg.text(150, y + 13, _visible(text)[:18], "end mono" + (" orange bold" if now else ""))
        svg.rect(160, y, max(470 * probability / longest, 1.5), 18, "orange" if now else "blue", rx=2)
        x = 168 + 470 * probability / longest
        svg.text(x, y + 13, [_percent(probability), ("  ← taken", "orange bold") if now else ""], "small")
    if not taken:
        said = ["taken instead: ", (_visible(frame.chosen), "mono orange bold"), f" ({_percent(frame.probability)})"]
        svg.text(756, top - 18, said, "end")
    return svg


def _text(tokenizer, token: int) -> str:
    return tokenizer.decode([token])


def _visible(text: str) -> str:
    return text.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣") or "∅"


def _line(texts: Sequence[str]) -> str:
    return "".join(texts).replace("\n", " ⏎ ").strip()


def _quoted(text: str) -> str:
    return f"“{_line([text]) or '␣'}”" if text else "a token without text"


def _percent(probability: float) -> str:
    return f"{100 * probability:.1f}%" if probability >= 0.001 else "under 0.1%"


def _width(text: str) -> float:
    return 8.1 * len(_visible(text)) + 10  # a monospaced character of 13 px, in any of the usual fonts


def _wrapped(chips: Sequence[tuple[str, str]], width: float = 720) -> list[list[tuple[str, str]]]:
    lines, used = [[]], 0.0
    for chip in chips:
        wide = _width(chip[0]) + 4
        if used + wide > width and lines[-1]:
            lines.append([])
            used = 0.0
        lines[-1].append(chip)
        used += wide
    return lines
