"""Checkpoints: a whole one or none, whatever happens while it is written.

A checkpoint is a directory. It is a model as on Hugging Face (`llmsys.models.checkpoints.save`), so `load_model` and
`llmsys generate --model` take it as it is, and two files more:

    training/adamw.safetensors    AdamW's running means, fp32: "m.NAME" and "v.NAME" for each weight
    training/state.json           the step, the settings, the losses so far
    training/buffers.safetensors  the model's buffers, where it has any: a router's bias, say

The weights in it are the fp32 masters. A model in bf16 is these, rounded, so nothing is stored twice.

**A process may be killed, or a disk fill up, in the middle.** So everything is written into a directory beside it,
whose name begins with a dot and which nobody reads; each file is flushed to the disk; and then the directory is
renamed. A rename happens or does not. Without the flushes, a system may put the new name on the disk before the
contents, and a power cut between the two leaves whole names with empty files. Removing works the other way round: first
the name goes, then the contents.

**A disk may also damage what was whole.** So all that is read is looked at before any of it is used: a checkpoint that
is wrong in any part changes neither model nor optimiser, and the message names the file and what to do.
"""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from reprlib import repr as short
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llmsys.models.checkpoints.save import save_model
from llmsys.models.checkpoints.weights import assemble, open_checkpoint
from llmsys.models.llama import Llama, LlamaConfig
from llmsys.models.modules import plain_name, unwrapped
from llmsys.training.optimise import Optimiser

TENSORS, STATE = "training/adamw.safetensors", "training/state.json"
BUFFERS = "training/buffers.safetensors"


def save_checkpoint(
    path: str | Path, model: nn.Module, optimiser: Optimiser | None = None, state: Mapping[str, Any] | None = None
) -> None:
    """Write a checkpoint to `path`, a directory that is not there yet. When this returns it is on the disk.

    Parameters
    ----------
    optimiser
        What trains the model: its masters and running means, by `masters` and `state()`. Without it the checkpoint is
        the model alone.
    state
        What JSON can hold, for `training/state.json`; "step", how many steps have been taken, is needed to go on.

    Raises
    ------
    FileExistsError
        There is something at `path`: a checkpoint is never overwritten.
    ValueError
        `state` holds what JSON cannot.
    OSError
        It could not be written: the disk is full, say. Nothing is at `path`, and what was beside it is as it was.
    """
    path, model = Path(path), unwrapped(model)
    if path.exists():
        raise FileExistsError(f"{path}: exists already, and a checkpoint is not overwritten; give another name")
    try:
        text = json.dumps(dict(state or {}), indent=1)
    except (TypeError, ValueError) as error:
        raise ValueError(f"state must be what JSON can hold: {error}") from None
    unfinished = path.with_name(f".{path.name}.writing")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(unfinished)  # left by a process that was killed
        save_model(model, unfinished, weights=optimiser and optimiser.masters)
        (unfinished / STATE).parent.mkdir()
        (unfinished / STATE).write_text(text, encoding="utf-8")
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
        with contextlib.suppress(OSError):  # of a disk that is read-only now: the error above says it
            _remove(unfinished)


def load_checkpoint(path: str | Path, model: nn.Module, optimiser: Optimiser | None = None) -> dict[str, Any]:
    """Put a checkpoint's weights and buffers into `model`, and its running means into `optimiser`. Returns the `state`.

    Raises
    ------
    FileNotFoundError, ValueError
        There is none at `path`, it is damaged, or it is another model's. The message names the file and the thing, and
        neither model nor optimiser has changed.
    """
    path, model = Path(path), unwrapped(model)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    state = read_state(path)
    try:
        checkpoint = open_checkpoint(path)
    except (OSError, ValueError) as error:
        raise damaged(path, None, error) from error
    _check_settings(path, checkpoint.config, model.config)
    try:
        weights = {plain_name(name): weight for name, weight in assemble(checkpoint, model)}
    except (OSError, ValueError) as error:
        raise damaged(path, None, error) from error
    buffers = _saved_buffers(path, model)
    if optimiser is not None:
        _check_finite(path, weights)
        means = _read(path, TENSORS)
        try:
            optimiser.restore(weights, means, _step(state))
        except ValueError as error:
            raise damaged(path, STATE if str(error).startswith("step ") else TENSORS, error) from error
    with torch.no_grad():
        if optimiser is None:
            for name, weight in model.named_parameters():
                weight.copy_(weights[plain_name(name)])
        for name, buffer in _buffers(model).items():
            buffer.copy_(buffers[name])
    return state


