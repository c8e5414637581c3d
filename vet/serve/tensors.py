"""Tensors of the Open Inference Protocol: in JSON, or as bytes behind the JSON text."""

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vet.core.objective import Answer
from vet.serve.encoding import plain
from vet.serve.refusals import RefusedError

ANSWER = 'answer'  # the output that each model has: the whole answer of an image as JSON
LENGTH = struct.Struct('<I')


@dataclass(frozen=True)
class Output:
    """A tensor of answers. shape: the first axis is the images."""

    name: str
    datatype: str
    shape: list[int]
    data: list[str] | list[float]

    def as_json(self) -> dict[str, Any]:
        return dict(name=self.name, datatype=self.datatype, shape=self.shape, data=self.data)

    def as_bytes(self) -> tuple[dict[str, Any], bytes]:
        """The description of the tensor, and its bytes."""
        if self.datatype == 'FP32':
            data = struct.pack(f'<{len(self.data)}f', *self.data)
        else:
            texts = [str(each).encode() for each in self.data]
            data = b''.join(LENGTH.pack(len(text)) + text for text in texts)
        size = dict(binary_data_size=len(data))
        return dict(name=self.name, datatype=self.datatype, shape=self.shape, parameters=size), data


def outputs_of(answers: Sequence[Answer]) -> list[Output]:
    """The answers for images as tensors.

    'answer' (N): each answer as JSON. Beside it each value that has one length for all images, by its name:
    numbers as FP32, texts as BYTES.
    """
    whole = [json.dumps(plain(answer)) for answer in answers]
    found = [Output(ANSWER, 'BYTES', [len(answers)], whole)]
    for key in answers[0] if answers else ():
        rows = [answer.get(key) for answer in answers]
        if all(isinstance(row, float) for row in rows):
            found.append(Output(key, 'FP32', [len(rows)], rows))  # type: ignore[arg-type]  # `all` saw floats
        elif all(isinstance(row, list) for row in rows):
            flat = [value for row in rows for value in row or ()]
            shape = [len(rows), len(flat) // len(rows)]
            is_even = all(len(row or ()) == shape[1] for row in rows)
            for kind, datatype in ((float, 'FP32'), (str, 'BYTES')):
                if flat and is_even and all(isinstance(value, kind) for value in flat):
                    found.append(Output(key, datatype, shape, flat))
    return found


def texts_of(data: bytes) -> list[bytes]:
    """The elements of a tensor of BYTES: each is its length in four bytes, then its content."""
    found = []
    place = 0
    while place < len(data):
        if place + LENGTH.size > len(data):
            raise RefusedError(400, 'the binary data of the input "image" ends within a length.')
        (length,) = LENGTH.unpack_from(data, place)
        place += LENGTH.size
        if place + length > len(data):
            raise RefusedError(
                400, 'the binary data of the input "image" are shorter than their lengths say.'
            )
        found.append(data[place : place + length])
        place += length
    return found
