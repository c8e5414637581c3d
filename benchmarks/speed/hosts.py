"""The result files of benchmarks/speed, one for each host: results/<processor>-<instructions>.json.

A file has one entry for each script: {'steps': …, 'memory': …}. Each entry holds its environment.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from vet.benchmark import record
from vet.environment import describe

RESULTS = Path(__file__).parent / 'results'


def name_of(environment: dict[str, Any]) -> str:
    """The host of a result, in words: the processor or the GPU, and the instructions that products use."""
    if not environment['device'].startswith('cpu'):
        return environment['device']
    tiles = 'AMX' if environment['multiplies_bf16_tiles'] else environment['instructions']
    return f'{environment["processor"]}, {tiles}'


def path_of(environment: dict[str, Any]) -> Path:
    """The file of a host."""
    return RESULTS / f'{re.sub("[^a-z0-9]+", "-", name_of(environment).lower()).strip("-")}.json'


def default(device: str = 'cpu') -> Path:
    """The file of this machine."""
    return path_of(describe(torch.device(device)))


def read(path: Path, script: str) -> Any:
    """The entry of a script. {}: the script has not measured on this host."""
    return json.loads(path.read_text()).get(script, {}) if path.exists() else {}


def keep(path: Path, script: str, found: Any) -> None:
    """Writes the entry of a script. The other entries stay."""
    others = json.loads(path.read_text()) if path.exists() else {}
    record.write(path, others | {script: found})


def all_hosts() -> Iterator[tuple[str, dict[str, Any]]]:
    """Each host that was measured, in words, and its entries."""
    for path in sorted(RESULTS.glob('*.json')):
        entries = json.loads(path.read_text())
        yield name_of(environment_of(entries)), entries


def environment_of(found: Any) -> dict[str, Any]:
    """The environment of a result, which may be of several parts."""
    return found['environment'] if 'environment' in found else environment_of(list(found.values())[-1])
