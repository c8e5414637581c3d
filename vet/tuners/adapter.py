"""Adapters: small bottlenecks beside or behind the frozen modules.

The papers' methods are presets of `Adapter`. The papers adapt transformers. A network without an FFN has the
bottlenecks at its blocks: behind each block, as the series adapters of Rebuffi et al. 2017
(arXiv:1705.08045), or beside it, as their parallel adapters (Rebuffi et al. 2018, arXiv:1803.10082) and the
residual parallel form of Conv-Adapter (Chen et al. 2022, arXiv:2208.07463).
"""

from typing import Annotated, Any, Literal

from vet.allowed import Counts, Dropout, OneOf, Places, Positive
from vet.core.deltas import Bottleneck, Keep, Kept, follows
from vet.core.site import Site
from vet.core.tuner import Tuner, refuse
from vet.errors import UnknownNameError, UserError
from vet.registry import TUNERS

FFN_OR_BLOCK = 'mlp or block'
POSITIONS = ('after', 'parallel', 'before')
Activation = Annotated[str, OneOf(tuple(Bottleneck.ACTIVATIONS))]
Init = Annotated[str, OneOf(tuple(Bottleneck.INITS))]


@TUNERS.register_module()
class Adapter(Tuner):
    """u(h) = scale (W2 act(W1 h + b1) + b2) is added at a module m, for each module that `at` names.

    position: 'after': m(x) + u(m(x)); 'parallel': m(x) + u(x); 'before': m(x + u(x)). If a module makes a
        smaller map, u reads every s-th position of x, as the 1 x 1 convolutions of stride s of Rebuffi et al.
    width: the channels between the two layers. One value, a list by depth (0 skips a block), or a dict from
        module path patterns to values.
    activation: 'gelu', 'relu', 'silu', 'tanh' or 'none'.
    scale: a number, 'learned' (one per site) or 'channel' (one per channel).
    dropout: the rate of dropout before W2, in training.
    drop_path: the share of images whose u is dropped, in training.
    init: 'zero' (W2 = 0, the identity), 'houlsby', 'bert' or 'xavier'.
    The default place is each FFN. A network without an FFN has the adapters at its blocks.
    The defaults are ModelScope's adapter, x + h + W2 GELU(W1 h), with h the FFN's output. ModelScope starts
    with init='xavier', vet starts as the identity. If a network has layer scales or stochastic depth, h is
    the value before these.
    Against the released code: ModelScope's adapter in output and gradients, and with init='xavier' in its
    start. Biases are an exception: ModelScope draws them with std 1e-6.
    Parameters per site: width (C + C') + width + C', with C' channels out; C' more for scale='channel', 1 for
        'learned'.
    """

    length_key: tuple[str, str] | None = ('adapter_length', 'width')

    def __init__(
        self,
        width: Counts = 8,
        position: Annotated[str, OneOf(POSITIONS)] = 'after',
        activation: Activation = 'gelu',
        scale: Positive | Literal['learned', 'channel'] = 1.0,
        dropout: Dropout = 0.0,
        drop_path: Dropout = 0.0,
        init: Init = 'zero',
        at: Places = FFN_OR_BLOCK,
    ):
        super().__init__(at if isinstance(at, str) else list(at))
        for argument, value, allowed in (
            ('position', position, POSITIONS),
            ('activation', activation, Bottleneck.ACTIVATIONS),
            ('init', init, Bottleneck.INITS),
        ):
            if value not in allowed:
                raise UnknownNameError(f'{argument} of {type(self).__name__}', value, allowed)
        if isinstance(scale, str) and scale not in Bottleneck.SCALES:
            raise UserError(
                f'scale is {scale!r}; allowed: a number, "learned" (one at each site) or "channel" (one per '
                'channel).'
            )
        for what, share in (('dropout', dropout), ('drop_path', drop_path)):
            if not 0 <= share < 1:
                raise UserError(f'{what} is {share}; allowed: 0 up to, not including, 1.')
        self.width = width
        self.position = position
        self.options: dict[str, Any] = dict(
            activation=activation, scale=scale, dropout=dropout, drop_path=drop_path, init=init
        )
        self.identity_at_start = init == 'zero'

    def tune(self, site: Site) -> None:
        width = site.at_depth(self.width, 'width')
        if width:
            (self.before if self.position == 'before' else self.after)(site, self.bottleneck(site, width))

    def bottleneck(self, site: Site, width: int, kept: Kept | None = None) -> Bottleneck:
        """The adapter of a site. kept: where the adapter finds its input, if not at the site."""
        shape, axis = (
            (site.out_shape, site.axis) if self.position == 'after' else (site.in_shape, site.in_axis)
        )
        out_shape, out_axis = (
            (site.in_shape, site.in_axis) if self.position == 'before' else (site.out_shape, site.axis)
        )
        if not shape or axis != out_axis or not follows(shape, out_shape, axis):
            raise refuse(
                self,
                site,
                'a module whose output has the positions of its input, or is a smaller map of them (this '
                f'module gives {tuple(out_shape)})',
            )
        return Bottleneck(
            shape[axis],
            width,
            axis,
            out_channels=out_shape[axis],
            parallel=self.position == 'parallel',
            kept=kept,
            **self.options,
        )


