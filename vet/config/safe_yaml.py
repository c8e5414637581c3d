"""Reads YAML of plain values only. No tag makes or calls a Python object, and no alias fills the memory."""

from typing import IO, Any

import yaml

from vet.errors import UserError
from vet.mmengine_parts import BaseFileHandler, register_handler

MOST = 1_000_000  # values of a file, with each alias counted as all values that the alias stands for


class SafeYaml(BaseFileHandler):
    """mmengine reads and writes YAML with this handler. mmengine's handler would run tags of Python
    objects.
    """

    def load_from_fileobj(self, file: IO, **_: object) -> object:
        loader = yaml.SafeLoader(file)
        try:
            root = loader.get_single_node()
            if root is None:
                return None
            if _count(root, {}) > MOST:
                raise UserError(
                    f'the aliases (*name) of a YAML file stand for more than {MOST:,} values. Write fewer '
                    'values, or remove aliases that stand for lists of aliases.'
                )
            return loader.construct_document(root)
        finally:
            loader.dispose()

    def dump_to_fileobj(self, obj: object, file: IO, **options: Any) -> None:
        yaml.safe_dump(obj, file, **options)

    def dump_to_str(self, obj: object, **options: Any) -> str:
        return yaml.safe_dump(obj, **options)


register_handler(['yaml', 'yml'])(SafeYaml)  # for this process, and for `_base_` files too


def _count(node: yaml.Node, known: dict[yaml.Node, int]) -> int:
    """The number of values of a node if every alias is expanded.

    More than MOST for a node that contains itself.
    """
    if node not in known:
        known[node] = MOST + 1  # counts if the node contains an alias of itself
        children = node.value if isinstance(node, yaml.CollectionNode) else []
        inner = (
            [child for pair in children for child in pair] if isinstance(node, yaml.MappingNode) else children
        )
        known[node] = 1 + sum(_count(child, known) for child in inner)
    return known[node]
