"""U-Tuning: a tuner in parallel with any frozen operation.   Jiang et al. 2023, arXiv:2303.00690"""

from typing import Literal

from vet.allowed import Counts, Dropout, Places, Positive
from vet.core.deltas import Bottleneck, follows
from vet.core.site import Site
from vet.core.tuner import Tuner, refuse
from vet.errors import UserError
from vet.registry import TUNERS


@TUNERS.register_module()
class UTuning(Tuner):
    """x' = OP(x) + s U(x), U(x) = W2 GELU(W1 x + b1) + b2, with OP an attention, an FFN or a whole block.

    at: the operations; each gets a tuner. A network may lack attentions or FFNs. If an operation makes a
        smaller map, U reads every s-th position of x, see `Adapter`.
    width: the channels between W1 and W2. One value, a list by depth (0 skips a block), or a dict of path
        patterns. W2 starts at zero, so the start is the identity.
    scale: a number, 'learned' (one per operation) or 'channel'.
    dropout: the rate of dropout before W2, in training.
    The paper's U is any small network. Here U is the paper's adapter. The paper's parallel prompts and
    prefixes are `VPT` and `Prefix`, which compute them within the attention.
    Against the released code: U in output and gradients (largest difference 4e-15 of 16), as the same authors
        released it for Res-Tuning (ms-swift). There W2 starts Xavier-uniform. The code of U-Tuning itself
        could not be read; the sum is the paper's.
    Parameters per operation: width (C + C') + width + C', with C' channels out, and those of a learned scale;
        ViT-B/16, width 8, all three: 470,304.
    """

    may_miss = ('attn', 'mlp')

    def __init__(
        self,
        width: Counts = 8,
        scale: Positive | Literal['learned', 'channel'] = 1.0,
        dropout: Dropout = 0.0,
        at: Places = ('attn', 'mlp', 'block'),
    ):
        super().__init__(at if isinstance(at, str) else list(at))
        if isinstance(scale, str) and scale not in Bottleneck.SCALES:
            raise UserError(
                f'scale is {scale!r}; allowed: a number, "learned" (one at each site) or "channel" (one per '
                'channel).'
            )
        if not 0 <= dropout < 1:
            raise UserError(f'dropout is {dropout}; allowed: 0 up to, not including, 1.')
        self.width = width
        self.scale = scale
        self.dropout = dropout

    def tune(self, site: Site) -> None:
        width = site.at_depth(self.width, 'width')
        if not width:
            return
        if (
            not site.in_shape
            or site.in_axis != site.axis
            or not follows(site.in_shape, site.out_shape, site.axis)
        ):
            raise refuse(
                self,
                site,
                'an operation whose output has the positions of its input, or is a smaller map of them (this '
                f'gives {tuple(site.out_shape)})',
            )
        self.after(
            site,
            Bottleneck(
                site.in_shape[site.axis],
                width,
                site.axis,
                out_channels=site.out_shape[site.axis],
                parallel=True,
                scale=self.scale,
                dropout=self.dropout,
            ),
        )
