"""ARC: adapters recomposed from shared symmetric projections.   Dong et al. 2023, arXiv:2310.06234"""

import torch
from torch import nn

from vet.allowed import Count, Dropout, Places
from vet.core.deltas import InputLowRank
from vet.core.site import Site
from vet.core.tuner import Tuner, refuse
from vet.errors import UserError
from vet.registry import TUNERS


class Recomposed(InputLowRank):
    """x + P diag(c) P' x + b, with P (C, width) shared. b starts at zero, c at zero or Xavier-uniform."""

    shared: nn.ParameterDict

    def __init__(self, shared: nn.Module, key: str, has_shift: bool, dropout: float, is_drawn: bool):
        super().__init__()
        object.__setattr__(self, 'shared', shared)
        self.key = key
        self.dropout = dropout
        channels, width = self.shared[key].shape
        self.c = nn.Parameter(torch.zeros(width))
        if is_drawn:
            nn.init.xavier_uniform_(self.c[None])
        self.b = nn.Parameter(torch.zeros(channels)) if has_shift else None

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        P = self.shared[self.key]
        return self.c[:, None] * P.T, P

    def shift(self) -> torch.Tensor | None:
        return self.b


@TUNERS.register_module()
class ARC(Tuner):
    """W (I + P diag(c) P') and bias + W b: x + P diag(c) P' x + b before attention and before FFN.

    All attentions share one P (C, width), and all FFNs share another. Each layer has its own c and b. Sites
    share P if their weights have the same shape. So each stage of a pyramid has its own projections.
    width: the columns of P, which are the numbers of c.
    dropout: the rate of dropout of diag(c) P' x, before P, in training. The paper's runs use 0.1.
        Only Linear layers take a dropout.
    drawn_at_mlp: the c of `mlp.fc1` start Xavier-uniform, as in the released code. So the start is not the
        identity. False: every c starts at zero.
    at: weights that see one position at a time. A weight without a bias gets no b, and its keys stay.
    Against the released code: output, gradients and dropout with dropout=0.1; the start with
        drawn_at_mlp=True.
    Parameters: C width for each shape, and width + C for each site. ViT-B/16, width 50: 96,432. The published
        0.13M add the mean head of VTAB-1k's 19 tasks. at='attn.qkv' is their ARC_att.
    """

    def __init__(
        self,
        width: Count = 50,
        dropout: Dropout = 0.0,
        drawn_at_mlp: bool = False,
        at: Places = ('attn.qkv', 'mlp.fc1'),
    ):
        super().__init__(at)
        if not 0 <= dropout < 1:
            raise UserError(f'dropout is {dropout}; allowed: 0 up to, not including, 1.')
        if type(width) is not int:
            raise UserError(
                f'width is {width!r}; allowed: an int. All sites share the projections of one width.'
            )
        self.width = width
        self.dropout = dropout
        self.drawn_at_mlp = drawn_at_mlp
        self.identity_at_start = not drawn_at_mlp

    def shared(self, sites: list[Site]) -> None:
        assert self.backbone is not None
        self.mlp = set(self.backbone.sites.roles().get('mlp.fc1', ())) if self.drawn_at_mlp else set()
        projections = nn.ParameterDict()
        for site in sites:
            if not InputLowRank.fits(site):
                raise refuse(self, site, 'a Linear or an ungrouped 1 x 1 convolution')
            if self._key(site) not in projections:
                drawn = torch.empty(site.weight.shape[1], site.at_depth(self.width, 'width'))
                projections[self._key(site)] = nn.Parameter(nn.init.xavier_uniform_(drawn))
        self.share(projections, sites[0].weight.device)

    def tune(self, site: Site) -> None:
        has_shift = site.bias is not None
        is_drawn = site.name in self.mlp
        delta = Recomposed(self.deltas['shared'], self._key(site), has_shift, self.dropout, is_drawn)
        self.reweight(site, delta)

    @staticmethod
    def _key(site: Site) -> str:
        return 'x'.join(map(str, site.weight.shape))
