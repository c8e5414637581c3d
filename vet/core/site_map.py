"""SiteMap: all sites of a network, found by role or by path. Layout: which modules play which role.

Every frozen network has a SiteMap. Backbones give its Layout, and tuners ask it for sites.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

from torch import nn

from vet.core.drop_path import is_drop_path
from vet.core.dry_run import Call
from vet.core.flow import WEIGHTED
from vet.core.inner import find_inner
from vet.core.norms import is_norm
from vet.core.site import Site
from vet.errors import NoSiteError, UnknownNameError, UserError
from vet.near_paths import near_paths
from vet.patterns import NOTHING, fits
from vet.torch_private import parameters_of

# never the path of a module by accident
ROLES = (
    'backbone block attn attn.qkv attn.proj pool pool.qkv pool.proj mlp mlp.fc1 mlp.fc2 norm '
    'weight linear conv stem logits'
).split()
# Where a role has no module: the places that may do instead, the nearest first.
NEAREST = {
    'attn': ('pool', '*.attn', '*.attention', '*.token_mixer', '*.mixer', 'block'),
    'attn.qkv': ('pool.qkv', '*.qkv', '*.q', '*.query', '*.in_proj', 'weight'),
    'attn.proj': ('pool.proj', '*.proj', '*.out_proj', 'weight'),
    'mlp': ('*.mlp', '*.ffn', 'block'),
    'mlp.fc1': ('*.fc1', 'weight'),
    'mlp.fc2': ('*.fc2', 'weight'),
    'norm': ('weight',),
    'block': ('weight',),
}
OR = ' or '  # between places of which the first that the network has counts: 'mlp or block'
AT = re.compile(r'(?P<role>[^\[\]]+)(\[(?P<slice>-?\d{1,9}|(-?\d{1,9})?:(-?\d{1,9})?)\])?')


@dataclass(frozen=True)
class Layout:
    """Which modules of a network play which role, as regular expressions for whole module paths.

    Also facts about the network's tokens.
    """

    roles: Mapping[str, str] = field(default_factory=dict)
    grid: tuple[int, int] | None = None
    num_prefix_tokens: int = 0


class SiteMap:
    """All sites of a network by role.

    `find('attn.qkv')`, `find('block[-2:]')`, `find('blocks.*.mlp.fc1')`.
    """

    def __init__(self, network: nn.Module, layout: Layout, calls: Mapping[str, Call], family: str):
        self.network = network
        self.layout = layout
        self.calls = calls
        self.family = family
        self.parts: dict[str, Any] = {}  # site -> rows, see Tuner.rows_of_parts
        pattern = layout.roles.get('block', NOTHING)
        self.blocks = sorted(
            (name for name in calls if fits(pattern, name)), key=lambda name: calls[name].order
        )

    @cached_property
    def products(self) -> int:
        """Products of two numbers that the layers of the network compute for one image, about."""
        called = ((self._module(name), call) for name, call in self.calls.items())
        return sum(
            call.batch * call.out_shape.numel() * module.weight[0].numel()
            for module, call in called
            if isinstance(module, WEIGHTED)
        )

    def roles(self) -> dict[str, list[str]]:
        """Every role and the module paths that play it. A role that no module plays is left out."""
        return {role: list(names) for role, names in self._roles.items()}

    @cached_property
    def _roles(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {'backbone': ['']}
        for role, pattern in self.layout.roles.items():
            found[role] = [name for name in self._names() if fits(pattern, name)]
        for role, names in find_inner(self.network, self.calls, self.blocks).items():
            found.setdefault(role, names)
        found.setdefault('norm', [name for name, module in self.network.named_modules() if is_norm(module)])
        found.setdefault('weight', [name for name in self._names() if self._is_weight(name)])
        for role, kind in (('linear', nn.Linear), ('conv', nn.Conv2d)):
            found.setdefault(role, [name for name in self.calls if isinstance(self._module(name), kind)])
        found.setdefault(
            'stem', [name for name in self.calls if isinstance(self._module(name), WEIGHTED)][:1]
        )
        if 'block' in found:
            found['block'] = self.blocks
        return {role: names for role, names in found.items() if names}

    def find(self, at: str | Sequence[str], may_miss: Sequence[str] = ()) -> list[Site]:
        """The sites that `at` names: roles, sliced roles, module paths with wildcards, or a list of these.

        'mlp or block': of several places, the first that the network has.
        may_miss: roles of the list that the network may lack, if it has others.
        UnknownNameError for a role that does not exist, NoSiteError for a role without sites. The list is
        never empty.
        """
        sites = {site.name: site for place in self.places(at, may_miss) for site in self._find(place)}
        return [replace(site, found=tuple(sites)) for site in sites.values()]

    def places(self, at: str | Sequence[str], may_miss: Sequence[str] = ()) -> list[str]:
        """The places that `at` means on this network: one of each 'mlp or block', none that it may lack."""
        given = [at] if isinstance(at, str) else list(dict.fromkeys(at))
        kept = [place for place in given if place not in may_miss or place in self._roles]
        return list(dict.fromkeys(map(self._first, kept or given)))

    def _first(self, place: str) -> str:
        options = place.split(OR) if isinstance(place, str) else [place]
        return next((option for option in options if self._names_of(option)), options[0])

    def _names_of(self, place: str) -> list[str]:
        """The module paths that have the role, or that fit the path, without the slice."""
        parsed = AT.fullmatch(place) if isinstance(place, str) else None
        role = parsed['role'] if parsed else ''
        return self._roles.get(role) or ([] if not role or role in ROLES else self._paths(role))

    def _find(self, at: str) -> list[Site]:
        parsed = AT.fullmatch(at) if isinstance(at, str) else None
        if parsed is None:
            raise UserError(
                f'cannot read the place {at!r}; allowed: a role, a sliced role such as "block[-2:]", a '
                'module path.'
            )
        role = parsed['role']
        cut = parsed['slice']
        names = self._names_of(at)
        if not names:
            near = self._near(role)
            raise UnknownNameError('role or module path', role, self._roles, self._advice(role), near)
        sites = [self._site(name) for name in names]
        if cut is not None:
            depths = range(max(len(self.blocks), 1))[_as_slice(cut)]
            sites = [site for site in sites if site.depth in depths]
            if not sites:
                raise NoSiteError(f'{at!r} matches no site: {self.family} has {len(self.blocks)} blocks.')
        return sites

    def _paths(self, pattern: str) -> list[str]:
        return [
            name for name in self._names() if fnmatchcase(name, pattern) or fnmatchcase(f'.{name}', pattern)
        ]

    def _near(self, place: str) -> list[str]:
        """The places that look like `place`, and the role that stands for a name of another library."""
        alike = [role for role, places in NEAREST.items() if place in places and role in self._roles]
        return alike[:1] or near_paths(place, self._names(), self._roles)

    def _advice(self, role: str) -> str:
        """Advice for a role without a module: the nearest place that has modules."""
        near = next(
            (place for place in NEAREST.get(role, ()) if self._roles.get(place) or self._are_called(place)),
            '',
        )
        works = f' Of this network, at={near!r} works.' if near else ''
        return (
            f'These are the roles of {self.family}; choose one with at=…, name modules by their paths, '
            f"such as at='*.query', or give roles in model.backbone.roles of a config.{works}"
        )

    def _are_called(self, pattern: str) -> bool:
        """Whether the forward calls a module of these paths, or an attention with such a projection."""
        return any(name.removesuffix('.in_proj') in self.calls for name in self._paths(pattern))

    def multiplier(self, layer: str) -> str | None:
        """The path of the attention that multiplies what the layer gives."""
        return next((name for name, call in self.calls.items() if layer in call.layers.factors), None)

    def norm_before(self, name: str) -> Site | None:
        """The norm whose output is the input of the module `name`. None: another module makes the input."""
        before = self.calls[name].fed_by
        return self._site(before) if before and is_norm(self._module(before)) else None

    def ffn_of(self, block: Site) -> Site | None:
        """The FFN within a block. None: the block has no FFN, or several."""
        names = [name for name in self.roles().get('mlp', ()) if name.startswith(f'{block.name}.')]
        return self.find(names)[0] if len(names) == 1 else None

    def drop_path_behind(self, name: str) -> Site | None:
        """The stochastic depth that takes the output of the module `name`. None: there is none."""
        for path, call in self.calls.items():
            if call.fed_by == name and is_drop_path(self._module(path)):
                return self._site(path)
            if call.fed_by == name and type(self._module(path)) is nn.Identity and path != name:
                return self.drop_path_behind(path)
        return None

    def around(self, name: str) -> str:
        """The path of the nearest module around the module `name` that the dry run saw called."""
        path = name.rpartition('.')[0]
        while path not in self.calls:
            path = path.rpartition('.')[0]
        return path

    def depth(self, path: str) -> int:
        """The number of the block that holds the module or parameter `path`, or of the block before it.

        -1 before all blocks, as for the network's own parameters (position embeddings). The number of
        blocks behind all blocks, and for a path that no module has.
        """
        if path in parameters_of(self.network):
            return -1
        host = path
        while host and host not in self.calls:
            host = host.rpartition('.')[0]
        return self._depth(path, host)

    def _depth(self, name: str, host: str) -> int:
        """The same as `depth`. host: the nearest module around `name` that is called."""
        if block := self._block_of(name):
            return self.blocks.index(block)
        passed = sum(self.calls[earlier].order < self.calls[host].order for earlier in self.blocks)
        return passed if passed == len(self.blocks) else passed - 1

    def _names(self) -> Iterator[str]:
        """Module paths, and the packed projection of each nn.MultiheadAttention, a parameter without a
        module.
        """
        for name, module in self.network.named_modules():
            yield name
            if isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
                yield f'{name}.in_proj'

    def _module(self, name: str) -> nn.Module:
        packed = name.removesuffix('.in_proj')
        if packed != name and isinstance(module := self.network.get_submodule(packed), nn.MultiheadAttention):
            return module
        return self.network.get_submodule(name)

    def _is_weight(self, name: str) -> bool:
        module = self._module(name)
        if not name or not isinstance(module, (*WEIGHTED, nn.MultiheadAttention)):
            return False
        if isinstance(module, nn.MultiheadAttention) and not name.endswith('.in_proj'):
            return False
        return not self.blocks or self._block_of(name) is not None

    def _block_of(self, name: str) -> str | None:
        return next((block for block in self.blocks if name == block or name.startswith(block + '.')), None)

    def _site(self, name: str) -> Site:
        module = self._module(name)
        path = name
        packed = isinstance(module, nn.MultiheadAttention) and name.endswith('.in_proj')
        if packed:
            path = name.removesuffix('.in_proj')
        host = path if path in self.calls else self.around(path)
        below = path[len(host) :].lstrip('.') + '.' if path != host else ''
        weight, bias = ('in_proj_weight', 'in_proj_bias') if packed else ('weight', 'bias')
        call = self.calls[host]
        return Site(
            name,
            module,
            self.network.get_submodule(host),
            host,
            below + weight,
            below + bias,
            call,
            self._depth(name, host),
            len(self.blocks),
            self.layout.grid,
            self.layout.num_prefix_tokens,
        )


def _as_slice(text: str) -> slice:
    if ':' not in text:
        return slice(int(text), int(text) + 1 or None)
    return slice(*(int(number) if number else None for number in text.split(':')))
