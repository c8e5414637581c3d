"""Convpass: convolutional bypasses beside the frozen attention and FFN.   Jie and Deng 2022,
arXiv:2207.07039
"""

import torch
from torch import nn

from vet.allowed import Counts, Dropout, Places, Positive
from vet.core.deltas import Keep, Kept, follows, strided, this_forward
from vet.core.drop_path import DropPath, drop_path_rate
from vet.core.site import Site
from vet.core.tuner import Tuner, refuse
from vet.errors import UserError
from vet.registry import TUNERS

# B images, N tokens (K prefix tokens, then H x W patches, then added ones), C channels, D the bypass's width


@TUNERS.register_module()
class Convpass(Tuner):
    """m(x) + s W2 act(conv3x3(act(W1 x))), act(h) = h sigmoid(1.702 h), beside attention and FFN.

    x is the normed input of the attention or the FFN. The convolution sees the patch tokens as a map of H x
    W, and each class token as a map of 1 x 1. Prompts that were added pass through.
    width: the channels of the convolution; one value, a list by depth (0 skips a block), or a dict from
        module path patterns to values.
    scale: s, which the paper chooses for each task out of 0.01, 0.1, 1, 10, 100.
    dropout: the rate of dropout before W2, in training.
    drop_path: the share of images whose bypass is dropped, in training. None: the rate that stochastic depth
        of the backbone (drop_path_rate) has at the same place, or 0. The attention or the FFN is
        dropped on its own. The paper's runs have drop_path_rate=0.1.
    xavier_conv: the convolution starts Xavier-uniform, as in the paper's other start. False: the convolution
        starts as the identity, with ones at its centre. W1 starts Xavier-uniform, W2 at zero.
    at: if a network has no FFN, the bypasses run beside its blocks, see `Adapter`. If a block makes a smaller
        map, the bypass reads every s-th position of x.
    Against the released code: output, gradients, start, dropout and stochastic depth.
    Parameters per site: width (C + C') + 9 width^2 + 2 width + C', with C' channels out; ViT-B/16, width 8:
        327,552.
    The site must have tokens with a known grid, or a map. Windows are refused, because a window is no map of
    the image.
    """

    may_miss = ('attn',)

    def __init__(
        self,
        width: Counts = 8,
        scale: Positive = 1.0,
        dropout: Dropout = 0.1,
        drop_path: Dropout | None = None,
        xavier_conv: bool = False,
        at: Places = ('attn', 'mlp or block'),
    ):
        super().__init__(at if isinstance(at, str) else list(at))
        for what, share in (('dropout', dropout), ('drop_path', drop_path or 0.0)):
            if not 0 <= share < 1:
                raise UserError(f'{what} is {share}; allowed: 0 up to, not including, 1.')
        self.width = width
        self.scale = scale
        self.dropout = dropout
        self.drop_path = drop_path
        self.xavier_conv = xavier_conv

    def tune(self, site: Site) -> None:
        width = site.at_depth(self.width, 'width')
        if not width:
            return
        is_tokens = len(site.in_shape) == 2
        prefix = site.num_prefix_tokens
        is_map = len(site.in_shape) == len(site.out_shape) == 3 and site.in_axis == site.axis
        keeps = is_map and follows(site.in_shape, site.out_shape, site.axis)
        if site.windows_per_image != 1 or not (keeps or is_tokens and site.keeps_shape):
            raise refuse(
                self,
                site,
                'a module that takes the whole image as tokens or a map, and keeps its shape or makes a '
                'smaller map',
            )
        if is_tokens and (site.grid is None or site.grid[0] * site.grid[1] + prefix != site.in_shape[0]):
            raise refuse(
                self, site, f'{prefix} prefix tokens and a grid of {site.grid or "known size"}, or a map'
            )
        assert self.backbone is not None
        behind = self.backbone.sites.drop_path_behind(site.name) if site.called else None
        kept: Kept | None = None if behind is None else {}
        rate = self.drop_path
        if rate is None:
            rate = 0.0 if behind is None else drop_path_rate(behind.module)
        delta = Bypass(
            site.in_shape[site.axis],
            width,
            site.out_shape[site.axis],
            site.axis,
            site.grid if is_tokens else None,
            prefix,
            self.scale,
            self.dropout,
            rate,
            self.xavier_conv,
            kept,
        )
        self.after(behind or site, delta, of=site)
        if kept is not None:
            self.before(site, Keep(kept))


class QuickGELU(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(1.702 * x)


class Bypass(nn.Module):
    """y + s W2 act(conv(act(W1 x))).

    If `grid` is given: tokens (B, N, C). If not: maps with channels at `axis`.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        out_channels: int,
        axis: int,
        grid: tuple[int, int] | None,
        num_prefix_tokens: int,
        scale: float,
        dropout: float,
        drop_path: float,
        xavier_conv: bool,
        kept: Kept | None,
    ):
        super().__init__()
        self.axis = axis
        self.kept = kept
        self.drop_path = DropPath(drop_path)
        self.grid = grid
        self.num_prefix_tokens = num_prefix_tokens
        self.scale = scale
        self.down, self.up = nn.Linear(channels, width), nn.Linear(width, out_channels)
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.act = QuickGELU()
        self.drop = nn.Dropout(dropout)
        nn.init.xavier_uniform_(self.down.weight)
        (nn.init.xavier_uniform_ if xavier_conv else nn.init.dirac_)(self.conv.weight)
        nn.init.zeros_(self.up.weight)
        for bias in (self.down.bias, self.conv.bias, self.up.bias):
            assert bias is not None
            nn.init.zeros_(bias)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if self.kept is not None:
            x = self.kept.pop(this_forward())
        if self.grid is None:
            x_BHWC = strided(x.movedim(self.axis, -1), y.movedim(self.axis, -1).shape)
            return y + self.drop_path(self.bypass(x_BHWC)).movedim(-1, self.axis).to(y.dtype)
        H, W = self.grid
        K = self.num_prefix_tokens
        B, _, C = x.shape
        prefix_BKC = self.bypass(x[:, :K].reshape(B * K, 1, 1, C)).view(B, K, C)
        patches_BNC = self.bypass(x[:, K : K + H * W].unflatten(1, (H, W))).flatten(1, 2)
        added_BNC = torch.zeros_like(y[:, K + H * W :])
        return y + self.drop_path(torch.cat([prefix_BKC.to(y.dtype), patches_BNC.to(y.dtype), added_BNC], 1))

    def bypass(self, x_BHWC: torch.Tensor) -> torch.Tensor:
        h_BDHW = self.act(self.down(x_BHWC)).permute(0, 3, 1, 2)
        h_BHWD = self.act(self.conv(h_BDHW)).permute(0, 2, 3, 1)
        return self.scale * self.up(self.drop(h_BHWD))
