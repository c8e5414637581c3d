"""The parameters that train whole beside the tuners, found by the names that a user gives.

vet/library.py asks for them.
"""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from vet.core.edits import statistics
from vet.errors import UnknownNameError, UserError, shown
from vet.near_paths import near_paths


def _first_names(net: nn.Module) -> dict[str, str]:
    """{name of a parameter: its first name}. A tied parameter has several names, and the first counts."""
    first = {parameter: name for name, parameter in net.named_parameters()}
    return {name: first[one] for name, one in net.named_parameters(remove_duplicate=False)}


def parameters_below(net: nn.Module, paths: Iterable[str]) -> list[str]:
    """The names of the parameters of the modules at `paths`."""
    starts = tuple(f'{path}.' for path in paths)
    return list(dict.fromkeys(first for name, first in _first_names(net).items() if name.startswith(starts)))


def parameters_named(net: nn.Module, patterns: str | Iterable[str]) -> list[str]:
    """The names of the parameters that the patterns fit. UnknownNameError for a pattern that fits none."""
    known = _first_names(net)
    names = list(known)
    found = list[str]()
    for pattern in _listed(patterns, 'train', 'the name of a parameter or of a module, with wildcards'):
        fitting = [name for name in names if fnmatchcase(name, pattern) or name.startswith(f'{pattern}.')]
        if not fitting:
            paths = [
                name
                for name, module in net.named_modules()
                if name and next(module.parameters(), None) is not None
            ]
            near = near_paths(pattern, names, paths)
            of_net = list(dict.fromkeys(name.partition('.')[0] for name in names))
            advice = 'Names below these are allowed too: print(net) shows them.'
            raise UnknownNameError('parameter or module in train', pattern, of_net, advice, near)
        found += [known[name] for name in fitting]
    return list(dict.fromkeys(found))


def with_statistics(net: nn.Module, names: Sequence[str]) -> list[str]:
    """The names, with the running statistics of the norms whose scales are among them."""
    found = list(dict.fromkeys(names))
    for path, module in net.named_modules():
        if f'{path}.weight' in found:
            found += [f'{path}.{name}' for name in statistics(module)]
    return found


def modules_to_save_of(net: nn.Module, names: Iterable[str]) -> list[str]:
    """The paths of the modules whose names PEFT's modules_to_save gives. UnknownNameError if there is
    none.
    """
    paths = [path for path, _ in net.named_modules() if path]
    found = []
    for name in _listed(names, 'modules_to_save', 'the name of a module'):
        fitting = [path for path in paths if path == name or path.endswith(f'.{name}')]
        if not fitting:
            ends = near_paths(f'*.{name}', paths)
            near = [end.removeprefix('*.') for end in ends] or near_paths(name, paths)
            raise UnknownNameError('module in modules_to_save', name, paths, near=near)
        found += fitting
    return found


def _listed(names: object, argument: str, words: str) -> list[str]:
    """A text or several texts as a list. UserError, with the argument's name, for anything else."""
    listed: list[Any] = list(names) if isinstance(names, Iterable) and not isinstance(names, str) else [names]
    if not all(isinstance(name, str) for name in listed):
        raise UserError(
            f"{argument} is {shown(listed)}; allowed: {words}, or a list of these: {argument}='head'."
        )
    return listed
