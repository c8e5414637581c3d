"""The table that `print(tuned)` shows: the sites, the tuners, the shapes and the numbers that train.

Only core/tuned_network.py imports this file.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from vet.core.tuner import Tuner

HEADER = ('tuner', 'site', 'shapes', 'numbers')


def table_of(network: Any, tuners: Iterable[Tuner], title: str) -> str:
    """One row for each site of each tuner, and the totals."""
    rows = [HEADER]
    total = 0
    for tuner in tuners:
        by_site: dict[str, list[tuple[str, Any]]] = {}
        for name, parameter in tuner.trainable():
            site, _, leaf = name.partition('.')[2].rpartition('.')
            by_site.setdefault(site or 'the network', []).append((leaf, parameter))
        for site, parameters in by_site.items():
            shapes = ', '.join(f'{leaf} {tuple(parameter.shape)}' for leaf, parameter in parameters)
            count = sum(parameter.numel() for _, parameter in parameters)
            total += count
            rows.append((type(tuner).__name__, site, shapes, f'{count:,}'))
    columns = list(zip(*rows))
    padded = [pad_to_widest(column) for column in columns[:3]]
    lines = ['  '.join(cells) for cells in zip(*padded, columns[3])]
    frozen = sum(parameter.numel() for parameter in network.parameters() if not parameter.requires_grad)
    share = 100 * total / max(total + frozen, 1)
    return '\n'.join([title, *lines, f'{total:,} numbers train, {frozen:,} are frozen ({share:.2f} % train)'])


def pad_to_widest(cells: Sequence[str]) -> list[str]:
    """The cells of a column, each as wide as the widest."""
    width = max(map(len, cells))
    return [cell.ljust(width) for cell in cells]
