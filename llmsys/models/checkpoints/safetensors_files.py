"""The safetensors files of a Hugging Face directory: which of them hold the model, and what its tensors are called.

As in transformers, model.safetensors comes first; then the files that model.safetensors.index.json lists. Whatever else
lies beside them, a backup or an optimiser's state, is not read.

Names are transformers' own, "model.layers.0.mlp.up_proj.weight", also where a saver wrote others: a model that was
compiled, or wrapped for training on several GPUs, has "_orig_mod." or "module." in its names, and one that was saved
without its head lacks "model.".
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llmsys.models.checkpoints.settings import Settings, read_json
from llmsys.models.modules import plain_name

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
_ROWS_AT_A_TIME = 4096  # of two matrices that are compared


class Place(NamedTuple):
    """Where a tensor lies: the open file, its path, and what the tensor is called in it."""

    opened: Any
    file: Path
    name: str


class TensorFiles:
    """The tensors of the directory at `path`, by transformers' names. Weights are read when they are asked for.

    Raises
    ------
    FileNotFoundError, ValueError
        There are none, one that the index lists is missing, a file is damaged, or a tensor is there twice.
    """

    def __init__(self, path: Path):
        self._places: dict[str, Place] = {}
        for opened, file, name in _tensors(path):
            own = usual_name(name)
            if own in self._places:
                other = self._places[own]
                raise ValueError(
                    f"{path}: {other.name} in {other.file.name} and {name} in {file.name} are the same part of the "
                    "model; leave one of them"
                )
            self._places[own] = Place(opened, file, name)

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def names(self) -> set[str]:
        return set(self._places)

    def described(self, name: str) -> str:
        """What the file calls the tensor, and which file that is."""
        return f"{self._places[name].name} in {self._places[name].file.name}"

    def shape(self, name: str) -> tuple[int, ...] | None:
        if name not in self._places:
            return None
        opened, _, own = self._places[name]
        return tuple(opened.get_slice(own).get_shape())

    def read(self, name: str) -> Tensor:
        opened, file, own = self._places[name]
        kind = opened.get_slice(own).get_dtype()
        if kind not in _FLOATS:
            raise ValueError(f"{file}: the tensor {own} holds {kind}; load_model reads floating-point weights")
        return opened.get_tensor(own)

    def equal(self, name: str, other: str) -> bool:
        """Whether two tensors hold the same numbers."""
        shape = self.shape(name)
        if shape != self.shape(other) or len(shape) != 2:
            return False
        one, two = (self._places[each].opened.get_slice(self._places[each].name) for each in (name, other))
        starts = range(0, shape[0], _ROWS_AT_A_TIME)
        return all(
            torch.equal(one[i : i + _ROWS_AT_A_TIME].float(), two[i : i + _ROWS_AT_A_TIME].float()) for i in starts
        )


def usual_name(name: str) -> str:
    """What transformers calls the tensor that a saver called `name`."""
    name = plain_name(name)
    return name if name.startswith(("model.", "lm_head.")) else f"model.{name}"


def _tensors(path: Path) -> list[tuple[Any, Path, str]]:
    """Each tensor of the model: its open file, that file's path, and its name there."""
    if (path / WHOLE).is_file():
        return _all_of([path / WHOLE])
    if (path / INDEX).is_file():
        return _listed(path)
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{path}: no *.safetensors in this directory, so no weights (.bin files are not read)")
    return _all_of(files)


def _all_of(files: list[Path]) -> list[tuple[Any, Path, str]]:
    return [(opened, file, name) for file in files for opened in [_open(file)] for name in opened.keys()]


def _listed(path: Path) -> list[tuple[Any, Path, str]]:
    weight_map = Settings(read_json(path / INDEX), path / INDEX).table("weight_map")
    for name, file in weight_map.values.items():
        if not isinstance(file, str) or not file.endswith(".safetensors") or Path(file).name != file:
            raise weight_map.wrong(name, "the name of a .safetensors file beside the index")
    if not weight_map.values:
        raise ValueError(f"{path / INDEX}: weight_map lists no tensors; download the directory again")
    first = {file: name for name, file in reversed(weight_map.values.items())}
    opened = {file: _open(path / file, f", and {INDEX} names it for {first[file]}") for file in sorted(first)}
    held = {file: set(opened[file].keys()) for file in opened}
    for name, file in weight_map.values.items():
        if name not in held[file]:
            raise ValueError(
                f"{path / file}: the tensor {name} is missing, and {INDEX} says that it is there; download the "
                "directory again"
            )
    return [(opened[file], path / file, name) for name, file in weight_map.values.items()]


def _open(path: Path, named_by: str = "") -> Any:
    try:
        if not path.is_file():
            raise FileNotFoundError("no such file")
        return safe_open(path, framework="pt")
    except OSError as error:
        raise FileNotFoundError(f"{path}: {error.strerror or error}{named_by}; download the directory again") from error
    except SafetensorError as error:
        raise ValueError(f"{path}: truncated, or not a safetensors file ({error}); download it again") from error
