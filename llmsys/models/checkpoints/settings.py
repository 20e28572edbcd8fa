"""The settings of a checkpoint, as strangers write them: each is checked for its type and range as it is taken.

    settings = Settings(read_json(path), path)
    heads = settings.size("num_attention_heads")           # ValueError, with the file and the key, where it is none

A setting of a wrong type would otherwise become an error far from its cause, or a model that babbles: -1 heads, a base
of "10000", a switch that is "false" and therefore true. null says the same as leaving the key out.
"""

import json
import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

_NEEDED = object()  # a default that means: there is none


class Settings:
    """Settings by key, and which file they are from.

    Every method takes a key and a default, without which the key must be there, and raises a ValueError that names the
    file and the key where the value is not what the method promises.
    """

    def __init__(self, values: Mapping[str, Any], where: str | Path, prefix: str = ""):
        self.values = values
        self.where = where
        self.prefix = prefix  # of the keys in messages: the key that holds these settings, and a dot

    def __contains__(self, key: str) -> bool:
        return self.values.get(key) is not None

    def raw(self, key: str) -> Any:
        """What the file holds, unchecked; None where there is nothing."""
        return self.values.get(key)

    def size(self, key: str, default: Any = _NEEDED) -> Any:
        """A whole number of at least 1."""
        value = self._value(key, default)
        if value is default:
            return value
        if not is_whole(value) or value < 1:
            raise self.wrong(key, "a whole number of at least 1")
        return value

    def number(self, key: str, default: Any = _NEEDED, *, above: float = 0.0, or_equal: bool = False) -> Any:
        """A finite number above `above`, or equal to it where `or_equal`, as a float."""
        value = self._value(key, default)
        if value is default:
            return value
        number = as_float(value)
        if number is None or not (number > above or (or_equal and number == above)):
            raise self.wrong(key, f"a number {'of at least' if or_equal else 'above'} {above:g}, and finite")
        return number

    def flag(self, key: str, default: Any = _NEEDED) -> Any:
        """true or false."""
        value = self._value(key, default)
        if value is not default and not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def text(self, key: str, default: Any = _NEEDED) -> Any:
        value = self._value(key, default)
        if value is not default and not isinstance(value, str):
            raise self.wrong(key, "text")
        return value

    def ids(self, key: str, default: Any = _NEEDED) -> Any:
        """Token ids, as a list: the file may hold one alone."""
        value = self._value(key, default)
        if value is default:
            return value
        ids = value if isinstance(value, list) else [value]
        if not all(is_whole(id) and id >= 0 for id in ids):
            raise self.wrong(key, "a token's id or a list of such, whole numbers from 0")
        return ids

    def table(self, key: str, default: Any = _NEEDED) -> Any:
        """An object, as Settings of its own."""
        value = self._value(key, default)
        if value is default:
            return value
        if not isinstance(value, dict):
            raise self.wrong(key, "an object")
        return Settings(value, self.where, f"{self.prefix}{key}.")

    def texts(self, key: str, default: Any = _NEEDED) -> Any:
        """A list of texts."""
        return self._list(key, default, lambda value: isinstance(value, str), "texts")

    def whole_numbers(self, key: str, default: Any = _NEEDED) -> Any:
        """A list of whole numbers, of any sign."""
        return self._list(key, default, is_whole, "whole numbers")

    def numbers(self, key: str, default: Any = _NEEDED) -> Any:
        """A list of finite numbers above 0, as floats."""
        found = self._list(key, default, lambda value: (as_float(value) or 0.0) > 0, "numbers above 0")
        return found if found is default else [float(value) for value in found]

    def none_of(self, keys: Collection[str], why: str) -> None:
        """Refuse the file where one of these switches is on."""
        for key in keys:
            if self.flag(key, False):
                raise ValueError(f"{self.where}: {self.prefix}{key} is on, {why}")

    def wrong(self, key: str, expected: str) -> ValueError:
        """The error for a value that is not `expected`, to be raised."""
        return ValueError(f"{self.where}: {self.prefix}{key} must be {expected}, got {shown(self.values.get(key))}")

    def _list(self, key: str, default: Any, fits: Callable[[Any], bool], what: str) -> Any:
        value = self._value(key, default)
        if value is not default and not (isinstance(value, list) and all(fits(each) for each in value)):
            raise self.wrong(key, f"a list of {what}")
        return value

    def _value(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is not None:
            return value
        if default is _NEEDED:
            raise ValueError(f"{self.where}: the setting {self.prefix}{key} is missing")
        return default


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; what is none is refused with the file's name."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error}); download it again") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: must hold an object of settings, got {shown(found)}; download it again")
    return found


def read_settings(path: Path) -> Settings:
    """The settings in a JSON file, none where there is no such file."""
    return Settings(read_json(path) if path.is_file() else {}, path)


def shown(value: Any) -> str:
    """A value for an error message, not at full length where that would fill the screen."""
    text = repr(value[:20] if isinstance(value, (list, str)) else value)
    return text if len(text) <= 80 else text[:77] + "..."


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number; true and false, which Python takes for 1 and 0, are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def as_float(value: Any) -> float | None:
    """The number as a float, None where it is none, infinite, or beyond what a float holds."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
