"""Sources: the names of the served models, and the folder of each name.

A name from a request is looked up among these names. A name never becomes a path.
"""

import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from vet.errors import DataError, UserError
from vet.hub.file_names import CONFIGURATION, TENSORS, WEIGHTS
from vet.hub.names import find_model
from vet.log import warn
from vet.serve.refusals import RefusedError

NAME = re.compile(r'\w[\w.-]{0,127}')  # stands in an address as it is
LOOK_AGAIN = 1.0  # seconds between two looks into a folder of models
FILES = (CONFIGURATION, TENSORS, WEIGHTS)
Mark = tuple[tuple[int, int, int], ...]  # of a file: its inode, time of change and bytes


class Sources:
    """The folders of models that a server was started with.

    given: a model folder, an ONNX file, an id of a hub, a folder of these folders and files, or name=one of
        these. New models in a folder of models are found while the server runs.
    UserError for a name that is taken, or that cannot stand in an address.
    """

    def __init__(self, given: Sequence[str]):
        self.given = given
        self._fixed: dict[str, Path] = {}
        self._parents: list[Path] = []
        for each in given:
            name, folder = parted(each)
            parent = Path(folder)
            is_one = _is_model(parent) or _is_model(parent / 'output')
            if not name and parent.is_dir() and not is_one and any(_models_in(parent)):
                self._parents.append(parent)
                continue
            path = parent if is_onnx_file(parent) else find_model(folder)
            name = name or _name_of(folder, path)
            _require_name(name, each)
            if name in self._fixed:
                raise UserError(
                    f'two models have the name {name!r}: {str(self._fixed[name])!r} and {str(path)!r}. Give '
                    'a name: OTHER_NAME=FOLDER.'
                )
            self._fixed[name] = path
        self._looked = 0.0
        self._left_out: set[Path] = set()
        self._found: dict[str, Path] = {}
        self._look()

    def names(self) -> list[str]:
        """The names of all models, those of new folders too."""
        if time.monotonic() > self._looked + LOOK_AGAIN:
            self._look()
        return list(self._found)

    def folder(self, name: str) -> Path:
        """The folder of a model. RefusedError for an unknown name."""
        if name not in self._found:
            self.names()
        if name not in self._found:
            raise RefusedError(404, f'there is no model {name[:128]!r}. GET /v1/models lists the models.')
        return self._found[name]

    def _look(self) -> None:
        found = dict(self._fixed)
        for parent in self._parents:
            for path in _models_in(parent):
                name = _name_of(str(path), path)
                if not NAME.fullmatch(name):
                    self._leave_out(path, f'{name!r} cannot stand in an address')
                elif (first := found.setdefault(name, path)) != path and first.resolve() != path.resolve():
                    self._leave_out(path, f'{str(first)!r} has the name {name!r}')
        self._found = found
        self._looked = time.monotonic()

    def _leave_out(self, path: Path, why: str) -> None:
        if path not in self._left_out:
            self._left_out.add(path)
            warn(f'{str(path)!r} is not served: {why}. Give a name: NAME={path}.')


def files_of(folder: Path) -> list[Path]:
    """The files that make a model: of a folder; or an ONNX file, and the weights beside it."""
    if is_onnx_file(folder):
        return [folder, folder.with_name(f'{folder.name}.data')]
    return [folder / name for name in FILES]


def mark_of(folder: Path) -> Mark:
    """Changes if the model in the folder changes. OSError if the folder is not there."""
    marks = []
    for path in files_of(folder):
        if path.exists():
            found = path.stat()
            marks.append((found.st_ino, found.st_mtime_ns, found.st_size))
    if not marks:
        raise FileNotFoundError(str(folder))
    return tuple(marks)


def parted(given: str) -> tuple[str, str]:
    """name=FOLDER as (name, FOLDER). The name is '' if none is given, or if the text is a path with '='."""
    name, equals, folder = given.partition('=')
    return (name, folder) if equals and NAME.fullmatch(name) and not Path(given).exists() else ('', given)


def _require_name(name: str, given: str) -> None:
    if not NAME.fullmatch(name):
        raise UserError(
            f'{given!r} would have the name {name!r}, which cannot stand in an address. Allowed: letters, '
            'digits, "_", "-" and "." (at most 128). Give a name: NAME=FOLDER.'
        )


def _name_of(given: str, path: Path) -> str:
    """The last part of a folder or of an id of a hub. A work folder gives its name to its output/."""
    if is_onnx_file(path):
        return path.stem
    if not Path(given).is_dir():
        return given.partition('@')[0].rpartition('/')[2]
    whole = path.resolve()
    return whole.parent.name if whole.name == 'output' else whole.name


def _models_in(parent: Path) -> Iterator[Path]:
    try:
        inside = sorted(parent.iterdir())
    except OSError:  # the folder has gone since the server began
        return
    for path in inside:
        if _is_model(path) or is_onnx_file(path):
            yield path
        elif _is_model(path / 'output'):
            yield path / 'output'


def is_onnx_file(path: Path) -> bool:
    """Whether `path` is an ONNX file. A model folder is not."""
    return path.suffix == '.onnx' and path.is_file()


def _is_model(path: Path) -> bool:
    return any((path / name).is_file() for name in (CONFIGURATION, WEIGHTS))


def require_models(sources: Sources) -> None:
    """DataError if there is no model."""
    if not sources.names():
        raise DataError('no model is given. Give a model folder, or a folder of model folders.')
