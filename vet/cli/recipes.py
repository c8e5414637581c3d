"""Prints the differences between two recipes. Both are completed with the defaults."""

from collections.abc import Iterator

from rich.table import Table

from vet.cli.command import Parser, run
from vet.config import load_config, read_settings
from vet.files import JsonObject
from vet.terminal import Terminal

SECTIONS = ('train', 'evaluation')


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument(
        'a', metavar='A', help='a recipe that `vet list recipes` shows, such as vpt2022, or a config file'
    )
    parser.add_argument('b', metavar='B', help='another recipe or config file')
    args = parser.parse_args()
    run(lambda: _compare(args.a, args.b))


def _compare(a: str, b: str) -> None:
    left, right = (dict(_flat(read_recipe(name))) for name in (a, b))
    table = Table('key', a, b)
    for key in [*left, *(key for key in right if key not in left)]:
        if key not in left or key not in right or left[key] != right[key]:
            table.add_row(key, *(_text(values[key]) if key in values else '-' for values in (left, right)))
    console = Terminal(markup=False, highlight=False)
    console.print(table if table.rows else f'{a} and {b} do not differ.')


def read_recipe(name: str) -> JsonObject:
    """The complete sections train and evaluation of a recipe. name: the recipe's name or file."""
    config = load_config(name, 'recipes')
    given = {section: config[section] for section in SECTIONS if section in config}
    settings = read_settings(dict(model=dict(backbone={}), dataset={}, **given)).to_dict()
    return {section: settings[section] for section in SECTIONS}


def _flat(values: JsonObject, path: str = '') -> Iterator[tuple[str, object]]:
    """All values with dotted keys: (key, value)."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f'{path}{key}.')
        else:
            yield f'{path}{key}', value


def _text(value: object) -> str:
    """A value as a config file writes it. A list of plugins has one line per plugin."""
    if isinstance(value, list) and value and all(isinstance(entry, dict) for entry in value):
        return '\n'.join(map(_call, value))
    return repr(value)


def _call(entry: JsonObject) -> str:
    """The entry of a plugin in the form of a call: 'Resize(size=256)'."""
    options = ', '.join(f'{key}={value!r}' for key, value in entry.items() if key != 'type')
    return f'{entry.get("type")}({options})'
