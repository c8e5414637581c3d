"""Ladder side-tuning: a thin transformer beside the frozen network, which gets the outputs of its blocks.

No gradient passes through the backbone.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from vet.allowed import Count
from vet.core.deltas import this_forward
from vet.core.site import Site
from vet.core.tuner import Tuner, refuse
from vet.errors import UserError
from vet.registry import TUNERS

# B images, N tokens, C channels of the backbone, R of the ladder, h its heads


@TUNERS.register_module()
class LadderSide(Tuner):
    """s_i = T_i(m_i D_i b_i + (1 - m_i) s_{i-1}), s_0 = D_0 b_0: a thin transformer beside the backbone.

    Ladder side-tuning, Sung et al. 2022, arXiv:2206.06522, sec. 3.
    reduction: C / R.
    heads: the number of heads in the attention of each T_i. The number divides R.
    b_0: the tokens that enter the backbone's first block. b_i: the tokens that leave block i.
    D_i: linear, C to R = C / reduction.
    T_i: a pre-norm transformer block of width R, drawn at random (the paper prunes the backbone's block).
    m_i: sigmoid(a_i / 0.1). a_i is learned and starts at 0.
    The features become f + U LN(s_L). s_L is the class token, or the mean of the tokens. U starts at zero, so
    the start is the identity.
    Against the released code: by reading (the code is for T5 and LXMERT), the gates, with a of the other
        sign, and their temperature of 0.1. The code gives U s_L in place of the features, where vet adds it,
        and starts the T_i as pruned copies of the blocks.
    Parameters: (L + 1) (C R + R) + L (12 R^2 + 13 R + 1) + 2 R + R C + C; ViT-B/16, reduction 8: 2,376,492.
    All blocks must take and give tokens of one shape (N, C).
    """

    def __init__(self, reduction: Count = 8, heads: Count = 4):
        super().__init__(['block', 'backbone'])
        if reduction < 1 or heads < 1:
            raise UserError(f'reduction is {reduction} and heads is {heads}; both must be at least 1.')
        self.reduction = reduction
        self.heads = heads

    def shared(self, sites: list[Site]) -> None:
        *blocks, backbone = sites
        for site in blocks:
            if not (site.takes_tokens and site.keeps_shape) or site.in_shape != blocks[0].in_shape:
                raise refuse(self, site, 'a block of tokens (N, C), the same in and out in every block')
        N, C = blocks[0].in_shape
        width = C // self.reduction
        if not width or width % self.heads:
            raise UserError(
                f'{C} channels divided by reduction={self.reduction} are {width}, which is no multiple of '
                f'{self.heads} heads; choose other numbers.'
            )
        self.tokens = N
        self.rungs: dict[int, list[torch.Tensor]] = {}  # by thread; has entries only during a forward
        self.sizes: dict[str, Any] = dict(
            blocks=len(blocks),
            channels=C,
            width=width,
            heads=self.heads,
            features=backbone.out_shape[0],
            has_class_token=backbone.num_prefix_tokens > 0,
        )

    def tune(self, site: Site) -> None:
        if not site.name:
            self.before(site, NewRungs(self.rungs))
            self.after(site, Ladder(self.rungs, **self.sizes))
            return
        if site.depth == 0:
            self.before(site, Rung(self.rungs, self.tokens))
        self.after(site, Rung(self.rungs, self.tokens))


class NewRungs(nn.Module):
    """Passes images on, and removes the rungs that a failed forward has left."""

    def __init__(self, rungs: dict[int, list[torch.Tensor]]):
        super().__init__()
        self.rungs = rungs

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.rungs[this_forward()] = []
        return images


class Rung(nn.Module):
    """Passes tokens on, and keeps the image's tokens for the ladder, without gradient.

    Prompts stand last and are cut.
    """

    def __init__(self, rungs: dict[int, list[torch.Tensor]], tokens: int):
        super().__init__()
        self.rungs = rungs
        self.tokens = tokens

    def forward(self, x_BNC: torch.Tensor, y_BNC: torch.Tensor | None = None) -> torch.Tensor:
        tokens_BNC = x_BNC if y_BNC is None else y_BNC
        rungs = self.rungs.get(this_forward())
        if rungs is not None:  # None: gradient checkpointing runs the block again, after the ladder
            rungs.append(tokens_BNC[:, : self.tokens].detach())
        return tokens_BNC


class Ladder(nn.Module):
    def __init__(
        self,
        rungs: dict[int, list[torch.Tensor]],
        blocks: int,
        channels: int,
        width: int,
        heads: int,
        features: int,
        has_class_token: bool,
    ):
        super().__init__()
        self.rungs = rungs
        self.has_class_token = has_class_token
        self.downs = nn.ModuleList(nn.Linear(channels, width) for _ in range(blocks + 1))
        self.blocks = nn.ModuleList(ThinBlock(width, heads) for _ in range(blocks))
        self.a = nn.Parameter(torch.zeros(blocks))
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, features)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, images: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """images (B, 3, H, W), features (B, C) -> (B, C)"""
        first, *others = self.rungs.pop(this_forward())
        s_BNR = self.downs[0](first)
        for m, down, block, b_BNC in zip((self.a / 0.1).sigmoid(), self.downs[1:], self.blocks, others):
            s_BNR = block(m * down(b_BNC) + (1 - m) * s_BNR)
        s_BR = s_BNR[:, 0] if self.has_class_token else s_BNR.mean(1)
        return features + self.up(self.norm(s_BR)).to(features.dtype)


class ThinBlock(nn.Module):
    """The pre-norm transformer block: x + attention(LN x), then + MLP(LN x)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x_BNR: torch.Tensor) -> torch.Tensor:
        # each (B, h, N, R / h)
        q, k, v = self.qkv(self.norm1(x_BNR)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x_BNR = x_BNR + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x_BNR + self.fc2(F.gelu(self.fc1(self.norm2(x_BNR))))
