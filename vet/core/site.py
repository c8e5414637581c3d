"""Sites: the places of a backbone where a tuner may act, found by role, with shapes from one dry run.

Backbones say which modules play which role. Tuners ask for sites. The file imports only errors, modes and
channels of vet.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import nn

from vet.core.channels import Channels, tensors_in
from vet.core.flow import WEIGHTED, Flow, Layers
from vet.core.inner import find_inner
from vet.core.modes import in_eval
from vet.core.norms import is_norm
from vet.core.output_first import output_first
from vet.errors import NoSiteError, UnknownNameError, UserError
from vet.near_paths import near_paths
from vet.patterns import NOTHING, fits, occurs, require_pattern
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
class Call:
    """The facts of the dry run about a module: its order, its batch size, its first tensor and its output
    tensor.

    The output tensor is the tensor that other modules read. Shapes are per image. A channel axis is None if
    the dry run does not show it.
    """

    order: int
    batch: int
    in_shape: torch.Size
    out_shape: torch.Size
    in_axis: int | None = -1
    out_axis: int | None = -1
    # the place of the output tensor in the module's output; None: the output is a tensor
    place: int | str | None = None
    takes: str = ''  # words for the first argument, if it is no tensor
    gives: str = ''  # words for the output, if others read several of its tensors
    reads: bool = True  # whether the module computes with its first tensor
    layers: Layers = Layers()


@dataclass(frozen=True)
class Site:
    """One module of a backbone, as a tuner sees it. Shapes are per image: (N, C) tokens, (C, H, W) or
    (H, W, C) maps.
    """

    name: str  # dotted module path; '' is the whole network
    module: nn.Module  # the module of that name
    host: nn.Module  # the module that is called: this module, or the nearest caller that reads its weight
    host_name: str
    weight_name: str  # its weight, as a parameter path below host
    bias_name: str
    call: Call  # of the host
    depth: int  # the number of its block, or of the block before it; -1 before all, num_blocks after all
    num_blocks: int
    grid: tuple[int, int] | None  # (H, W) of the patch tokens
    num_prefix_tokens: int  # class, distillation and register tokens
    found: tuple[str, ...] = ()  # the names of all sites of the same `find`, with this site

    @property
    def in_shape(self) -> torch.Size:
        """The shape of the host's first input tensor, per image."""
        return self.call.in_shape

    @property
    def out_shape(self) -> torch.Size:
        """The shape of the host's output tensor, per image."""
        return self.call.out_shape

    @property
    def in_axis(self) -> int:
        """The channel axis of the input, counted from the end.

        NoSiteError if the dry run does not show it.
        """
        return self._shown(self.call.in_axis, f'takes {tuple(self.in_shape)}')

    @property
    def axis(self) -> int:
        """The channel axis of the output, counted from the end.

        NoSiteError if the dry run does not show it.
        """
        return self._shown(self.call.out_axis, f'gives {tuple(self.out_shape)}')

    @property
    def windows_per_image(self) -> int:
        """The rows of an image at the host: Swin's attention sees (windows x B, N, C)."""
        return self.call.batch

    @property
    def takes_tokens(self) -> bool:
        """Whether the input is (N, C) per image."""
        return len(self.in_shape) == 2 and self.in_axis == -1

    @property
    def keeps_shape(self) -> bool:
        """Whether input and output have the same shape, and the channels at the same axis."""
        return self.in_shape == self.out_shape and self.in_axis == self.axis

    def _shown(self, axis: int | None, action: str) -> int:
        if axis is None:
            raise NoSiteError(
                f'{self} {action} per image, but no layer of the network shows which axis holds the '
                f'channels; choose other sites with at=….'
            )
        return axis

    @property
    def called(self) -> bool:
        """Whether the module itself is called, so that its input and output can be edited."""
        return self.module is self.host and self.weight_name == 'weight'

    @property
    def has_weight(self) -> bool:
        """Whether the site has a `weight`."""
        owner, _, name = self.weight_name.rpartition('.')
        return parameters_of(self.host.get_submodule(owner)).get(name) is not None

    @property
    def weight(self) -> torch.Tensor:
        """The present weight: (out, in) of a Linear, (out, in / groups, kH, kW) of a convolution, transposed
        or not, (C,) of a norm.
        """
        try:
            owner = self.host.get_submodule(self.weight_name.rpartition('.')[0])
            return output_first(owner, self.host.get_parameter(self.weight_name))
        except AttributeError:
            raise NoSiteError(
                f'{self} has no weight to change; ask for a role that has one, such as "weight".'
            ) from None

    @property
    def bias(self) -> torch.Tensor | None:
        """The bias beside the weight. None: there is no bias."""
        owner, _, name = self.bias_name.rpartition('.')
        return parameters_of(self.host.get_submodule(owner)).get(name)

    def at_depth(self, value: object, name: str) -> int:
        """The entry of `value` for this site, see `choose`. The entry must be an int. 0: no pattern fits."""
        if isinstance(value, int) and value < 1:
            raise UserError(
                f'{name} is {value}; it must be at least 1 (in a list by depth, 0 skips a block).'
            )
        chosen = self.choose(value, name)
        if chosen is None and isinstance(value, Mapping):
            return 0
        if not isinstance(chosen, int) or isinstance(chosen, bool) or chosen < 0:
            raise UserError(
                f'{name} is {chosen!r}; allowed: a positive int, a list of ints by depth, a dict of patterns.'
            )
        return chosen

    def number(self, value: object, name: str) -> float | None:
        """The entry of `value` for this site, see `choose`. The entry must be a number. None stays None."""
        chosen = self.choose(value, name)
        if chosen is not None and (not isinstance(chosen, (int, float)) or isinstance(chosen, bool)):
            raise UserError(
                f'{name} is {chosen!r}; allowed: a number, a list of numbers by depth, a dict of patterns, '
                'or None.'
            )
        return chosen

    def choose(self, value: object, name: str) -> Any:
        """The entry of `value` for this site.

        value: one value, a list by depth, or a dict of path patterns, in which the first pattern that fits
            counts. None: no pattern fits. UserError for a pattern that fits no site at all.
        A pattern is a module path or a part of one, with wildcards ('blocks.[0-3]', 'attn.qkv', '*.fc1'). If
        a pattern fits no site in this way, it is a regular expression that is searched for in the path.
        """
        if isinstance(value, Mapping):
            fitting = [_fitting(pattern, self.found or (self.name,), name) for pattern in value]
            return next((entry for names, entry in zip(fitting, value.values()) if self.name in names), None)
        if isinstance(value, (list, tuple)):
            if len(value) != self.num_blocks:
                raise UserError(
                    f'{name} has {len(value)} values, but the backbone has {self.num_blocks} blocks; '
                    f'give one value, or one for each block (0 skips it).'
                )
            if not 0 <= self.depth < self.num_blocks:
                raise UserError(
                    f'{name} is a list by depth, but {self} lies in no block; give one value there.'
                )
            return value[self.depth]
        return value

    def __str__(self) -> str:
        takes = f', which takes {tuple(self.in_shape)} per image' if self.in_shape else ''
        return f'{self.name or "the backbone"!r} ({type(self.module).__name__}{takes})'