@TUNERS.register_module()
class Houlsby(Adapter):
    """m(x) + W2 GELU(W1 m(x)) behind the attention and the FFN.

    Houlsby et al. 2019, arXiv:1902.00751, sec. 2.1

    If a network has no FFN, the adapters stand behind its attentions and behind its blocks, see `Adapter`.
    Weights start normal of std 0.01, cut at two std. So the start is near the identity, but is not the
    identity.
    Against the released code: adapter_plus's "houlsby" in output, gradients and start, without its drop path
    of 0.1 (drop_path=0.1). The paper's own code is for BERT, and starts with std 0.001.
    Parameters: 2 (2 width C + width + C) per block; ViT-B/16, width 8: 313,536.
    """

    length_key = None
    may_miss = ('attn',)

    def __init__(
        self,
        width: Counts = 8,
        activation: Activation = 'gelu',
        dropout: Dropout = 0.0,
        drop_path: Dropout = 0.0,
        init: Init = 'houlsby',
        at: Places = ('attn', FFN_OR_BLOCK),
    ):
        super().__init__(width, 'after', activation, 1.0, dropout, drop_path, init, at)


@TUNERS.register_module()
class Pfeiffer(Adapter):
    """block(x) + W2 ReLU(W1 block(x) + b1) + b2: one adapter behind each block.

    Pfeiffer et al. 2021, arXiv:2005.00247

    The block's output is x' + m(x'), with m the FFN. So the adapter reads the sum of FFN and residual, and is
    added to the FFN. Weights start as in BERT, normal of std 0.02.
    Against the released code: AdapterHub's SeqBnConfig on a ViT in output, gradients and start.
    adapter_plus's "pfeiffer" has GELU, Houlsby's start, and a layer norm before W1, which vet leaves out.
    Up to format 2 of model folders, vet's Pfeiffer was what is now `Intermediate`.
    Parameters: 2 width C + width + C per block; ViT-B/16, width 8: 156,768.
    """

    length_key = None

    def __init__(
        self,
        width: Counts = 8,
        activation: Activation = 'relu',
        dropout: Dropout = 0.0,
        drop_path: Dropout = 0.0,
        init: Init = 'bert',
        at: Places = 'block',
    ):
        super().__init__(width, 'after', activation, 1.0, dropout, drop_path, init, at)


