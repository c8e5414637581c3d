"""Says where the result of a script in benchmarks/ goes. Results there come from a commit, never from changed
code.

`--trial` writes to build/trial/ instead. Nothing there is published, and changed code is allowed.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vet.environment import describe
from vet.files import write_file

ROOT = Path(__file__).parents[2]


def add_output(parser: argparse.ArgumentParser, path: Path) -> None:
    """Gives a script the options --output, whose default is `path`, and --trial."""
    parser.add_argument('--output', type=Path, default=path, metavar='FILE', help='default: %(default)s')
    parser.add_argument('--trial', action='store_true', help='write to build/trial/, also from changed code')


def output(args: argparse.Namespace) -> Path:
    """The file to write. Ends the program if changed code would write a result into benchmarks/."""
    path = (ROOT / 'build' / 'trial' / args.output.name if args.trial else args.output).resolve()
    refuse_changes(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def refuse_changes(path: Path) -> None:
    """Ends the program if `path` is in benchmarks/ and the code differs from its commit."""
    if path.is_relative_to(ROOT / 'benchmarks') and describe(torch.device('cpu'))['git_changes']:
        sys.exit(
            f'The code differs from its commit, so {path.relative_to(ROOT)} could not be reproduced. '
            f'Commit the changes, or give --trial.'
        )


def write(path: Path, found: object) -> None:
    write_file(path, json.dumps(found, indent=1) + '\n')


class Rows:
    """The rows of a result file: {'data': …, 'runs': [row, …]}. A row that is there is not measured again.

    names: the keys that tell the rows apart. data: what was measured, as a sentence for the page.
    """

    def __init__(self, path: Path, names: tuple[str, ...], data: str):
        self._path = path
        self._names = names
        self._data = data
        self._runs: list[Mapping[str, Any]] = json.loads(path.read_text())['runs'] if path.is_file() else []

    def __contains__(self, row: Mapping[str, Any]) -> bool:
        """Whether a row with these values of `names` is there."""
        return self._called(row) in map(self._called, self._runs)

    def _called(self, row: Mapping[str, Any]) -> list[Any]:
        return [row[name] for name in self._names]

    def add(self, row: Mapping[str, Any], device: torch.device) -> None:
        """Adds a row that ran on `device`, and writes the file."""
        self._runs.append({**row, 'environment': describe(device)})
        write(self._path, dict(data=self._data, runs=self._runs))
