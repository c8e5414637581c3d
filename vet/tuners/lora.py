"""LoRA: low-rank updates of frozen weights, and its variants.   Hu et al. 2021, arXiv:2106.09685"""

from collections.abc import Iterable
from typing import Annotated, Unpack

from annotated_types import Predicate
from torch import nn

from vet.allowed import Counts, Dropout, Images, OneOf, Places, Positives, Seed
from vet.core.attention import Rows
from vet.core.deltas import LowRank
from vet.core.low_rank import DoRA, PiSSA, VeRA
from vet.core.peft_names import OfLoRA
from vet.core.ranks import check_rank, rank_and_alpha
from vet.core.reweight import Reweight
from vet.core.site import Site
from vet.core.starts import EVA, CorDA, LoRAGA, OLoRA
from vet.core.tuner import Tuner, refuse
from vet.errors import UnknownNameError, UserError
from vet.registry import TUNERS

# name -> the class of the delta, and the power of the rank that divides alpha
VARIANTS: dict[str, tuple[type[LowRank], float]] = {
    'plain': (LowRank, 1.0),
    'rslora': (LowRank, 0.5),
    'dora': (DoRA, 1.0),
    'pissa': (PiSSA, 1.0),
    'vera': (VeRA, 1.0),
    'olora': (OLoRA, 1.0),
    'eva': (EVA, 1.0),
    'corda': (CorDA, 1.0),
    'lora_ga': (LoRAGA, 1.0),
}

# PEFT's arguments of LoRA that vet writes in another way
OF_PEFT = dict(
    modules_to_save="Name further parameters that train in vet.tune(…, train=['head.*']).",
    use_rslora="Give variant='rslora'.",
    use_dora="Give variant='dora'.",
    init_lora_weights="Give variant='pissa', 'olora', 'eva', 'corda' or 'lora_ga', or leave it out.",
    bias='Leave it out, or add a tuner that trains biases: vet.tune(net, vet.LoRA(8), vet.BitFit()).',
    rank_pattern="Give rank={'attn.qkv': 8, …}.",
    alpha_pattern="Give alpha={'attn.qkv': 16, …}.",
    exclude_modules='Name only the modules that LoRA changes: at=[…].',
    layers_to_transform="Give the blocks in at='attn.qkv[-2:]'.",
    layers_pattern="Give the blocks in at='attn.qkv[-2:]'.",
    task_type='Leave it out. The network says what the task is.',
    inference_mode='Leave it out. eval() of the tuned network is enough.',
    fan_in_fan_out='Leave it out. vet reads the layout of a weight from its module.',
)


def is_parts(parts: str) -> bool:
    """letters of "qkv", each once"""
    return bool(parts) and not set(parts) - set('qkv') and len(set(parts)) == len(parts)