def load_parts(path: Path, parts: Mapping[str, Llama], optimiser: Optimiser, whole: Callable[[str], str]) -> None:
    """Put a checkpoint into the parts of its model that are here, and into the optimiser of all of them.

    Of the files no more is read than these parts hold. The parts' names and a dot stand before their weights' names in
    `optimiser`; `whole` takes a weight's name in its part to that in the whole model. Errors as for `load_checkpoint`.
    """
    try:
        checkpoint = open_checkpoint(path)
    except (OSError, ValueError) as error:
        raise damaged(path, None, error) from error
    for model in parts.values():
        _check_settings(path, checkpoint.config, model.config)
    try:
        weights = {
            f"{part}.{name}": weight for part, model in parts.items() for name, weight in assemble(checkpoint, model)
        }
    except (OSError, ValueError) as error:
        raise damaged(path, None, error) from error
    _check_finite(path, weights)
    means = {}
    try:
        with safe_open(path / TENSORS, framework="pt") as file:
            there = set(file.keys())
            for name in weights:
                part, _, own = name.partition(".")
                for mean in "mv":
                    if f"{mean}.{whole(own)}" in there:
                        means[f"{mean}.{name}"] = file.get_tensor(f"{mean}.{whole(own)}")
    except (OSError, SafetensorError) as error:
        raise damaged(path, TENSORS, f"cannot be read ({error})") from error
    try:
        optimiser.restore(weights, means, _step(read_state(path)))
    except ValueError as error:
        raise damaged(path, STATE if str(error).startswith("step ") else TENSORS, error) from error


def read_state(path: Path) -> dict[str, Any]:
    """What `training/state.json` of the checkpoint at `path` holds. Errors as for `load_checkpoint`."""
    file = path / STATE
    if not path.is_dir() or not file.exists():
        raise FileNotFoundError(f"{path}: no checkpoint of a training run: {STATE} is missing; {_remedy(path)}")
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, STATE, f"not JSON, or not to be read ({error})") from error
    if not isinstance(state, dict):
        raise damaged(path, STATE, "holds no JSON object")
    return state


def damaged(path: Path, file: str | None, what: object) -> ValueError:
    """The error for a checkpoint at `path` with something wrong in one of its files (None where `what` names it)."""
    return ValueError(f"{path if file is None else path / file}: {what}; {_remedy(path)}")


def _remedy(path: Path) -> str:
    return f"to go on from the checkpoint before it, move {path} away (without one, begin the run again)"


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


def _buffers(model: nn.Module) -> dict[str, Tensor]:
    """The model's buffers that belong to its state."""
    weights = dict(model.named_parameters(remove_duplicate=False))
    return {plain_name(name): x for name, x in model.state_dict().items() if name not in weights}


def _saved_buffers(path: Path, model: nn.Module) -> dict[str, Tensor]:
    buffers = _buffers(model)
    if not buffers:
        return {}
    saved = _read(path, BUFFERS)
    for name, buffer in buffers.items():
        if name not in saved or saved[name].shape != buffer.shape or saved[name].dtype != buffer.dtype:
            raise damaged(path, BUFFERS, f"holds no {name} of shape {tuple(buffer.shape)} in {buffer.dtype}")
        if saved[name].isnan().any():
            raise damaged(path, BUFFERS, f"{name} holds NaN")
    return saved


def _read(path: Path, file: str) -> dict[str, Tensor]:
    """The tensors in one of a checkpoint's files."""
    try:
        return load_file(path / file)
    except (OSError, SafetensorError) as error:
        raise damaged(path, file, f"cannot be read ({error})") from error


def _check_settings(path: Path, theirs: LlamaConfig, own: LlamaConfig) -> None:
    """ValueError where a checkpoint is of a model of other settings."""
    theirs, own = replace(theirs, name=""), replace(own, name="")
    if theirs != own:
        field = next(name for name in vars(own) if getattr(own, name) != getattr(theirs, name))
        raise ValueError(
            f"{path}: another model's checkpoint, its {field} is {getattr(theirs, field)} and this model's is "
            f"{getattr(own, field)}"
        )


def _check_finite(path: Path, weights: Mapping[str, Tensor]) -> None:
    for name, weight in weights.items():
        if not weight.isfinite().all():
            raise damaged(path, None, f"its {name} is not finite: NaN or infinite numbers, with which no run goes on")


def _step(state: Mapping[str, Any]) -> int:
    """How many steps had been taken. ValueError where that is missing, or no number of steps."""
    if "step" not in state:
        raise ValueError("step is missing; this is no checkpoint of an optimiser")
    step = state["step"]
    if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step <= 2**24:  # AdamW counts them in fp32
        raise ValueError(f"step must be a whole number from 0 to 2^24, got {short(step)}")
    return step


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
