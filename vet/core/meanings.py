"""Entries of tuners whose meaning has changed, and how an older entry is written today.

Model folders up to format 2, and checkpoints up to format 1, hold older entries.
"""

from collections.abc import Mapping
from typing import Any

Entry = Mapping[str, Any]

# a type of then -> the type of today, and the arguments that were fixed then
OLDER: Mapping[str, tuple[str, Entry]] = {
    'AdaptFormer': ('AdaptFormer', dict(normed=True)),
    'Pfeiffer': ('Intermediate', {}),
    'SCT': ('SCT', dict(mode='output')),
}


def of_today(entry: Entry) -> Entry:
    """An older entry of model.tuners in the form of today, with the same meaning."""
    given = entry.get('type') if isinstance(entry, Mapping) else None
    if not isinstance(given, str) or given not in OLDER:
        return entry
    name, fixed = OLDER[given]
    return {**fixed, **entry, 'type': name}
