"""Site: a module of a network where a tuner may act, with the facts of the dry run.

site_map.py makes the sites. Tuners read them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from vet.core.dry_run import Call
from vet.core.output_first import output_first
from vet.errors import NoSiteError, UserError
from vet.near_paths import near_paths
from vet.patterns import occurs, require_pattern
from vet.torch_private import parameters_of


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
                f'{self} has no weight to change; ask for a role with weights, such as "weight".'
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
        A pattern is a module path or a part of a path, with wildcards ('blocks.[0-3]', 'attn.qkv', '*.fc1').
        If a pattern fits no site in this way, it is a regular expression that is searched for in the path.
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