@dataclass(frozen=True)
class Layout:
    """Which modules of a network play which role, as regular expressions for whole module paths.

    Also facts about the network's tokens.
    """

    roles: Mapping[str, str] = field(default_factory=dict)
    grid: tuple[int, int] | None = None
    num_prefix_tokens: int = 0


def dry_run(network: nn.Module, *args: Any, **kwargs: Any) -> dict[str, Call]:
    """Runs `network` on one image (1, 3, H, W). Returns each module that was called, by dotted path."""
    seen: dict[str, _Seen] = {}
    channels, flow = Channels(), Flow(network)
    entered: dict[str, int] = {}

    def enter(name: str) -> None:
        flow.enter(name)
        entered[name] = channels.clock

    def leave(name: str, args: tuple, kwargs: dict, out: object) -> None:
        flow.leave()
        if name not in seen and all(
            next(tensors_in(value), None) is not None for value in ((args, kwargs), out)
        ):
            seen[name] = _Seen(channels, args, kwargs, out, entered[name])

    handles = []
    for name, module in network.named_modules():
        handles += [
            module.register_forward_pre_hook(lambda *_, name=name: enter(name)),
            module.register_forward_hook(
                lambda _, args, kwargs, out, name=name: leave(name, args, kwargs, out), with_kwargs=True
            ),
        ]
    try:
        with torch.no_grad(), in_eval(network), flow, channels:
            network(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    layers = flow.layers(seen)
    return {
        name: replace(module.call(order), layers=layers[name])
        for order, (name, module) in enumerate(seen.items())
    }


class _Seen:
    """One call of a module, noted when the module returns. `call` gives the facts after the network has
    returned.

    No tensor is kept.
    """

    def __init__(self, channels: Channels, args: tuple, kwargs: Mapping, out: Any, entered: int):
        self.channels, self.left = channels, channels.clock
        given = next(tensors_in((args, kwargs)))
        self.batch, self.in_shape, self.in_axes = given.shape[0], given.shape[1:], channels.axes(given)
        self.reads = self.channels.used_after(self.in_axes, entered)
        self.takes = ''
        if not args or args[0] is not given:
            self.takes = f'a {type(args[0]).__name__} first' if args else 'its tensors by keyword'
        if isinstance(out, torch.Tensor):
            entries: Mapping[Any, Any] = {None: out}
        else:
            entries = out if isinstance(out, Mapping) else dict(enumerate(out))
        self.kind = type(out).__name__
        self.gave: dict[int | str | None, list[tuple[torch.Size, tuple[int, ...]]]] = {}
        for place, entry in entries.items():
            tensors = tensors_in(entry)
            self.gave[place] = [(tensor.shape[1:], channels.axes(tensor)) for tensor in tensors]

    def call(self, order: int) -> Call:
        given = [(place, *tensor) for place, tensors in self.gave.items() for tensor in tensors]
        read = [tensor for tensor in given if self.channels.used_after(tensor[2], self.left)] or given
        place, out_shape, out_axes = read[0]
        several = max(len(read), len(self.gave[place]))
        gives = f'{several} tensors in a {self.kind}' if several > 1 else ''
        in_axis, out_axis = (self.channels.axis(axes) for axes in (self.in_axes, out_axes))
        if len(self.in_shape) == len(out_shape):
            in_axis, out_axis = in_axis or out_axis, out_axis or in_axis
        in_axis, out_axis = (
            -1 if axis is None and len(shape) < 3 else axis
            for axis, shape in ((in_axis, self.in_shape), (out_axis, out_shape))
        )
        return Call(
            order,
            self.batch,
            self.in_shape,
            out_shape,
            in_axis,
            out_axis,
            place,
            self.takes,
            gives,
            self.reads,
        )


class SiteMap:
    """All sites of a network by role.

    `find('attn.qkv')`, `find('block[-2:]')`, `find('blocks.*.mlp.fc1')`.
    """

    def __init__(self, network: nn.Module, layout: Layout, calls: Mapping[str, Call], family: str):
        self.network, self.layout, self.calls, self.family = network, layout, calls, family
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
        role, cut = parsed['role'], parsed['slice']
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
        """What to do where a role has no module: the nearest place that has some."""
        near = next(
            (place for place in NEAREST.get(role, ()) if self._roles.get(place) or self._paths(place)), ''
        )
        works = f' Of this network, at={near!r} works.' if near else ''
        return (
            f'These are the roles of {self.family}; choose one with at=…, or give others in '
            f'model.backbone.roles.{works}'
        )

    def multiplier(self, layer: str) -> str | None:
        """The path of the attention that multiplies what the layer gives."""
        return next((name for name, call in self.calls.items() if layer in call.layers.factors), None)

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
        """As `depth`. host: the nearest module around `name` that is called."""
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
        module = self.network.get_submodule(packed)
        return module if isinstance(module, nn.MultiheadAttention) else self.network.get_submodule(name)

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
        module, path = self._module(name), name
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


@lru_cache(maxsize=4096)
def _fitting(pattern: str, names: tuple[str, ...], setting: str) -> list[str]:
    """The module paths that a pattern fits. UserError if it fits none."""
    found = [name for name in names if fnmatchcase(f'.{name}.', f'*.{pattern}.*')]
    if not found:
        require_pattern(
            pattern,
            f'{setting} fits none of the {len(names)} sites, such as {names[0]!r}, as a module path, and',
        )
        found = [name for name in names if occurs(pattern, name)]
    if not found:
        near = near_paths(pattern, names)
        meant = f' Did you mean {" or ".join(map(repr, near))}?' if near else ''
        raise UserError(
            f'{setting} has the pattern {pattern!r}, which fits none of the {len(names)} sites: '
            f'{", ".join(names[:3])}, ….{meant} Correct the pattern, or leave it out.'
        )
    return found


def _as_slice(text: str) -> slice:
    if ':' not in text:
        return slice(int(text), int(text) + 1 or None)
    return slice(*(int(part) if part else None for part in text.split(':')))
