"""Sites: the places of a backbone where a tuner may act, found by role, with the shapes that one dry run saw.

Read by backbones (which say what plays which role) and by tuners (which ask for sites). Of vet it imports errors and modes alone.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from vet.core.modes import in_eval
from vet.errors import NoSiteError, UnknownNameError, UserError

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._BatchNorm)
WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd)
AT = re.compile(r'(?P<role>[^\[\]]+)(\[(?P<slice>[-\d]*(:[-\d]*)?)\])?')


@dataclass(frozen=True)
class Site:
    """One module of a backbone, as a tuner sees it. Shapes are per image: (N, C) tokens, (C, H, W) or (H, W, C) maps."""

    name: str                       # dotted module path; '' is the whole network
    module: nn.Module               # the module of that name
    host: nn.Module                 # the module that is called: itself, or the nearest caller that reads its weight
    weight_name: str                # its weight, as a parameter path below host
    bias_name: str
    in_shape: torch.Size            # of the host
    out_shape: torch.Size
    axis: int                       # channel axis of the output: -1, or -3 for (C, H, W) maps
    depth: int                      # its block (between two: the one before) from 0; -1 before all, num_blocks after all
    num_blocks: int
    grid: tuple[int, int] | None    # (H, W) of the patch tokens
    num_prefix_tokens: int          # class, distillation and register tokens
    windows_per_image: int          # Swin's attention sees (windows x B, N, C)
    found: tuple[str, ...] = ()     # the names of all sites that one `find` gave, this one among them

    @property
    def called(self) -> bool:
        """Whether the module itself is called, so that its input and output can be edited."""
        return self.module is self.host and self.weight_name == 'weight'

    @property
    def weight(self) -> torch.Tensor:
        """The weight as it stands now: (out, in) of a Linear, (out, in / groups, kH, kW) of a convolution, (C,) of a norm."""
        try:
            return self.host.get_parameter(self.weight_name)
        except AttributeError:
            raise NoSiteError(f'{self} has no weight to change; ask for a role that has one, such as "weight".') from None

    @property
    def bias(self) -> torch.Tensor | None:
        """The bias beside the weight; None where there is none."""
        owner, _, name = self.bias_name.rpartition('.')
        return self.host.get_submodule(owner)._parameters.get(name)

    def at_depth(self, value: object, what: str) -> int:
        """The entry for this site of `value`, as `choose` finds it, where it must be an int; 0, where no pattern fits."""
        if isinstance(value, int) and value < 1:
            raise UserError(f'{what} is {value}; it must be at least 1 (in a list by depth, 0 skips a block).')
        chosen = self.choose(value, what)
        if chosen is None and isinstance(value, Mapping):
            return 0
        if not isinstance(chosen, int) or isinstance(chosen, bool) or chosen < 0:
            raise UserError(f'{what} is {chosen!r}; allowed: a positive int, a list of ints by depth, a dict of patterns.')
        return chosen

    def number(self, value: Any, what: str) -> float | None:
        """The entry for this site of `value`, as `choose` finds it, where it must be a number; None stays None."""
        chosen = self.choose(value, what)
        if chosen is not None and (not isinstance(chosen, (int, float)) or isinstance(chosen, bool)):
            raise UserError(f'{what} is {chosen!r}; allowed: a number, a list of numbers by depth, a dict of patterns, or None.')
        return chosen

    def choose(self, value: Any, what: str) -> Any:
        """The entry for this site of `value`: one value, a list by depth, or a dict of path patterns, of which the first that
        fits counts; None where none does. UserError for a pattern that fits no site at all.

        A pattern is a module path or a part of one, with wildcards ('blocks.[0-3]', 'attn.qkv', '*.fc1'); where it fits no site
        as such, a regular expression that is searched for in the path.
        """
        if isinstance(value, Mapping):
            fitting = [_fitting(pattern, self.found or (self.name,), what) for pattern in value]
            return next((entry for names, entry in zip(fitting, value.values()) if self.name in names), None)
        if isinstance(value, (list, tuple)):
            if len(value) != self.num_blocks:
                raise UserError(f'{what} has {len(value)} values, but the backbone has {self.num_blocks} blocks; '
                                f'give one value, or one for each block (0 skips it).')
            if not 0 <= self.depth < self.num_blocks:
                raise UserError(f'{what} is a list by depth, but {self} lies in no block; give one value there.')
            return value[self.depth]
        return value

    def __str__(self) -> str:
        takes = f', which takes {tuple(self.in_shape)} per image' if self.in_shape else ''
        return f'{self.name or "the backbone"!r} ({type(self.module).__name__}{takes})'


@dataclass(frozen=True)
class Call:
    """What the dry run saw of a module: its order, batch size and shapes of the first tensor in and out."""

    order: int
    batch: int
    in_shape: torch.Size
    out_shape: torch.Size


@dataclass(frozen=True)
class Layout:
    """What plays which role in one network: regular expressions over whole module paths, beside what its tokens are."""

    roles: Mapping[str, str] = field(default_factory=dict)
    grid: tuple[int, int] | None = None
    num_prefix_tokens: int = 0


def dry_run(network: nn.Module, image: torch.Tensor) -> dict[str, Call]:
    """Runs `network` on one image (1, 3, H, W) and returns, by dotted path, each module that was called."""
    calls: dict[str, Call] = {}

    def record(name: str, args: tuple, out: object) -> None:
        given, gave = _first_tensor(args), _first_tensor(out)
        if name not in calls and given is not None and gave is not None:
            calls[name] = Call(len(calls), given.shape[0], given.shape[1:], gave.shape[1:])

    handles = [module.register_forward_hook(lambda _, args, out, name=name: record(name, args, out))
               for name, module in network.named_modules()]
    try:
        with torch.no_grad(), in_eval(network):
            network(image)
    finally:
        for handle in handles:
            handle.remove()
    return calls


class SiteMap:
    """All sites of one network by role. `find('attn.qkv')`, `find('block[-2:]')`, `find('blocks.*.mlp.fc1')`."""

    def __init__(self, network: nn.Module, layout: Layout, calls: Mapping[str, Call], family: str):
        self.network, self.layout, self.calls, self.family = network, layout, calls, family
        pattern = re.compile(layout.roles.get('block', '(?!)'))
        self.blocks = sorted((name for name in calls if pattern.fullmatch(name)), key=lambda name: calls[name].order)

    def roles(self) -> dict[str, list[str]]:
        """Every role and the module paths that play it (a role that no module plays is left out)."""
        found: dict[str, list[str]] = {'backbone': ['']}
        for role, pattern in self.layout.roles.items():
            found[role] = [name for name in self._names() if re.fullmatch(pattern, name)]
        found.setdefault('norm', [name for name, module in self.network.named_modules() if isinstance(module, NORMS)])
        found.setdefault('weight', [name for name in self._names() if self._is_weight(name)])
        for role, kind in (('linear', nn.Linear), ('conv', nn.Conv2d)):
            found.setdefault(role, [name for name in self.calls if isinstance(self._module(name), kind)])
        found.setdefault('stem', [name for name in self.calls if isinstance(self._module(name), WEIGHTED)][:1])
        if 'block' in found:
            found['block'] = self.blocks
        return {role: names for role, names in found.items() if names}

    def find(self, at: str | Sequence[str]) -> list[Site]:
        """The sites that `at` names: roles, sliced roles, module paths with wildcards, or a list of these.

        UnknownNameError for a role that does not exist, NoSiteError for one that matches nothing: never an empty list.
        """
        sites = {site.name: site for one in ([at] if isinstance(at, str) else at) for site in self._find(one)}
        return [replace(site, found=tuple(sites)) for site in sites.values()]

    def _find(self, at: str) -> list[Site]:
        parsed = AT.fullmatch(at)
        if parsed is None:
            raise UserError(f'cannot read the place {at!r}; allowed: a role, a sliced role such as "block[-2:]", a module path.')
        role, cut, roles = parsed['role'], parsed['slice'], self.roles()
        names = roles.get(role) or [name for name in self._names() if fnmatchcase(name, role) or fnmatchcase(f'.{name}', role)]
        if not names:
            raise UnknownNameError('role or module path', role, roles,
                                   f'These are the roles of {self.family}; choose one with at=…, or give others in '
                                   f'model.backbone.roles.')
        sites = [self._site(name) for name in names]
        if cut is not None:
            depths = range(max(len(self.blocks), 1))[_as_slice(cut)]
            sites = [site for site in sites if site.depth in depths]
            if not sites:
                raise NoSiteError(f'{at!r} matches no site: {self.family} has {len(self.blocks)} blocks.')
        return sites

    def _names(self) -> Iterator[str]:
        """Module paths, and the packed projection of each nn.MultiheadAttention, which is a parameter of no module."""
        for name, module in self.network.named_modules():
            yield name
            if isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
                yield f'{name}.in_proj'

    def _module(self, name: str) -> nn.Module:
        packed = name.removesuffix('.in_proj')
        module = self.network.get_submodule(packed)
        return module if isinstance(module, nn.MultiheadAttention) else self.network.get_submodule(name)

    def _is_weight(self, name: str) -> bool:
        if not name or not isinstance(self._module(name), WEIGHTED):
            return name.endswith('.in_proj')
        return not self.blocks or self._block_of(name) is not None

    def _block_of(self, name: str) -> str | None:
        return next((block for block in self.blocks if name == block or name.startswith(block + '.')), None)

    def _site(self, name: str) -> Site:
        module, path = self._module(name), name
        packed = isinstance(module, nn.MultiheadAttention) and name.endswith('.in_proj')
        if packed:
            path = name.removesuffix('.in_proj')
        host = path
        while host and host not in self.calls:
            host = host.rpartition('.')[0]
        below = path[len(host):].lstrip('.') + '.' if path != host else ''
        weight, bias = ('in_proj_weight', 'in_proj_bias') if packed else ('weight', 'bias')
        call, block = self.calls[host], self._block_of(name)
        passed = sum(self.calls[earlier].order < call.order for earlier in self.blocks)
        depth = self.blocks.index(block) if block else passed if passed == len(self.blocks) else passed - 1
        return Site(name, module, self.network.get_submodule(host), below + weight, below + bias,
                    call.in_shape, call.out_shape, self._axis(host), depth, len(self.blocks),
                    self.layout.grid, self.layout.num_prefix_tokens, call.batch)

    def _axis(self, name: str) -> int:
        """Of a module with channels: where they are. Of a container: as in its first part that takes the same input."""
        call, module = self.calls[name], self.network.get_submodule(name)
        if len(call.out_shape) < 3:
            return -1
        if isinstance(module, nn.Linear):
            return -1
        if isinstance(module, NORMS + WEIGHTED):
            is_last = isinstance(module, nn.LayerNorm | nn.RMSNorm) and '2d' not in type(module).__name__.lower()
            return -1 if is_last else -3
        prefix = name + '.' if name else ''
        inside = (part for part in sorted(self.calls, key=lambda part: self.calls[part].order)
                  if part != name and part.startswith(prefix) and self.calls[part].in_shape == call.in_shape
                  and isinstance(self.network.get_submodule(part), NORMS + WEIGHTED))
        first = next(inside, None)
        return self._axis(first) if first else -3


def _fitting(pattern: str, names: tuple[str, ...], what: str) -> list[str]:
    """Those of the module paths that a pattern fits; UserError where it fits none."""
    found = [name for name in names if fnmatchcase(f'.{name}.', f'*.{pattern}.*')]
    try:
        found = found or [name for name in names if re.search(pattern, name)]
    except re.error as error:
        raise UserError(f'{what} has the pattern {pattern!r}, neither a module path with wildcards that fits one of the '
                        f'{len(names)} sites, such as {names[0]!r}, nor a regular expression: {error}.') from error
    if not found:
        raise UserError(f'{what} has the pattern {pattern!r}, which fits none of the {len(names)} sites: {", ".join(names[:3])}, '
                        f'…. Mend it, or leave it out.')
    return found


def _first_tensor(value: object) -> torch.Tensor | None:
    if isinstance(value, torch.Tensor):
        return value if value.dim() else None
    return next((t for t in value if isinstance(t, torch.Tensor) and t.dim()), None) if isinstance(value, (tuple, list)) else None


def _as_slice(text: str) -> slice:
    if ':' not in text:
        return slice(int(text), int(text) + 1 or None)
    return slice(*(int(part) if part else None for part in text.split(':')))
