"""Checkpoints: what was saved is what is read, to the bit; and there is a whole one or none, whatever happens."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llmsys.models import Llama, load_model
from llmsys.training import (
    Optimiser,
    TrainConfig,
    latest_checkpoint,
    load_checkpoint,
    next_token_loss,
    save_checkpoint,
    train,
)  # fmt: skip

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
SETTINGS = TrainConfig(steps=2, batch=2, context=16, save_every=1, keep=1, evaluate_batches=1, dtype="bfloat16")


def trained(model, corpus, dtype=torch.float32, steps=2):
    model.requires_grad_(True)
    optimiser = Optimiser(model, dtype=dtype)
    for i in range(steps):
        next_token_loss(model, corpus.batches(2, 16)[i]).backward()
        optimiser.gather()
        optimiser.step(1e-2)
    return optimiser


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_was_saved_is_what_is_read(tiny, corpus, tmp_path, dtype):
    optimiser = trained(tiny, corpus, dtype)
    save_checkpoint(tmp_path / "one", tiny, optimiser, {"step": 2, "other": [1.1, None]})

    again = Llama(tiny.config)
    other = Optimiser(again, dtype=dtype)
    assert load_checkpoint(tmp_path / "one", again, other) == {"step": 2, "other": [1.1, None]}
    for name, weight in tiny.named_parameters():
        assert torch.equal(again.get_parameter(name), weight), name
        assert torch.equal(other.masters[name], optimiser.masters[name]), name
    assert other.state().keys() == optimiser.state().keys()
    assert all(torch.equal(other.state()[name], means) for name, means in optimiser.state().items())


def test_a_checkpoint_is_a_model(tiny, corpus, tmp_path):
    """load_model reads the masters; in bf16 they are the model that was trained."""
    optimiser = trained(tiny, corpus, torch.bfloat16)
    save_checkpoint(tmp_path / "one", tiny, optimiser, {"step": 2})
    loaded = load_model(tmp_path / "one", dtype=torch.bfloat16)
    tokens = torch.arange(20)[None]
    with torch.inference_mode():
        assert torch.equal(loaded(tokens), tiny(tokens))
    text = "Ünïcode\n\tand <|endoftext|>"
    assert loaded.tokenizer.encode(text) == tiny.tokenizer.encode(text)
    assert torch.equal(load_model(tmp_path / "one").norm.weight, optimiser.masters["norm.weight"])


def test_the_model_alone_is_enough(tiny, tmp_path):
    save_checkpoint(tmp_path / "one", tiny)
    again = Llama(tiny.config)
    assert load_checkpoint(tmp_path / "one", again) == {}
    assert all(torch.equal(one, other) for one, other in zip(again.parameters(), tiny.parameters(), strict=True))
    with pytest.raises(ValueError, match="adamw.safetensors: cannot be read"):
        load_checkpoint(tmp_path / "one", again, Optimiser(again))


def test_nothing_is_overwritten(tiny, tmp_path):
    (tmp_path / "one").mkdir()
    with pytest.raises(FileExistsError, match="one: exists already"):
        save_checkpoint(tmp_path / "one", tiny)
    assert list(tmp_path.iterdir()) == [tmp_path / "one"]


@pytest.mark.parametrize("state", [{"step": torch.tensor(1)}, {"step": 1, "x": {1, 2}}, {"steps": [1j]}])
def test_a_state_that_json_cannot_hold_is_refused_before_anything_is_written(tiny, tmp_path, state):
    with pytest.raises(ValueError, match="state must be what JSON can hold"):
        save_checkpoint(tmp_path / "one", tiny, None, state)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", [-1, True, 1.0, "2", None, 2**24 + 1, 10**400])
def test_a_step_that_is_no_number_of_steps(tiny, corpus, tmp_path, step):
    optimiser = trained(tiny, corpus)
    save_checkpoint(tmp_path / "one", tiny, optimiser, {"step": step})
    before = {name: master.clone() for name, master in optimiser.masters.items()}
    with pytest.raises(ValueError, match="state.json: step must be a whole number from 0 to 2.24.*move .*one away"):
        load_checkpoint(tmp_path / "one", tiny, optimiser)
    assert all(torch.equal(master, before[name]) for name, master in optimiser.masters.items())


class TestDamage:
    @pytest.fixture
    def saved(self, tiny, corpus, tmp_path):
        optimiser = trained(tiny, corpus)
        save_checkpoint(tmp_path / "one", tiny, optimiser, {"step": 2})
        return tmp_path / "one", tiny, optimiser

    @pytest.mark.parametrize("file", ["model.safetensors", "training/adamw.safetensors"])
    def test_half_a_file(self, saved, file):
        path, model, optimiser = saved
        (path / file).write_bytes((path / file).read_bytes()[:5000])
        with pytest.raises(ValueError, match=file):
            load_checkpoint(path, model, optimiser)

    def test_no_state(self, saved):
        path, model, optimiser = saved
        (path / "training/state.json").unlink()
        with pytest.raises(FileNotFoundError, match="no checkpoint of a training run: training/state.json is missing"):
            load_checkpoint(path, model, optimiser)
        with pytest.raises(FileNotFoundError, match="nowhere"):
            load_checkpoint(path.parent / "nowhere", model, optimiser)

    def test_no_step(self, saved):
        path, model, optimiser = saved
        (path / "training/state.json").write_text("{}")
        with pytest.raises(ValueError, match="step is missing"):
            load_checkpoint(path, model, optimiser)

    @pytest.mark.parametrize("field, value", [("rope_base", 5.0), ("layers", 3)])
    def test_another_model(self, saved, field, value):
        path, model, _ = saved
        other = Llama(replace(model.config, **{field: value}))
        with pytest.raises(ValueError, match=f"another model's checkpoint, its {field} is"):
            load_checkpoint(path, other)


def test_a_disk_that_fails_leaves_what_was_there(tiny, corpus, tmp_path, monkeypatch):
    train(tiny, corpus, SETTINGS, out=tmp_path)
    before = sorted(tmp_path.rglob("*"))

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="step-000004: the checkpoint could not be written.*No space left"):
        save_checkpoint(tmp_path / "step-000004", tiny)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.fixture(scope="module")
def whole(new_model, corpus, tmp_path_factory):
    """Of a run that nothing disturbed: its losses, its weights, and the size of the largest file that it wrote."""
    model, folder = new_model(), tmp_path_factory.mktemp("whole")
    run = train(model, corpus, SETTINGS, out=folder)
    size = (run.checkpoint / "training/adamw.safetensors").stat().st_size
    return run.losses, {name: weight.clone() for name, weight in model.named_parameters()}, size


@pytest.fixture(scope="module")
def killed(whole, tmp_path_factory):
    """What `killed.py` left: a folder for each moment, and one where the disk was full; and what it printed."""
    folder = tmp_path_factory.mktemp("killed")
    path = os.pathsep.join([str(ROOT), str(HERE)])
    done = subprocess.run(
        [sys.executable, HERE / "killed.py", folder, str(whole[2] - 1)],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
class TestKilled:
    """The losses and weights of a run that nothing disturbed are what each resumed run must reach."""

    def resumed(self, folder, model, corpus):
        """Go on in `folder`, from where it got to."""
        latest = latest_checkpoint(folder)
        return train(model, corpus, SETTINGS, out=folder, resume=latest is not None)

    def test_at_every_moment(self, whole, killed, corpus, new_model):
        folders = sorted((path for path in killed[0].iterdir() if path.name != "full"), key=lambda path: int(path.name))
        assert len(folders) > 20
        reached = set()
        for folder in folders:
            found = [path for path in folder.iterdir() if not path.name.startswith(".")]
            model = load_model(found[0]) if found else None
            for path in found:
                state = json.loads((path / "training/state.json").read_text())
                load_checkpoint(path, model, Optimiser(model.requires_grad_(True), dtype=torch.bfloat16))
                reached.add(state["step"])
        assert reached == {1, 2}
        for folder in folders[:: len(folders) // 5]:
            model = new_model()
            run = self.resumed(folder, model, corpus)
            assert run.losses == whole[0]
            assert all(torch.equal(weight, whole[1][name]) for name, weight in model.named_parameters())
            assert [path.name for path in folder.iterdir()] == ["step-000002"]  # nothing left behind

    def test_when_the_disk_is_full(self, whole, killed, corpus, new_model):
        folder, said = killed
        assert "step-000001: the checkpoint could not be written" in said
        assert list((folder / "full").iterdir()) == []
        assert self.resumed(folder / "full", new_model(), corpus).losses == whole[0]
