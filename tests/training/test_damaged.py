"""Damage of any kind to a checkpoint: an error that names the file and the remedy, or no harm; and nothing changes."""

import copy
import json
import math
import random
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmsys.training import Run, TrainConfig, train
from llmsys.training.run import from_json, to_json
from llmsys.training.trainer import saved_settings
from tests.support.size import FULL, SEED

SETTINGS = TrainConfig(steps=3, batch=2, context=16, evaluate_batches=1, save_every=1, keep=9)
STATE, MEANS, MODEL = "training/state.json", "training/adamw.safetensors", "model.safetensors"
VALUES = [
    None, True, False, 0, 1, -1, 2, 3, 10**30, 10**400, 2**53 + 1, 0.0, 0.5, -1.5, 1e308, math.nan, math.inf, "", "1",
    "float32", "x\n" * 500, [], [0], [[]], [0.9, 0.95], {}, {"a": None}, {"0": 1.0}, {"steps": []},
]  # fmt: skip


@pytest.fixture(scope="module")
def whole(new_model, corpus, tmp_path_factory):
    """A run of three steps that was stopped after two, with a checkpoint after each."""
    folder = tmp_path_factory.mktemp("whole")
    seen = []
    train(
        new_model(), corpus, SETTINGS, out=folder, on_step=seen.append, should_stop=lambda: len(seen) == 2,
    )  # fmt: skip
    return folder


@pytest.fixture
def run(whole, tmp_path):
    """A copy of it, to be damaged."""
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(scope="module")
def state(whole):
    return json.loads((whole / "step-000002" / STATE).read_text())


def resume(run, model, corpus):
    """Go on; the run where that went, the message where it was refused, in which case the model is what it was."""
    before = copy.deepcopy(model.state_dict())
    try:
        return train(model, corpus, SETTINGS, out=run, resume=True), None
    except (ValueError, OSError) as error:
        assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
        return None, str(error)


def refused(run, model, corpus, *named):
    _, message = resume(run, model, corpus)
    assert message is not None and len(message) < 1000
    for part in (*named, f"to go on from the checkpoint before it, move {run / 'step-000002'} away"):
        assert part in message, message


def places(state, way=()):
    """The way to every value in JSON, itself included."""
    yield way
    if isinstance(state, dict | list):
        for key in state if isinstance(state, dict) else range(len(state)):
            yield from places(state[key], (*way, key))


