"""TensorBoard: the scalars of event files."""

from __future__ import annotations

import struct
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scale_callbacks.logs.log import Series
from scale_callbacks.logs.names import listed
from scale_callbacks.logs.table import Told, nobody

PATTERN = "*tfevents*"
READ = 1 << 20  # bytes read at once
HEAD, TAIL = 12, 4  # bytes around an event: its length with a checksum, and a checksum
LARGEST = 1 << 30  # bytes of one event; more is no length
FLOAT, DOUBLE = 1, 2  # of TensorFlow's data types


class EventFiles:
    """The scalars of the event files of one run.

    Framing as TensorFlow's TFRecord: length (8 bytes), its checksum (4), the event, its checksum (4).

    Args:
        path: an event file, or the folder of one run.
        told: told the share that is read.

    Raises:
        OSError: a file cannot be read.
        ValueError: no event file there, one that was not written as TensorBoard reads it, or no scalar in it.
        ModuleNotFoundError: tensorboard is not installed, with the remedy.
    """

    planned = None
    ended = None

    def __init__(self, path: Path, told: Told = nobody) -> None:
        self.label = path.name
        self.notes: Counter[str] = Counter()
        self._steps: dict[str, array[float]] = {}
        self._values: dict[str, array[float]] = {}
        files = _files(path)
        others: Counter[str] = Counter()
        for number, file in enumerate(files):
            self._take(file, others, lambda share, done=number: told((done + share) / len(files)))  # type: ignore[misc]
        self.names: Sequence[str] = list(self._values)
        if not self.names:
            told_of = f"it holds {listed(list(others))}" if others else "it is empty"
            raise ValueError(f"{path} has no scalars: {told_of}")

    def is_mean(self, name: str) -> bool:
        """Nothing is known of how a scalar came about."""
        return False

    def read(self, names: Sequence[str]) -> dict[str, Series]:
        """Steps and values of scalars, in the order of writing."""
        return {name: (np.array(self._steps[name]), np.array(self._values[name])) for name in names}

    def _take(self, path: Path, others: Counter[str], told: Told) -> None:
        event = _event_type()
        first = True
        for record in _records(path, self.notes, told):
            try:
                found = event.FromString(record)
            except Exception:  # protobuf's DecodeError, whichever implementation is in use
                if first:
                    raise ValueError(
                        f"{path} was not written for TensorBoard: its events cannot be read"
                    ) from None
                self.notes["event that cannot be read, left out"] += 1
                continue
            if first and not found.file_version.startswith("brain.Event"):
                raise ValueError(
                    f"{path} was not written for TensorBoard: it does not begin with brain.Event"
                )
            first = False
            for value in found.summary.value:
                number = value.simple_value  # 0 where the value is another kind of thing
                if number == 0.0 and not value.HasField("simple_value"):
                    number = _of_tensor(value)
                if number is None:
                    others[
                        value.WhichOneof("value") or value.metadata.plugin_data.plugin_name or "nothing"
                    ] += 1
                    continue
                tag = value.tag
                if tag not in self._steps:
                    self._steps[tag], self._values[tag] = array("d"), array("d")
                self._steps[tag].append(found.step)
                self._values[tag].append(number)


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.glob(PATTERN) if file.is_file())
    if files:
        return files
    folders = sorted({file.parent for file in path.rglob(PATTERN) if file.is_file()})
    if len(folders) == 1:
        return sorted(folders[0].glob(PATTERN))
    if folders:
        runs = listed([str(folder.relative_to(path)) for folder in folders])
        raise ValueError(f"{path} holds several runs: {runs}; give one of them")
    raise ValueError(f"{path} holds no event file ({PATTERN})")


def _records(path: Path, notes: Counter[str], told: Told) -> Iterator[bytes]:
    """The events of a file as bytes, until its end or where it is cut off."""
    size, done, at, data = max(path.stat().st_size, 1), 0, 0, b""
    length_at = struct.Struct("<Q").unpack_from
    with path.open("rb") as file:
        while True:
            length = length_at(data, at)[0] if len(data) - at >= HEAD else 0
            end = at + HEAD + length + TAIL
            if len(data) - at >= HEAD and not 0 < length < LARGEST:
                break
            if len(data) - at < HEAD or end > len(data):
                more = file.read(max(READ, end - len(data)))
                if not more:
                    break
                data, at = data[at:] + more, 0
                told((done + at) / size)
                continue
            yield data[at + HEAD : end - TAIL]
            done += end - at
            at = end
    if done == 0:
        raise ValueError(f"{path} is no TensorBoard event file, or was cut off in its first event")
    if at < len(data):
        notes["event file damaged or cut off, read up to there"] += 1


def _of_tensor(value: Any) -> float | None:
    """The number of TensorFlow 2's tensor of no dimension; None for anything else."""
    if value.WhichOneof("value") != "tensor" or value.tensor.tensor_shape.dim:
        return None
    tensor = value.tensor
    if tensor.dtype == FLOAT:
        return float(tensor.float_val[0]) if tensor.float_val else _unpacked("<f", tensor.tensor_content)
    if tensor.dtype == DOUBLE:
        return float(tensor.double_val[0]) if tensor.double_val else _unpacked("<d", tensor.tensor_content)
    return None


def _unpacked(form: str, content: bytes) -> float | None:
    return float(struct.unpack(form, content)[0]) if len(content) == struct.calcsize(form) else None


def _event_type() -> Any:
    try:
        from tensorboard.compat.proto.event_pb2 import Event
    except ModuleNotFoundError as fault:
        raise ModuleNotFoundError(
            "event files need tensorboard: pip install 'scale-callbacks[tensorboard]'"
        ) from fault
    return Event
