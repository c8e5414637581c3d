"""LoRA: low-rank updates of frozen weights.   Hu et al. 2021, arXiv:2106.09685"""

from vet.core.deltas import LowRank
from vet.core.site import Site
from vet.core.tuner import Tuner, refuse
from vet.errors import UserError
from vet.registry import TUNERS


@TUNERS.register_module()
class LoRA(Tuner):
    """h = W x + (alpha / rank) B A x   (eq. 3), with A (rank, in) random and B (out, rank) zero at the start.

    rank: one value, a list by depth (0 skips a block), or a dict from module path patterns to values.
    alpha: the update is scaled by alpha / rank; None means alpha = rank, that is no scaling, as in ModelScope.
    dropout: of the update's input, in training. Linear layers and plain convolutions.
    parts: which slices of a fused qkv get an update, each with its own A and B: 'qv' is the paper's choice. None: one
        update of the whole weight, so that q, k and v share A, as in ModelScope.
    at: 'attn.qkv', 'attn.proj', 'mlp.fc1', 'weight' (every Linear and convolution of the blocks), …
    Parameters per site: rank (in + out), with in = in_channels / groups x kernel of a convolution; per part with `parts`.
    """

    length_key = ('lora_length', 'rank')

    def __init__(self, rank: int | list[int] | dict[str, int] = 10, alpha: float | None = None, dropout: float = 0.0,
                 parts: str | None = None, at: str | list[str] = 'attn.qkv'):
        super().__init__(at)
        if parts is not None and (not parts or set(parts) - set('qkv') or len(set(parts)) < len(parts)):
            raise UserError(f'parts is {parts!r}; allowed: letters of "qkv", each once, or None for the whole weight.')
        if not 0 <= dropout < 1:
            raise UserError(f'dropout is {dropout}; allowed: 0 up to, not including, 1.')
        self.rank, self.alpha, self.dropout, self.parts = rank, alpha, dropout, parts

    def tune(self, site: Site) -> None:
        rank = site.at_depth(self.rank, 'rank')
        if not rank:
            return
        shape = site.weight.shape
        if len(shape) < 2:
            raise refuse(self, site, 'a weight matrix')
        if self.dropout and not (site.called and LowRank.splits(site.module)):
            raise refuse(self, site, 'a Linear or a plain Conv2d that is called (for its dropout)')
        scale = 1.0 if self.alpha is None else self.alpha / rank
        self.reweight(site, LowRank(shape, rank, scale, self.dropout, self._rows(site)))

    def _rows(self, site: Site) -> list[slice] | None:
        if self.parts is None:
            return None
        out, inside = site.weight.shape[:2]
        if out != 3 * inside:
            raise refuse(self, site, 'a fused (3 x C, C) projection for its parts')
        return [slice(i * inside, (i + 1) * inside) for i in sorted('qkv'.index(part) for part in self.parts)]
