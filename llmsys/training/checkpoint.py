"""Checkpoints: a whole one or none, whatever happens while it is written.

A checkpoint is a directory. It is a model as on Hugging Face (`llmsys.models.save`), so `load_model` and `llmsys
generate --model` take it as it is, and two files more:

    training/adamw.safetensors    AdamW's running means, fp32: "m.NAME" and "v.NAME" for each weight
    training/state.json           the step, the settings, the losses so far
    training/buffers.safetensors  the model's buffers, where it has any: a router's bias, say

The weights in it are the fp32 masters. A model in bf16 is these, rounded, so nothing is stored twice.

**A process may be killed, or a disk fill up, in the middle.** So everything is written into a directory beside it,
whose name begins with a dot and which nobody reads; each file is flushed to the disk; and then the directory is
renamed. A rename happens or does not. Without the flushes, a system may put the new name on the disk before the
contents, and a power cut between the two leaves whole names with empty files. Removing works the other way round: first
the name goes, then the contents.
"""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from llmsys.models.llama import Llama
from llmsys.models.save import save_model
from llmsys.models.settings import read_json
from llmsys.models.weights import assemble, open_checkpoint
from llmsys.training.optimise import Optimiser

TENSORS, STATE = "training/adamw.safetensors", "training/state.json"
BUFFERS = "training/buffers.safetensors"


def save_checkpoint(
    path: str | Path, model: Llama, optimiser: Optimiser | None = None, state: Mapping[str, Any] | None = None
) -> None:
    """Write a checkpoint to `path`, a directory that is not there yet. When this returns it is on the disk.

    Parameters
    ----------
    optimiser
        What trains the model: its masters and running means. Without it the checkpoint is the model alone.
    state
        What JSON can hold, for `training/state.json`; "step", how many steps have been taken, is needed to go on.

    Raises
    ------
    FileExistsError
        There is something at `path`: a checkpoint is never overwritten.
    OSError
        It could not be written: the disk is full, say. Nothing is at `path`, and what was beside it is as it was.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path}: exists already, and a checkpoint is not overwritten; give another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.writing")
    _remove(unfinished)  # left by a process that was killed
    try:
        save_model(model, unfinished, weights=optimiser and optimiser.masters)
        (unfinished / STATE).parent.mkdir()
        (unfinished / STATE).write_text(json.dumps(dict(state or {}), indent=1), encoding="utf-8")
        files = {TENSORS: optimiser.state()} if optimiser is not None else {}
        if buffers := _buffers(model):
            files[BUFFERS] = {name: buffer.contiguous() for name, buffer in buffers.items()}
        for name, tensors in files.items():
            save_file(tensors, unfinished / name)
            shutil.copymode(unfinished / STATE, unfinished / name)  # safetensors makes it its owner's alone
        for each in (*unfinished.rglob("*"), unfinished):
            _flush(each)
        unfinished.rename(path)
        _flush(path.parent)
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"{path}: the checkpoint could not be written ({error}); earlier ones are as they were"
        ) from error
    finally:
        _remove(unfinished)


def load_checkpoint(path: str | Path, model: Llama, optimiser: Optimiser | None = None) -> dict[str, Any]:
    """Put a checkpoint's weights and buffers into `model`, and its running means into `optimiser`. Returns the `state`.

    Raises
    ------
    FileNotFoundError, ValueError
        There is none at `path`, it is damaged, or it is another model's. The message names the file and the thing.
    """
    path = Path(path)
    checkpoint = open_checkpoint(path)
    if not (path / STATE).is_file():
        raise FileNotFoundError(f"{path}: a model, but no checkpoint of a training run: {STATE} is missing")
    theirs, own = (replace(config, name="") for config in (checkpoint.config, model.config))
    if theirs != own:
        field = next(name for name in vars(own) if getattr(own, name) != getattr(theirs, name))
        raise ValueError(
            f"{path}: another model's checkpoint, its {field} is {getattr(theirs, field)} and this model's is "
            f"{getattr(own, field)}"
        )
    state = read_json(path / STATE)
    weights = dict(assemble(checkpoint, model))
    _load_buffers(path, model)
    if optimiser is None:
        with torch.no_grad():
            for name, weight in model.named_parameters():
                weight.copy_(weights[name])
        return state
    try:
        optimiser.restore(weights, load_file(path / TENSORS), int(state["step"]))
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path / TENSORS}: cannot be read ({error}); resume from an earlier checkpoint") from error
    except KeyError as error:
        raise ValueError(f"{path}: {error.args[0]} is missing; this is no checkpoint of this optimiser") from error
    return state


def name_of(step: int) -> str:
    """What a run calls its checkpoint after so many steps."""
    return f"step-{step:06d}"


def checkpoints(directory: str | Path) -> list[Path]:
    """The checkpoints of a run, oldest first; none where there is no such directory."""
    found = {path: re.fullmatch(r"step-(\d+)", path.name) for path in Path(directory).glob("step-*")}
    return sorted((path for path, match in found.items() if match), key=lambda path: int(path.name[5:]))


def latest_checkpoint(directory: str | Path) -> Path | None:
    """The newest checkpoint of a run, None where there is none."""
    return next(reversed(checkpoints(directory)), None)


def prune(directory: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints, and what killed processes left."""
    for path in checkpoints(directory)[:-keep]:
        path.rename(path.with_name(f".{path.name}.removing"))
    for path in Path(directory).glob(".step-*.*ing"):
        _remove(path)


def _buffers(model: Llama) -> dict[str, Tensor]:
    """The model's buffers that belong to its state."""
    weights = dict(model.named_parameters(remove_duplicate=False))
    return {name: x for name, x in model.state_dict().items() if name not in weights}


def _load_buffers(path: Path, model: Llama) -> None:
    buffers = _buffers(model)
    if not buffers:
        return
    try:
        saved = load_file(path / BUFFERS)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path / BUFFERS}: cannot be read ({error}); resume from an earlier checkpoint") from error
    for name, buffer in buffers.items():
        if name not in saved or saved[name].shape != buffer.shape:
            raise ValueError(f"{path / BUFFERS}: holds no {name} of shape {tuple(buffer.shape)}: another model's")
        buffer.copy_(saved[name])


def _remove(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path)


def _flush(path: Path) -> None:
    """Have the system write a file, or a directory's names, to the disk now."""
    if path.is_dir() and os.name == "nt":  # Windows opens no directories, and writes names by itself
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
