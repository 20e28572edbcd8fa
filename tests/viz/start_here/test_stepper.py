"""The next token's stepper shows what the model and the chosen sampler really do."""

from xml.etree import ElementTree

import pytest
import torch

from llmsys.viz.start_here import stepper
from llmsys.viz.start_here.stepper import draw

WORDS = ["The", " sky", " is", " <blue>", ".", "\n", ""]
END = 6


class Tokenizer:
    eos_ids = (END,)

    def encode(self, text):
        return [WORDS.index(word) for word in text.split("|") if word]

    def decode(self, ids):
        return "".join(WORDS[i] for i in ids)


class Model:
    """Says the next of WORDS, with a probability of one half."""

    tokenizer = Tokenizer()

    def __call__(self, tokens):
        B, T = tokens.shape
        probabilities = torch.full((B, T, len(WORDS)), 0.5 / (len(WORDS) - 1))
        return probabilities.scatter(2, (tokens[..., None] + 1).clamp(max=END), 0.5).log() + 3.0


def greedy(logits):
    return logits[:, -1].argmax(-1)


def test_it_follows_the_model_and_stops_where_the_model_does():
    frames = stepper(Model(), "The| sky", steps=12, next_token=greedy).frames
    assert [frame.chosen for frame in frames] == [" is", " <blue>", ".", "\n", ""]
    assert [frame.new for frame in frames][:3] == [(), (" is",), (" is", " <blue>")]
    assert all(frame.prompt == ("The", " sky") and frame.probability == pytest.approx(0.5) for frame in frames)
    assert all(frame.candidates[0][0] == frame.chosen for frame in frames)


def test_no_more_steps_than_asked_for():
    assert len(stepper(Model(), "The", steps=2, next_token=greedy).frames) == 2


def test_another_sampler_is_shown_taking_another_token():
    shown = stepper(Model(), "The", steps=1, next_token=lambda logits: logits[:, -1].argmin(-1))
    frame = shown.frame
    assert frame.probability == pytest.approx(0.5 / 6)
    assert "the likeliest would have been “sky”, with 50.0%" in repr(shown)


def test_every_frame_is_an_svg_with_the_text_so_far():
    for frame in stepper(Model(), "The| sky", steps=12, next_token=greedy).frames:
        root = ElementTree.fromstring(draw(frame).markup())
        assert "taken" in "".join(root.itertext())


def test_the_librarys_greedy_is_the_default():
    models = pytest.importorskip("llmsys.models")
    frames = stepper(Model(), "The", steps=3).frames
    assert [frame.chosen for frame in frames] == [" sky", " is", " <blue>"]
    assert models.greedy(Model()(torch.tensor([[0]]))).tolist() == [1]


@pytest.mark.parametrize(("prompt", "steps", "said"), [("", 3, "no tokens"), ("The", 0, "at least 1, got 0")])
def test_an_empty_prompt_and_no_steps_are_refused(prompt, steps, said):
    with pytest.raises(ValueError, match=said):
        stepper(Model(), prompt, steps=steps, next_token=greedy)
