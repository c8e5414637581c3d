"""Reads tensor files whole, or refuses them. A file may come from a stranger, or from a disk that lost a bit.

The header says names, types and shapes. vet reads the header first. vet reads the data only if the header
fits.
"""

import hashlib
import os
import stat
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load

from vet.errors import DataError

HEADER = 16 * 2**20  # bytes: the headers of the largest networks take 1 MiB
Tensors = dict[str, torch.Tensor]


def read_tensors(
    path: Path, advice: str, sha256: str | None = None, fits: Callable[[Tensors], None] | None = None
) -> Tensors:
    """The tensors of a .safetensors file. DataError, which ends with `advice`, for a file that is not whole.

    sha256: the file's sha256, if something beside the file says it.
    fits: a function that gets the tensors without data (on torch's meta device), and raises if they do not
        fit.
    """
    try:
        require_regular(path)
        with open(path, 'rb') as file:
            size = int.from_bytes(file.read(8), 'little')
        if size > HEADER:
            raise DataError(
                f'{str(path)!r} cannot be read: its header is said to take {size:,} bytes; allowed: '
                f'{HEADER:,}. {advice}'
            )
        if fits:
            fits(_header(path))
        data = path.read_bytes()
        if sha256 is not None and sha256_of(data) != sha256:
            raise DataError(
                f'{str(path)!r} cannot be read: it is damaged or changed, its sha256 is {sha256_of(data)}, '
                f'but {sha256} was saved. {advice}'
            )
        return load(data)
    except (OSError, SafetensorError, ValueError, OverflowError, MemoryError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f'{str(path)!r} cannot be read: {error}. {advice}') from error


def sha256_of(data: bytes) -> str:
    """The sha256 of a file's bytes, in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def require_regular(path: Path) -> None:
    """DataError for a file that is no regular file: reading a pipe or a device may never end.

    OSError if nothing is there.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise DataError(f'{str(path)!r} cannot be read: it is no regular file. Put the file itself there.')


def require_stored(path: Path) -> None:
    """DataError for a torch file with compressed parts. torch never compresses.

    Unpacked parts may have any size.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:
            if sum(member.file_size for member in file.infolist()) > 2 * path.stat().st_size:
                raise DataError(
                    f'{str(path)!r} is compressed, and takes more space than it says. Save it again with '
                    'torch.save.'
                )


def misfits(wanted: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor]) -> list[str]:
    """The names at which `given` cannot be copied into `wanted`.

    A name is missing on one side, or the shape or the kind of number differs.
    """
    return sorted(set(wanted) ^ set(given)) or sorted(
        name
        for name in wanted
        if wanted[name].shape != given[name].shape or not _same_kind(wanted[name], given[name])
    )


def not_finite(given: Mapping[str, torch.Tensor]) -> list[str]:
    """The names of tensors that hold an infinite number or NaN."""
    return sorted(
        name
        for name, tensor in given.items()
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all())
    )


def check_tensors(given: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], source: str) -> None:
    """DataError unless `given` has the names, shapes and dtypes of `wanted`, and only finite numbers."""
    names = sorted(set(given) ^ set(wanted))
    if names:
        kind = 'lacks' if names[0] in wanted else 'has the unknown tensor'
        raise DataError(f'{source} {kind} {names[0]!r} ({len(names)} names differ).')
    for name, tensor in given.items():
        right = wanted[name]
        if tensor.shape != right.shape or tensor.dtype != right.dtype:
            raise DataError(
                f'{source}: {name} is {tensor.dtype} of shape {tuple(tensor.shape)}; {right.dtype} of shape '
                f'{tuple(right.shape)} is needed.'
            )
    if broken := not_finite(given):
        raise DataError(f'{source}: {broken[0]} holds numbers that are not finite.')


def kind_of_numbers(tensor: torch.Tensor) -> str:
    """'float', 'complex' or 'whole'. Numbers of one kind can be copied into each other."""
    if tensor.is_complex():
        return 'complex'
    return 'float' if tensor.is_floating_point() else 'whole'


def _same_kind(wanted: torch.Tensor, given: torch.Tensor) -> bool:
    """Whether the kinds of numbers fit: floats of any width for floats, or exactly the same type of whole
    numbers.
    """
    return given.is_floating_point() if wanted.is_floating_point() else wanted.dtype == given.dtype


def _header(path: Path) -> Tensors:
    """The file's tensors, without data."""
    with safe_open(path, 'pt') as file:
        slices = {name: file.get_slice(name) for name in file.keys()}
        return {
            name: torch.empty(
                stored.get_shape(), dtype=_DTYPES.get(stored.get_dtype(), torch.complex64), device='meta'
            )
            for name, stored in slices.items()
        }


# By the name in the header. Other types hold no numbers that can be trained.
_DTYPES = dict(
    F64=torch.float64,
    F32=torch.float32,
    F16=torch.float16,
    BF16=torch.bfloat16,
    I64=torch.int64,
    I32=torch.int32,
    I16=torch.int16,
    I8=torch.int8,
    U8=torch.uint8,
    BOOL=torch.bool,
)