@TUNERS.register_module()
class LoRA(Tuner):
    """h = W x + (alpha / rank) B A x   (eq. 3), with A (rank, in) random and B (out, rank) zero at the start.

    rank: the rank of B A. One value, a list by depth (0 skips a block), or a dict from module path patterns
        to values. The first pattern that fits counts.
    alpha: alpha / rank scales the update. One value, a list or a dict, as for rank. If alpha is None, or no
        pattern fits, alpha = rank. Then the update is not scaled, as in ModelScope.
    dropout: drops inputs of the update, in training. Only Linear layers and plain convolutions take dropout.
    parts: the queries, keys and values that get an update, each with a separate A and B. 'qv' is the paper's
        choice. None: one update of the whole weight, so that q, k and v share A, as in ModelScope. A forward
        finds the rows of each part, because networks lay the rows out in blocks or head by head. If the
        forward does not show the rows, `parts` is refused.
    at: 'attn.qkv', 'attn.proj', 'mlp.fc1', 'weight' (every Linear and convolution of the blocks), …
    variant: 'plain', 'rslora' (alpha / sqrt(rank), Kalajdzievski 2023, 2312.03732), 'dora', 'pissa', 'vera'.
        Starts from the weight: 'pissa', 'olora'. Starts from training images, see core/starts.py: 'eva' and
        'corda' (Linear layers that are called), 'lora_ga'.
    seed: the seed of the random matrices of vera.
    images: the number of training images for the starts eva, corda and lora_ga. CorDA's authors take 256.
    Against the released code: 'plain', 'dora', 'vera' and 'pissa' in output and gradients (loralib and
        PEFT). vera's random matrices are other draws. 'pissa', 'olora', 'corda' and 'eva' in PEFT's starts;
        'eva' keeps the given ranks (rho=1) and takes exact components. 'lora_ga' in the authors' start; PEFT
        scales only B, by the singular values too. The gradient is that of the features' contrastive loss.
    Parameters per site: rank (in + out), with in = in_channels / groups x kernel of a convolution; with
        `parts`, per part; dora: + out; vera: rank + out. ViT-B/16 on q and v: 294,912 (rank 8), dora 313,344,
        vera 24,576 (rank 256).
    """

    length_key = ('lora_length', 'rank', 'r')
    elsewhere = OF_PEFT
    candidates = (dict(rank=4), dict(rank=16), dict(rank=4, at='weight'), dict(rank=16, at='weight'))
    learning_rates = (3e-4, 2e-2)

    def __init__(
        self,
        rank: Counts = 10,
        alpha: Positives | None = None,
        dropout: Dropout = 0.0,
        parts: Annotated[str, Predicate(is_parts)] | None = None,
        at: Places = 'attn.qkv',
        variant: Annotated[str, OneOf(tuple(VARIANTS))] = 'plain',
        seed: Seed = 0,
        images: Images = 256,
        **peft: Unpack[OfLoRA],
    ):
        if parts is not None and not is_parts(parts):
            raise UserError(
                f'parts is {parts!r}; allowed: letters of "qkv", each once, or None for the whole weight.'
            )
        if not 0 <= dropout < 1:
            raise UserError(f'dropout is {dropout}; allowed: 0 up to, not including, 1.')
        if variant not in VARIANTS:
            raise UnknownNameError('variant of LoRA', variant, VARIANTS)
        if dropout and not VARIANTS[variant][0].takes_dropout:
            raise UserError(
                f'dropout is {dropout}, but the variant {variant!r} has no dropout; set dropout to 0.'
            )
        super().__init__(at)
        self.rank = rank
        self.alpha = alpha
        self.dropout = dropout
        self.parts = parts
        self.seed = seed
        self.images = images
        self.delta, self.power = VARIANTS[variant]

    def shared(self, sites: list[Site]) -> None:
        if not self.delta.shares:
            check_rank(self, sites)
        else:  # VeRA's rank may be larger than the weights: all sites share its random matrices
            self.share(self.delta.shares(self.seed))

    def tune(self, site: Site) -> None:
        rank, alpha = rank_and_alpha(self, site)
        rows = self._rows(site) if rank else []
        if rows == []:
            return
        scale = alpha / rank**self.power
        delta = self.delta(site.weight.shape, rank, scale, self.dropout, rows)
        if self.dropout and not (site.called and delta.splits(site.module)):
            raise refuse(self, site, 'a Linear or a plain Conv2d that is called (for its dropout)')
        if delta.reads_inputs and not (site.called and type(site.module) is nn.Linear):
            raise refuse(self, site, f'for {type(delta).__name__} a Linear that is called')
        delta.start(site.weight.detach(), self.deltas['shared'] if self.delta.shares else None)
        self.reweight(site, delta)

    def prepare(self, batches: Iterable) -> None:
        """Starts the deltas from batches of images (B, 3, H, W) and labels (B,), if the variant does so."""
        if self.delta.gathers is None:
            return
        edits = [edit for edit in self._edits if isinstance(edit, Reweight)]
        for edit, gathered in zip(edits, self.delta.gathers(self, edits, batches, self.images)):
            weight = edit.output_first(edit.host.get_parameter(edit.weight_name).detach())
            assert isinstance(edit.delta, LowRank)
            edit.delta.begin(weight, gathered)

    def _rows(self, site: Site) -> list[Rows] | None:
        """The rows of each chosen part that the site's weight makes. None: the whole weight."""
        if self.parts is None:
            return None
        if not (known := self.rows_of_parts(site)):
            raise refuse(
                self,
                site,
                f'for parts={self.parts!r} a projection each of whose rows makes a query, a key or a value',
            )
        return [known[part] for part in 'qkv' if part in self.parts and part in known]
