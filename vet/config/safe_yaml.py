"""YAML of plain values alone: no tag makes or calls a Python object, and no alias fills the memory."""

from typing import Any

import yaml
from mmengine.fileio import BaseFileHandler, register_handler

from vet.errors import UserError

MOST = 1_000_000  # values, each alias counted as all that it stands for


class SafeYaml(BaseFileHandler):
    """What mmengine reads and writes YAML with; mmengine's own handler would run such tags."""

    def load_from_fileobj(self, file: Any, **_: Any) -> Any:
        loader = yaml.SafeLoader(file)
        try:
            root = loader.get_single_node()
            if root is None:
                return None
            if _count(root, {}) > MOST:
                raise UserError(
                    f'the aliases (*name) of a YAML file stand for more than {MOST:,} values. Write fewer values, or '
                    'remove aliases that stand for lists of aliases.'
                )
            return loader.construct_document(root)
        finally:
            loader.dispose()

    def dump_to_fileobj(self, obj: Any, file: Any, **options: Any) -> None:
        yaml.safe_dump(obj, file, **options)

    def dump_to_str(self, obj: Any, **options: Any) -> str:
        return yaml.safe_dump(obj, **options)


register_handler(['yaml', 'yml'])(SafeYaml)  # for this process: also the `_base_` files are read by it


def _count(node: yaml.Node, known: dict[yaml.Node, int]) -> int:
    """How many values a node stands for if every alias is written out. A node within itself stands for too many."""
    if node not in known:
        known[node] = MOST + 1  # of an alias that is within what it stands for
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        inner = [part for pair in parts for part in pair] if isinstance(node, yaml.MappingNode) else parts
        known[node] = 1 + sum(_count(part, known) for part in inner)
    return known[node]