def changed(state, way, value):
    """The state with another value there; without that key, where the value is `...`."""
    if not way:
        return value
    state = copy.deepcopy(state)
    inner = state
    for key in way[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[way[-1]]
    else:
        inner[way[-1]] = value
    return state


def test_any_value_at_any_place_of_the_state_is_refused_or_is_what_is_written_again(state, corpus, run, new_model):
    """Which of them are refused is looked at for a few; of all of them, that nothing else comes of them."""
    file = run / "step-000002" / STATE
    refusals = 0
    for way in places(state):
        for value in (*VALUES, *([...] if way else [])):
            other = changed(state, way, value)
            if not isinstance(other, dict):
                continue
            try:
                saved = from_json(other)
            except ValueError as error:
                refusals += 1
                assert len(str(error)) < 1000 and "\n" not in str(error)
                continue
            again = to_json(saved_run(saved), corpus) | {"corpus": saved.corpus}
            assert same(json.loads(json.dumps(again)), other), (way, value)
    assert refusals > 500
    ways = list(places(state))
    draw = random.Random(SEED)
    for _ in range(400 if FULL else 20):
        way, value = draw.choice(ways), draw.choice(VALUES)
        file.write_text(json.dumps(changed(state, way, value)))
        model = new_model()
        try:
            saved_settings(run)  # what `llmsys train --resume` asks first
        except (ValueError, OSError) as error:
            assert str(file) in str(error) and "move" in str(error), (way, value)
        for later in run.glob("step-000003"):
            shutil.rmtree(later)
        resume(run, model, corpus)


def saved_run(saved):
    return Run(torch.nn.Module(), saved.config, saved.steps, saved.held_out)


def same(one, other):
    """Equal, where NaN is NaN, and a number may have become a float."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, float) and isinstance(other, int):
        return one == float(other)
    return one == other or one != one and other != other


@pytest.mark.parametrize(
    "way, value, says",
    [
        (("step",), ..., "step is missing"),
        (("step",), 7, "step is 7, and there are 2 steps"),
        (("step",), True, "step must be a whole number, got True"),
        (("steps",), [], "step is 2, and there are 0 steps"),
        (("steps", 1), None, "steps[1] must be an object, got null"),
        (("steps", 1, "number"), 3, "steps[1].number must be 2, got 3"),
        (("steps", 0, "loss"), math.nan, "steps[0].loss must be finite"),
        (("steps", 0, "seconds"), 0, "steps[0].seconds must be above 0"),
        (("steps", 0, "more"), 0, "steps[0].'more' is unknown"),
        (("steps", 0, "terms", "balance"), "high", "steps[0].terms.balance must be a number, got 'high'"),
        (("config",), [], "config must be an object, got a list"),
        (("config", "batch"), ..., "config.batch is missing"),
        (("config", "batch"), "2", "batch must be a whole number, got '2'"),
        (("config", "steps"), 1, "step is 2, and config.steps, of which the run has no more, is 1"),
        (("config", "betas"), 0.9, "betas must be two numbers, got 0.9"),
        (("config", "betas", 1), 1, "betas must be two numbers from 0 to below 1"),
        (("config", "learning_rate"), -1, "learning_rate must be a positive number"),
        (("corpus",), ..., "corpus is missing"),
        (("corpus", "files"), None, "corpus.files must be a whole number, got None"),
        (("corpus", "digest"), 5, "corpus.digest must be a string, got 5"),
        (("held_out",), {}, "held_out is empty"),
        (("held_out", "3"), 1.0, "held_out is by steps from 0 to 2, and holds '3'"),
        (("held_out", "first"), 1.0, "and holds 'first'"),
        ((), [], "holds no JSON object"),
        ((), None, "holds no JSON object"),
    ],
    ids=str,
)  # fmt: skip
def test_the_key_is_named(run, state, tiny, corpus, way, value, says):
    file = run / "step-000002" / STATE
    file.write_text(json.dumps(changed(state, way, value)))
    refused(run, tiny, corpus, f"{file}: ", says)


@pytest.mark.parametrize(
    "data", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"9" * 5000, b'{"step": 2', b"null", b'"step"', b"\0" * 64]
)
def test_a_state_that_is_no_json_object(run, tiny, corpus, data):
    (run / "step-000002" / STATE).write_bytes(data)
    refused(run, tiny, corpus, str(run / "step-000002" / STATE))


def tensors_with(**changes):
    """A change of a file of tensors: these under other names or with other values; None takes one away."""

    def change(file):
        tensors = load_file(file)
        first = next(name for name in sorted(tensors) if name.startswith(("v.", "model.")))
        for name, make in changes.items():
            name = first if name == "first" else name
            if make is None:
                del tensors[name]
            else:
                tensors[name] = make(tensors[first].clone()).contiguous()
        save_file(tensors, file)

    return change


def filled(value):
    def fill(x):
        x.view(-1)[1] = value
        return x

    return fill


def cut(part):
    return lambda file: file.write_bytes(file.read_bytes()[: int(file.stat().st_size * part)])


def as_folder(file):
    file.unlink()
    file.mkdir()


DAMAGE = {
    "missing": lambda file: file.unlink(),
    "a folder": as_folder,
    "empty": cut(0),
    "its header cut": cut(0.01),
    "half of it": cut(0.5),
    "nearly all of it": cut(0.999),
    "zeros": lambda file: file.write_bytes(b"\0" * file.stat().st_size),
    "text": lambda file: file.write_text("<html>404</html>" * 10),
    "a tensor missing": tensors_with(first=None),
    "another's tensors": lambda file: save_file({"x": torch.ones(3)}, file),
    "no tensors": lambda file: save_file({}, file),
    "another shape": tensors_with(first=lambda x: x.reshape(-1)[:-1]),
    "NaN": tensors_with(first=filled(math.nan)),
    "infinite": tensors_with(first=filled(math.inf)),
}
ONLY_MEANS = {
    "a tensor more": tensors_with(**{"v.more": lambda x: x}),
    "below 0": tensors_with(first=filled(-1e-3)),
    "float16": tensors_with(first=lambda x: x.half()),
    "float64": tensors_with(first=lambda x: x.double()),
    "whole numbers": tensors_with(first=lambda x: x.long()),
    "true and false": tensors_with(first=lambda x: x > 0),
}


@pytest.mark.parametrize("damage", [*DAMAGE, *ONLY_MEANS])
def test_running_means(run, tiny, corpus, damage):
    file = run / "step-000002" / MEANS
    (DAMAGE | ONLY_MEANS)[damage](file)
    refused(run, tiny, corpus, str(file))


@pytest.mark.parametrize("damage", DAMAGE)
def test_weights(run, tiny, corpus, damage):
    DAMAGE[damage](run / "step-000002" / MODEL)
    refused(run, tiny, corpus, str(run / "step-000002"))


def test_a_byte_anywhere_in_the_tensors(run, tiny, corpus, whole):
    """In the header it is noticed; a number among numbers may be another one, and then the run goes on."""
    draw = random.Random(SEED)
    for i in range(300 if FULL else 12):
        name = (MEANS, MODEL)[i % 2]
        file = run / "step-000002" / name
        data = bytearray((whole / "step-000002" / name).read_bytes())
        place = draw.randrange(2000 if i % 3 else len(data))
        data[place] ^= 1 << draw.randrange(8)
        file.write_bytes(data)
        _, message = resume(run, tiny, corpus)
        assert message is None or str(run / "step-000002") in message and "move" in message, message
        shutil.copy(whole / "step-000002" / name, file)
        shutil.rmtree(run / "step-000003", ignore_errors=True)


def test_a_folder_that_was_half_copied(run, tiny, corpus, whole):
    files = sorted(path.relative_to(whole / "step-000002") for path in (whole / "step-000002").rglob("*"))
    for file in files:
        needed = not (file.name == "training" or file.name.startswith(("tokenizer", "generation")))
        shutil.rmtree(run / "step-000002")
        shutil.copytree(whole / "step-000002", run / "step-000002", ignore=lambda _, names, file=file: {file.name})
        _, message = resume(run, tiny, corpus)
        if needed:
            assert str(run / "step-000002") in message and "move" in message, file
        shutil.rmtree(run / "step-000003", ignore_errors=True)
    shutil.rmtree(run / "step-000002")
    (run / "step-000002").mkdir()
    refused(run, tiny, corpus, "training/state.json is missing")
    (run / "step-000002").rmdir()
    (run / "step-000002").write_text("a file")
    refused(run, tiny, corpus, "training/state.json is missing")


def test_moved_away_the_one_before_it_goes_on(run, tiny, new_model, corpus, tmp_path):
    (run / "step-000002" / MEANS).write_bytes(b"")
    refused(run, tiny, corpus)
    (run / "step-000002").rename(tmp_path / "elsewhere")
    again = train(tiny, corpus, SETTINGS, out=run, resume=True)
    assert again.losses == train(new_model(), corpus, SETTINGS).losses


def test_a_folder_under_another_steps_name(run, tiny, corpus):
    (run / "step-000002").rename(run / "step-000010")
    _, message = resume(run, tiny, corpus)
    assert "step is 2, and the folder is called step-000010" in message
