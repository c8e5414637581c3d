"""Results: one JSON file per run.

The file records how the number was obtained. A checksum shows later edits.
"""

import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

import vet
from vet.benchmark.cells import run_name
from vet.benchmark.suite import Run
from vet.datasets.base import ImageData, known_targets, pixels_digest, sources_of
from vet.files import JsonObject, write_file

FORMAT = 1
NO_PART = ('benchmark', 'cli', 'compat', 'shipped_files')  # rooms of vet that change no number


def identity(run: Run, data: Mapping[str, object], backbone_sha256: str, plugins: Sequence[str] = ()) -> str:
    """The sha256 of everything that decides a run's result.

    This is the run's config, its data, the backbone's weights, and the code: vet's code, and the code of
    `plugins`, which are the modules that the suite imports.
    """
    parts = dict(config=run.config, data=data, backbone=backbone_sha256, code=code_sha256(tuple(plugins)))
    return _digest(parts | (dict(shifts=run.shifts) if run.shifts else {}))


def fingerprint(dataset: Any) -> JsonObject:
    """A dict that identifies a dataset.

    sha256: of its classes, its labels, and the names and sizes of its files.
    contents: a hash of the bytes of its files, or of the pixels of its images in memory. Old results do not
        have 'contents'; see `same_data`.
    """
    if hasattr(dataset, 'tasks'):
        return {task: fingerprint(task_data) for task, task_data in dataset.tasks.items()}
    labels = known_targets(dataset) or []
    return dict(
        images=len(dataset),
        classes=len(dataset.classes),
        sha256=_digest([list(dataset.classes), labels, _files(dataset)]),
        contents=_digest(list(map(_content, sources_of(dataset)))),
    )


def same_data(one: object, other: object) -> bool:
    """Whether two fingerprints, or {split: fingerprint}, are of the same data, as far as both say."""
    if not isinstance(one, Mapping) or not isinstance(other, Mapping):
        return one == other
    if 'images' in one and ('contents' in one) != ('contents' in other):
        one, other = dict(one), dict(other)
        for each in (one, other):
            each.pop('contents', None)
    return one.keys() == other.keys() and all(same_data(one[key], other[key]) for key in one)


def images(facts: Mapping[str, Any]) -> int:
    """The length of a split from its fingerprint. For several tasks: the sum of their lengths."""
    return facts['images'] if 'images' in facts else sum(map(images, facts.values()))


def _files(dataset: ImageData) -> list[tuple[str, int]]:
    """The name and the size of each item's file. '' and 0: the item has no file."""
    paths = (Path(source) if isinstance(source, (str, Path)) else Path() for source in sources_of(dataset))
    return [(path.name, path.stat().st_size if path.is_file() else 0) for path in paths]


def _content(source: object) -> str:
    """The sha256 of an item's file, or of its image in memory. '': the item has neither."""
    if isinstance(source, np.ndarray):
        return pixels_digest(source).hex()
    if not isinstance(source, (str, Path)) or not os.path.isfile(source):
        return ''
    state = os.stat(source)
    return _file_sha256(
        os.path.abspath(source), state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino
    )


@lru_cache(maxsize=2**21)
def _file_sha256(path: str, *state: int) -> str:
    """The sha256 of a file's bytes. state: size, times and number of the file, so that a changed file is
    read again.
    """
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


@cache
def code_sha256(plugins: tuple[str, ...] = ()) -> str:
    """The sha256 of vet's source files, except those in NO_PART, and of the imported modules."""
    root = Path(vet.__file__).parent
    files = sorted(path for path in root.rglob('*.py') if path.relative_to(root).parts[0] not in NO_PART)
    return _digest(
        [[str(path.relative_to(root)), path.read_text()] for path in files]
        + [[name, Path(sys.modules[name].__file__ or '').read_text()] for name in plugins]
    )


def result_path(results: Path, run: Run) -> Path:
    return results / run.suite / f'{run.name}.json'


def write_result(path: Path, result: Mapping[str, object]) -> None:
    """Writes a result by one rename, with a checksum over all of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, _text(dict(result, format=FORMAT)))


def read_result(path: Path) -> JsonObject | None:
    """The result in a file. None: there is no file, or the file was cut short or edited."""
    try:
        text = path.read_bytes()
        result = json.loads(text)
        del result['checksum']
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return result if text == _text(result).encode() and result.get('format') == FORMAT else None


def read_results(folder: Path) -> list[JsonObject]:
    """All whole results in a folder, sorted by name. A copy under another name is no result."""
    return [result for path in sorted(folder.glob('*.json')) if (result := read_named(path)) is not None]


def read_named(path: Path) -> JsonObject | None:
    """The result in a file, if the file has the name of the run. Otherwise None."""
    result = read_result(path)
    return result if result is not None and path.stem == run_name(result) else None


def is_done(path: Path, wanted: str) -> bool:
    """Whether the file holds a whole result of the identity `wanted`, and the run succeeded.

    A search that diverged is done too.
    """
    result = read_result(path)
    if result is None or result['identity'] != wanted:
        return False
    return result['status'] == 'done' or (result['is_search'] and result.get('diverged', False))


def _text(result: Mapping[str, object]) -> str:
    """A result as its file holds it, one key per line.

    A result has only this text. So no byte of a file can change unseen.
    """
    lines = [
        f'{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}'
        for key, value in dict(result, checksum=_digest(result)).items()
    ]
    return '{\n' + ',\n'.join(lines) + '\n}\n'


def _digest(value: object) -> str:
    plain = json.loads(json.dumps(value))  # as a file gives the value back: keys are texts, and sort as texts
    return hashlib.sha256(json.dumps(plain, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
