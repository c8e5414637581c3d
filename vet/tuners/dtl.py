"""DTL: a thin side network collects from all blocks, and feeds back to the later blocks alone.

Fu, Zhu, Wu 2024, arXiv:2312.07856

B images, N tokens, C channels.
"""

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Interval
from torch import nn

from vet.allowed import Count, Places, Positive
from vet.core.delta import Delta
from vet.core.deltas import Sides, this_forward
from vet.core.site import Site
from vet.core.tuner import Tuner, refuse
from vet.errors import UserError
from vet.registry import TUNERS


class Collect(Delta):
    """x -> x. The side h becomes h + B A x. The first block of a shape begins with h = 0.

    A (r, C) starts uniform as in nn.Linear, B (C, r) at zero.
    """

    def __init__(self, channels: int, rank: int, axis: int, number: int, is_first: bool, sides: Sides):
        super().__init__()
        self.axis = axis
        self.number = number
        self.is_first = is_first
        self.sides = sides
        self.A, self.B = nn.Parameter(torch.empty(rank, channels)), nn.Parameter(torch.zeros(channels, rank))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        added = F.linear(F.linear(x.movedim(self.axis, -1), self.A), self.B)
        if not self.is_first:
            added = added + fitting(self.sides[this_forward(), self.number - 1], added)
        self.sides[this_forward(), self.number] = added
        return x


class Feed(Delta):
    """y + conv(h sigmoid(beta h)), with conv a depthwise convolution over the patches, or none.

    grid: (H, W) of the patches behind `prefix` tokens, which have no convolution. None: maps.
    """

    def __init__(
        self,
        axis: int,
        beta: float,
        conv: nn.Conv2d | None,
        grid: tuple[int, int] | None,
        prefix: int,
        number: int,
        is_last: bool,
        sides: Sides,
    ):
        super().__init__()
        self.axis = axis
        self.beta = beta
        self.grid = grid
        self.prefix = prefix
        self.number = number
        self.is_last = is_last
        self.sides = sides
        self.conv: nn.Conv2d | None
        object.__setattr__(self, 'conv', conv)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        last = y.movedim(self.axis, -1)
        h = fitting(self.sides[this_forward(), self.number], last)
        if self.is_last:
            self.sides.end()
        h = h * torch.sigmoid(self.beta * h)
        return y + self.fused(h).movedim(-1, self.axis).to(y.dtype)

    def fused(self, h: torch.Tensor) -> torch.Tensor:
        if self.conv is None:
            return h
        if self.grid is None:
            return self.conv(h.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        K = self.prefix
        end = self.prefix + self.grid[0] * self.grid[1]
        map_BCHW = h[:, K:end].unflatten(1, self.grid).permute(0, 3, 1, 2)
        return torch.cat([h[:, :K], self.conv(map_BCHW).flatten(2).transpose(1, 2), h[:, end:]], 1)


def fitting(side: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The side with as many tokens as `like`: other tuners add tokens behind, and remove them."""
    missing = like.shape[1] - side.shape[1]
    return side if like.dim() != 3 or not missing else F.pad(side, (0, 0, 0, missing))


@TUNERS.register_module()
class DTL(Tuner):
    """h_i = h_{i-1} + B_i A_i x_i beside each block, and block_i(x_i) + swish(h_i) from the block `first` on.

    swish(h) = h sigmoid(beta h). The frozen blocks before `first` need no backward pass.
    rank: the rank of B A.
    first: the first block whose output is changed. None: the middle block, as in the released scripts of
        ViT-B/16. The scripts of Swin-B take 14 (of 24), with rank 4.
    kernel: 0, or the size of a depthwise convolution of swish(h), which all blocks of one shape share: DTL+.
        The released scripts take 3, 4 or 5 for DTL+. Prefix tokens pass beside the convolution.
    beta: the released scripts take 100.
    at: blocks that keep their shape.
    Blocks of a shape of which no block is changed get no side.
    Parameters: 2 rank C per block, and kernel^2 C per shape; ViT-B/16: 36,864, with kernel=3 43,776.
    Against the released code: output and gradients (largest difference 3e-16) and start of its ViT.
    """

    learning_rates = (3e-5, 1e-2)  # of the released scripts

    def __init__(
        self,
        rank: Count = 2,
        first: Annotated[int, Interval(ge=0, le=1000)] | None = None,
        kernel: Annotated[int, Interval(ge=0, le=15)] = 0,
        beta: Positive = 100.0,
        at: Places = 'block',
    ):
        super().__init__(at)
        self.rank = rank
        self.first = first
        self.kernel = kernel
        self.beta = beta

    def shared(self, sites: list[Site]) -> None:
        first = len(sites) // 2 if self.first is None else self.first
        if first >= len(sites):
            raise UserError(f'first is {first}, but there are {len(sites)} sites; give a smaller number.')
        self.fed = {site.name for site in sites[first:]}
        self.shapes = {site.out_shape for site in sites[first:]}  # a side lives as long as its shape
        self.sides = Sides()
        self.numbers = {site.name: number for number, site in enumerate(sites)}
        self.shape: torch.Size | None = None  # of the side that the last site has seen
        self.convs: dict[str, nn.Conv2d] = {}
        for site in sites[first:] if self.kernel else ():
            channels = site.out_shape[site.axis]
            self.convs['x'.join(map(str, site.out_shape))] = nn.Conv2d(
                channels, channels, self.kernel, padding='same', groups=channels, bias=False
            )
        if self.convs:
            self.share(nn.ModuleDict(self.convs), next(sites[0].module.parameters()).device)

    def tune(self, site: Site) -> None:
        if not site.out_shape or not site.keeps_shape or len(site.out_shape) not in (2, 3):
            raise refuse(self, site, 'blocks of tokens or maps that keep their shape')
        is_tokens = len(site.out_shape) == 2
        prefix = site.num_prefix_tokens
        if (
            self.kernel
            and is_tokens
            and (site.grid is None or site.grid[0] * site.grid[1] + prefix != site.out_shape[0])
        ):
            raise refuse(self, site, 'patches with a known grid, for its convolution')
        if site.out_shape not in self.shapes:
            return
        is_first = self.shape != site.out_shape
        self.shape = site.out_shape
        number = self.numbers[site.name]
        channels = site.out_shape[site.axis]
        self.before(site, Collect(channels, self.rank, site.axis, number, is_first, self.sides))
        if site.name in self.fed:
            conv = self.convs.get('x'.join(map(str, site.out_shape)))
            grid = site.grid if is_tokens else None
            is_last = number == len(self.numbers) - 1
            feed = Feed(site.axis, self.beta, conv, grid, prefix, number, is_last, self.sides)
            self.after(site, feed)
