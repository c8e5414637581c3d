"""Mona: adapters whose middle is a bank of convolutions, behind the attention and behind the block.

Yin et al. 2024, arXiv:2408.08345

B images, C channels, D the width.
"""

import torch
import torch.nn.functional as F
from torch import nn

from vet.allowed import Counts, Dropout, Places
from vet.core.delta import Delta
from vet.core.deltas import Carry, Kept, this_forward
from vet.core.site import Site
from vet.core.tuner import Tuner, refuse
from vet.errors import UserError
from vet.registry import TUNERS

KERNELS = (3, 5, 7)


class Cognition(Delta):
    """y + W2 drop(gelu(g(f(W1 (gamma * LN(y) + gamma_x * y)))))

    f(h) = h + mean over k of conv_k(h), depthwise convolutions of 3, 5 and 7; g(h) = h + W h. gamma starts at
    1e-6, gamma_x at 1, and the rest as torch draws it.
    grid: (H, W) of the patches in tokens (B, N, C), which stand behind the prefix tokens. A prefix token is a
        map of 1 x 1. None: y is a map with channels at `axis`.
    kept: gets the change, for Carry.
    """

    def __init__(
        self, channels: int, width: int, dropout: float, axis: int, grid: tuple[int, int] | None, prefix: int
    ):
        super().__init__()
        self.axis = axis
        self.grid = grid
        self.prefix = prefix
        self.kept: Kept | None = None
        self.norm = nn.LayerNorm(channels)
        self.drop = nn.Dropout(dropout)
        self.gamma, self.gamma_x = (
            nn.Parameter(torch.full((channels,), 1e-6)),
            nn.Parameter(torch.ones(channels)),
        )
        self.down, self.up = nn.Linear(channels, width), nn.Linear(width, channels)
        self.convs = nn.ModuleList(nn.Conv2d(width, width, k, padding=k // 2, groups=width) for k in KERNELS)
        self.mix = nn.Conv2d(width, width, 1)

    def forward(self, x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        y = x if y is None else y
        if self.grid is None:
            change = self.update(y.movedim(self.axis, -1)).movedim(-1, self.axis).to(y.dtype)
        else:
            change = self.of_tokens(y, self.grid).to(y.dtype)
        if self.kept is not None:
            self.kept[this_forward()] = change
        return y + change

    def of_tokens(self, y_BNC: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """The change of the prefix tokens and of the patches. Added tokens do not change."""
        K = self.prefix
        end = self.prefix + grid[0] * grid[1]
        prefix_BKC = self.update(y_BNC[:, :K].flatten(0, 1)[:, None, None]).view_as(y_BNC[:, :K])
        patches_BNC = self.update(y_BNC[:, K:end].unflatten(1, grid)).flatten(1, 2)
        return torch.cat([prefix_BKC, patches_BNC, torch.zeros_like(y_BNC[:, end:])], 1)

    def update(self, y_BHWC: torch.Tensor) -> torch.Tensor:
        h_BDHW = self.down(self.norm(y_BHWC) * self.gamma + y_BHWC * self.gamma_x).permute(0, 3, 1, 2)
        h_BDHW = h_BDHW + sum(conv(h_BDHW) for conv in self.convs) / len(KERNELS)
        h_BHWD = (h_BDHW + self.mix(h_BDHW)).permute(0, 2, 3, 1)
        return self.up(self.drop(F.gelu(h_BHWD)))


@TUNERS.register_module()
class Mona(Tuner):
    """x + W2 gelu(convs(W1 n(x))) at two places of a block: behind the attention's sum, and at the end.

    n(x) = gamma * LN(x) + gamma_x * x. The convolutions see the patches as a map.
    width: the width of both adapters: one value, a list by depth (0 skips a block), or a dict of patterns.
    dropout: the rate of dropout before W2, in training.
    at: blocks. In a block without an attention, an FFN or a norm before the FFN, one adapter stands at the
        end.
    The start is not the identity, as in the authors' code.
    Against the released code: output, gradients (difference 0), start and dropout of a Swin block. The code
        is for networks without class tokens. Here a class token is a map of 1 x 1, which is our
        interpretation.
    Parameters per adapter: 2 width C + width^2 + 88 width + 5 C; two a block. Swin-T's first block, width 64:
        48,320.
    """

    identity_at_start = False
    learning_rates = (3e-5, 3e-3)  # the released configs take 3e-5 for a batch of 16

    def __init__(self, width: Counts = 64, dropout: Dropout = 0.1, at: Places = 'block'):
        if not 0 <= dropout < 1:
            raise UserError(f'dropout is {dropout}; allowed: 0 up to, not including, 1.')
        super().__init__(at)
        self.width = width
        self.dropout = dropout

    def tune(self, site: Site) -> None:
        width = site.at_depth(self.width, 'width')
        if not width:
            return
        middle = self._middle(site)
        if middle is not None:
            kept: Kept = {}
            inner = self._adapter(middle, width, self._grid_of_map(site))
            inner.kept = kept
            self.before(middle, inner)
            self.after(site, Carry(kept))
        self.after(site, self._adapter(site, width))

    def _middle(self, block: Site) -> Site | None:
        """The norm whose input is the sum of a block's input and its attention. None: there is none."""
        assert self.backbone is not None
        sites = self.backbone.sites
        has_attention = any(name.startswith(f'{block.name}.') for name in sites.roles().get('attn', ()))
        ffn = sites.ffn_of(block) if has_attention else None
        norm = sites.norm_before(ffn.name) if ffn is not None else None
        return norm if norm is not None and norm.in_shape.numel() == block.out_shape.numel() else None

    def _grid_of_map(self, block: Site) -> tuple[int, int] | None:
        """(H, W) of a block's map (H, W, C), which the norm may see as tokens. None: the block has tokens."""
        if len(block.out_shape) != 3 or block.axis != -1:
            return None
        H, W, _ = block.out_shape
        return H, W

    def _adapter(self, site: Site, width: int, grid: tuple[int, int] | None = None) -> Cognition:
        is_tokens = len(site.out_shape) == 2
        prefix = 0 if grid else site.num_prefix_tokens
        grid = grid or site.grid
        if site.windows_per_image != 1 or len(site.out_shape) not in (2, 3):
            raise refuse(self, site, 'a module that gives the whole image, as tokens or as a map')
        if is_tokens and (grid is None or grid[0] * grid[1] + prefix != site.out_shape[0]):
            raise refuse(self, site, f'{prefix} prefix tokens and a grid of {grid or "known size"}, or a map')
        channels = site.out_shape[site.axis]
        return Cognition(channels, width, self.dropout, site.axis, grid if is_tokens else None, prefix)