@TUNERS.register_module()
class Intermediate(Adapter):
    """m(x) + W2 GELU(W1 m(x)) behind the FFN alone, before the residual sum.

    The "Intermediate-Adapter" of Steitz and Roth 2024, arXiv:2406.06820, sec. 3.2. Weights start as in BERT,
    normal of std 0.02. If a network has no FFN, the adapters stand behind its blocks, see `Adapter`.
    Against the released code: adapter_plus's "intermediate" in output and gradients. adapter_plus starts with
    init='houlsby', and drops paths with drop_path=0.1.
    Parameters: 2 width C + width + C per block; ViT-B/16, width 8: 156,768.
    """

    length_key = None

    def __init__(
        self,
        width: Counts = 8,
        activation: Activation = 'gelu',
        dropout: Dropout = 0.0,
        drop_path: Dropout = 0.0,
        init: Init = 'bert',
        at: Places = FFN_OR_BLOCK,
    ):
        super().__init__(width, 'after', activation, 1.0, dropout, drop_path, init, at)


@TUNERS.register_module()
class AdaptFormer(Adapter):
    """FFN(LN(x')) + s (W2 ReLU(W1 x + b1) + b2), with x = x' as in the released code, or x = LN(x').

    Chen et al. 2022, arXiv:2205.13535, sec. 3.2

    normed: False: x is the tensor that enters the norm before the FFN. True: x is the normed tensor, as the
        paper's equation 3 says. If no norm stands right before the FFN, x is the FFN's input.
    W2 starts at zero, so the start is the identity. The paper's vision runs use width 64, scale 0.1, dropout
    0.1. Stochastic depth of the backbone (drop_path_rate) drops the FFN, and never the branch.
    If a network has no FFN, the branch runs beside each block: block(x) + s (W2 ReLU(W1 x + b1) + b2), with x
    the block's input, without a norm. If a block makes a smaller map, the branch reads every s-th position of
    x, see `Adapter`. If a block makes other channels, W2 makes them too.
    Against the released code: output, gradients, start, dropout and stochastic depth with dropout=0.1, which
    the code fixes.
    Parameters: width (C + C') + width + C' per FFN or block, with C' channels out; ViT-B/16, width 8:
        156,768.
    """

    length_key = None
    candidates = (dict(width=8), dict(width=64))
    learning_rates = (5e-4, 2e-2)

    def __init__(
        self,
        width: Counts = 8,
        scale: Positive | Literal['learned', 'channel'] = 0.1,
        dropout: Dropout = 0.0,
        normed: bool = False,
        at: Places = FFN_OR_BLOCK,
    ):
        super().__init__(width, 'parallel', 'relu', scale, dropout, at=at)
        self.normed = normed

    def tune(self, site: Site) -> None:
        assert self.backbone is not None
        width = site.at_depth(self.width, 'width')
        if not width:
            return
        norm = None if self.normed or not site.called else self.backbone.sites.norm_before(site.name)
        behind = self.backbone.sites.drop_path_behind(site.name) if site.called else None
        if norm is None and behind is None:
            self.after(site, self.bottleneck(site, width))
            return
        kept: Kept = {}
        self.after(behind or site, self.bottleneck(site, width, kept), of=site)
        self.before(norm or site, Keep(kept))


@TUNERS.register_module()
class AdapterPlus(Adapter):
    """block(x) + s * (W2 GELU(W1 block(x) + b1) + b2), with s learned per channel.

    Steitz and Roth 2024, arXiv:2406.06820

    "Adapter+" stands behind the block, scales each channel, and has no layer norm. The start is Houlsby's:
    near the identity, but not the identity.
    drop_path: the share of images whose adapter is dropped in training. The paper's runs use 0.1, beside
        0.1 of the backbone (drop_path_rate=0.1).
    Against the released code: output, gradients, start, dropout and drop path.
    Parameters: 2 width C + width + 2 C per block; ViT-B/16, width 8: 165,984.
    """

    length_key = None

    def __init__(
        self,
        width: Counts = 8,
        dropout: Dropout = 0.0,
        drop_path: Dropout = 0.0,
        init: Init = 'houlsby',
        at: Places = 'block',
    ):
        super().__init__(width, 'after', 'gelu', 'channel', dropout, drop_path, init, at)
