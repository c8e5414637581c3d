"""Results: one JSON file per run, which says how its number was obtained and whether anybody has touched it since."""

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import vet
from vet.benchmark.suite import Run
from vet.engine.files import write_file

FORMAT = 1
NO_PART = ('benchmark', 'cli', 'compat')        # rooms of vet that no number depends on


def identity(run: Run, data: Mapping[str, Any], backbone_sha256: str) -> str:
    """The sha256 of all that decides a run's result: its config, the data it sees, the backbone's weights and vet's code."""
    return _digest(dict(config=run.config, data=data, backbone=backbone_sha256, code=code_sha256()))


def fingerprint(dataset: Any) -> dict[str, Any]:
    """What tells a dataset from another: its length, classes and labels, and the names of its files."""
    if hasattr(dataset, 'tasks'):
        return {task: fingerprint(part) for task, part in dataset.tasks.items()}
    sources = [Path(source).name if isinstance(source, (str, Path)) else '' for source, _ in getattr(dataset, 'samples', [])]
    labels = [int(label) for label in getattr(dataset, 'targets', [])]
    return dict(images=len(dataset), classes=len(dataset.classes), sha256=_digest([list(dataset.classes), labels, sources]))


@cache
def code_sha256() -> str:
    """Of vet's own source files, but those that only report."""
    root = Path(vet.__file__).parent
    files = sorted(path for path in root.rglob('*.py') if path.relative_to(root).parts[0] not in NO_PART)
    return _digest([[str(path.relative_to(root)), path.read_text()] for path in files])


def result_path(results: Path, run: Run) -> Path:
    return results / run.suite / f'{run.name}.json'


def write_result(path: Path, result: Mapping[str, Any]) -> None:
    """Writes a result by one rename, with a checksum over all of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = dict(result, format=FORMAT, checksum=_digest(dict(result, format=FORMAT)))
    lines = ',\n'.join(f'{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}' for key, value in whole.items())
    write_file(path, f'{{\n{lines}\n}}\n')


def read_result(path: Path) -> dict[str, Any] | None:
    """The result in a file; None where there is none, or where it was cut short or changed by hand."""
    try:
        result = json.loads(path.read_text())
        checksum = result.pop('checksum')
    except (OSError, ValueError, KeyError, AttributeError):
        return None
    return result if checksum == _digest(result) and result.get('format') == FORMAT else None


def read_results(folder: Path) -> list[dict[str, Any]]:
    """All whole results in a folder, in the order of their names."""
    return [result for path in sorted(folder.glob('*.json')) if (result := read_result(path)) is not None]


def is_done(path: Path, wanted: str) -> bool:
    """Whether the result in the file is whole, was obtained, and belongs to the identity `wanted`."""
    result = read_result(path)
    return result is not None and result['status'] == 'done' and result['identity'] == wanted


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
