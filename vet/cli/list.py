"""Lists the names that a config can use: tuners, backbones, datasets, …, with one line each.

With a name, such as `vet list tuners LoRA`, shows the arguments of the plugin. `vet list roles NAME` lists
the roles of a backbone, and how much of the backbone each role reaches.
"""

import argparse
import inspect
import json
from typing import TYPE_CHECKING

from rich.table import Column, Table

from vet.allowed import plural
from vet.arguments import arguments_of, text_of
from vet.cli.command import Parser, add_import, import_plugins, run
from vet.cli.signals import imports
from vet.errors import UnknownNameError, UserError
from vet.registry import BACKBONES, REGISTRIES, TUNERS, Registry
from vet.shipped import FOLDERS, shipped, title
from vet.terminal import Terminal

if TYPE_CHECKING:
    from vet.core.backbone import Backbone
    from vet.core.site_map import SiteMap

KINDS = {plural(name): registry for name, registry in REGISTRIES.items()}


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument('kind', help=', '.join([*KINDS, *FOLDERS, 'roles']))
    parser.add_argument(
        'name',
        nargs='?',
        help="a plugin, such as LoRA: shows its arguments; with 'roles': a timm or torchvision model",
    )
    parser.add_argument(
        '--backbone',
        metavar='NAME',
        help="with 'roles': a timm or torchvision model; its weights are not needed",
    )
    parser.add_argument(
        '--filter',
        metavar='PATTERN',
        help="with 'backbones': lists the timm models that fit, too, such as 'vit_base*'",
    )
    parser.add_argument('--json', action='store_true', help='print JSON, for programs')
    add_import(parser)
    args = parser.parse_args()
    run(lambda: _list(args))


def _list(args: argparse.Namespace) -> None:
    import_plugins(args.imports)
    if args.kind not in (*KINDS, *FOLDERS, 'roles'):
        raise UnknownNameError('kind of plugin', args.kind, [*KINDS, *FOLDERS, 'roles'])
    if args.name is not None and args.kind in KINDS:
        _show_plugin(args)
        return
    if args.kind == 'roles':
        rows = _roles(args.backbone or args.name)
    elif args.kind in FOLDERS:
        rows = {name: title(path) for name, path in shipped(args.kind).items()}
    else:
        rows = {name: _line_of(KINDS[args.kind], name) for name in KINDS[args.kind].names()}
    if args.kind == 'backbones' and args.filter:
        with imports():
            import timm

        rows |= dict.fromkeys(timm.list_models(args.filter), "a name for dict(type='timm', name=…)")
    if args.json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    table = Table(
        Column(KINDS[args.kind].name if args.kind in KINDS else 'role', no_wrap=True),
        Column('', overflow='fold'),
        box=None,
        show_header=False,
    )
    for name, line in rows.items():
        table.add_row(name, line)
    Terminal(markup=False, emoji=False, highlight=False).print(table)


def _show_plugin(args: argparse.Namespace) -> None:
    """The text of one plugin, and each of its arguments with what it allows and its default."""
    registry: Registry = KINDS[args.kind]
    registry.require(args.name)
    with imports():
        registry.find(args.name)
    arguments = arguments_of(registry, args.name)
    text = text_of(registry, args.name)
    if args.json:
        rows = {
            argument.name: dict(
                allowed=argument.allowed,
                default=argument.default_text,
                required=argument.is_required,
                meaning=argument.meaning,
            )
            for argument in arguments
        }
        print(json.dumps(dict(type=args.name, text=text, arguments=rows), indent=1, ensure_ascii=False))
        return
    terminal = Terminal(markup=False, emoji=False, highlight=False)
    terminal.print(f'{registry.name} {args.name}\n\n{text}\n', soft_wrap=True)
    table = Table('argument', 'default', 'allowed', box=None, padding=(0, 2, 0, 0))
    for argument in arguments:
        table.add_row(argument.name, argument.default_text, '\nor '.join(argument.allowed))
    terminal.print(table if arguments else 'It has no arguments.')


def _line_of(registry: Registry, name: str) -> str:
    """The first paragraph of a plugin's docstring. Without a docstring: of its module's docstring."""
    if listed := registry.listed(name):
        text = listed.text
    else:
        plugin = registry.find(name)
        doc = plugin.__dict__.get('__doc__') if inspect.isclass(plugin) else plugin.__doc__
        text = doc or inspect.getdoc(inspect.getmodule(plugin)) or ''
    return ' '.join(text.strip().partition('\n\n')[0].split())


def _roles(name: str | None) -> dict[str, str]:
    """For each role: the number of its modules, the first module, and how much of the network they reach.

    The weights of the backbone are not needed.
    """
    if name is None:
        raise UserError('each backbone has other roles; name the backbone, as in `vet list roles NAME`.')
    with imports():
        import timm
    source = dict(type='timm' if timm.is_model(name) else 'torchvision', name=name)
    if name in BACKBONES.names():
        source = dict(type=name)
    from vet.core.coverage import stand_ins

    backbone: Backbone = BACKBONES.build(dict(source, pretrained=False))
    sites = backbone.sites
    rows = {role: _role(sites, role) for role in sites.roles()}
    for name in TUNERS.names():
        for place in _default_places(name):
            for taken in stand_ins(sites, place):
                rows[place] = f'{rows[place]}, {name}' if place in rows else f'{taken}; of {name}'
    return rows


def _default_places(tuner: str) -> list[str]:
    at = next((argument.default for argument in arguments_of(TUNERS, tuner) if argument.name == 'at'), ())
    if isinstance(at, str):
        return [at]
    return list(at) if isinstance(at, (list, tuple)) else []


def _role(sites: 'SiteMap', role: str) -> str:
    from vet.core.coverage import coverage, percent, share_behind_blocks, shortfalls

    found = sites.find(role)
    parts = [f'{len(found)}, such as {found[0]}', str(coverage(sites, [site.name for site in found]))]
    if role == 'block':
        parts.append(f'{percent(share_behind_blocks(sites))} of the weights lie behind the last block')
    return '. '.join(['; '.join(parts), *shortfalls(sites, role, thaws=False)])
