"""Tuners that add nothing. They train some of the backbone's parameters, as copies in their place."""

import re
from typing import Unpack

from vet.allowed import Count, Places
from vet.core.norms import is_norm
from vet.core.peft_names import Targets
from vet.core.scales import Scale
from vet.core.site import Site
from vet.core.tuner import Tuner
from vet.errors import UnknownNameError, UserError
from vet.near_paths import near_paths
from vet.patterns import fits, require_pattern
from vet.registry import TUNERS

UNREAD = 'the network has parameters that its features are not computed from'


@TUNERS.register_module()
class LinearProbe(Tuner):
    """Only the head trains. Parameters: only those of the head."""

    head_only = True
    candidates = ({},)
    learning_rates = (1e-3, 1e-1)

    def __init__(self) -> None:
        super().__init__('backbone')

    def tune(self, site: Site) -> None:
        pass


@TUNERS.register_module()
class Full(Tuner):
    """Every parameter trains, running statistics included. Parameters: the backbone's."""

    no_gradient = UNREAD
    candidates = ({},)
    learning_rates = (1e-5, 1e-3)

    def __init__(self) -> None:
        super().__init__('backbone')

    def tune(self, site: Site) -> None:
        self.thaw(site)


@TUNERS.register_module()
class Partial(Tuner):
    """The last `blocks` blocks train, whole.   VPT's "Partial-k" (2203.12119)

    blocks: how many blocks train.
    norm: whether a norm behind these blocks trains too.
    names: parameters in place of blocks: each entry is the path of a parameter, the path of a module with
        all its parameters, a regular expression for whole paths, or the path of a buffer, which is saved.
    Against the released code: VPT's "partial-k" also trains the norm behind the blocks, which norm=True does.
    indices: in place of blocks, parameters with these places in the backbone's order: (start, stop), as
        in a slice. None is an end.
    """

    no_gradient = UNREAD

    def __init__(
        self,
        blocks: Count = 1,
        norm: bool = False,
        names: Places | None = None,
        indices: tuple[int | None, int | None] | None = None,
    ):
        if blocks < 1:
            raise UserError(f'blocks is {blocks}; it must be at least 1.')
        if names is not None and indices is not None:
            raise UserError(f'names is {names!r} and indices is {indices!r}; give one of them.')
        if indices is not None and (
            len(indices) != 2 or not all(i is None or type(i) is int for i in indices)
        ):
            raise UserError(f'indices is {indices!r}; allowed: (start, stop), each an int or None.')
        whole = names is not None or indices is not None
        super().__init__('backbone' if whole else [f'block[-{blocks}:]'] + ['norm'] * norm)
        self.blocks = blocks
        self.indices = indices
        self.names = [names] if isinstance(names, str) else names

    def tune(self, site: Site) -> None:
        if self.names is not None or self.indices is not None:
            buffers = [name for name, _ in site.module.named_buffers() if name in (self.names or ())]
            for name in buffers:
                self.thaw_buffer(site, name)
            parameters = [name for name, _ in site.module.named_parameters()]
            self.thaw(site, '|'.join(map(re.escape, self._chosen(parameters, buffers))))
            return
        if self.blocks > site.num_blocks:
            raise UserError(f'blocks is {self.blocks}, but the backbone has {site.num_blocks} blocks.')
        if site.depth >= site.num_blocks - self.blocks:
            self.thaw(site)

    def _chosen(self, given: list[str], buffers: list[str]) -> list[str]:
        if self.names is None:
            assert self.indices is not None
            chosen = given[slice(*self.indices)]
            if not chosen:
                raise UserError(f'indices is {self.indices!r}, but the backbone has {len(given)} parameters.')
            return chosen
        named: set[str] = set()
        for pattern in self.names:
            if pattern in buffers:
                continue
            path = pattern.rstrip('.')
            found = [name for name in given if name == path or name.startswith(f'{path}.')]
            if not found:
                require_pattern(pattern, 'an entry of names, which is no path of a parameter or of a module,')
                found = [name for name in given if fits(pattern, name)]
            if not found:
                near = near_paths(path, [*given, *buffers])
                raise UnknownNameError('path or pattern of parameters in names', pattern, given, near=near)
            named.update(found)
        return [name for name in given if name in named]


@TUNERS.register_module()
class BitFit(Tuner):
    """Every bias of the backbone trains.   Ben Zaken et al. 2021, arXiv:2106.10199

    Against the released code: the same parameters, all whose name says bias. The code is for BERT.
    On a ViT, output and gradients equal those of the study ViT_PEFT_Vision (difference 0).
    ViT-B/16: 102,912 parameters, that is 12 blocks of 11 C and the biases of the patch embedding and the last
    norm.
    """

    no_gradient = UNREAD
    candidates = ({},)
    learning_rates = (5e-4, 3e-2)

    def __init__(self, at: Places = 'backbone'):
        super().__init__(at)

    def tune(self, site: Site) -> None:
        self.thaw(site, r'(.*[._])?bias')


@TUNERS.register_module()
class NormTune(Tuner):
    """Every norm's scale and shift train, and the running statistics of batch norms.

    Basu et al. 2023, arXiv:2304.01917

    Against the released code: output and gradients on a ViT, in the study ViT_PEFT_Vision (difference 0). The
    authors' own code could not be read.
    ViT-B/16: 38,400 parameters, that is 25 norms of 2 C.
    """

    no_gradient = UNREAD

    def __init__(self, at: Places = 'norm', **peft: Unpack[Targets]):
        super().__init__(at)

    def tune(self, site: Site) -> None:
        self.thaw(site)


@TUNERS.register_module()
class DiffFit(Tuner):
    """Biases and norms train, and a scale gamma of each output channel of attention and FFN.

    x + gamma1 attn(x), x + gamma2 ffn(x).   Xie et al. 2023, arXiv:2304.06648

    outputs: the weights whose rows gamma scales: the last weight of attention and of FFN.
    gamma starts at 1, and merges into these weights.
    Against the released code: output and gradients on a ViT, in the study ViT_PEFT_Vision (difference 0). The
        authors' own code could not be read. DiffFit-pytorch trains all parameters whose name says bias, norm,
        gamma or y_embed. The parameters are the same, except y_embed, which a classifier lacks.
    ViT-B/16: 140,544 parameters, that is BitFit's 102,912, 25 C of the norms' scales and 12 blocks of 2 C
    gammas.
    """

    no_gradient = UNREAD
    may_miss = ('norm',)

    def __init__(self, outputs: Places = ('attn.proj', 'mlp.fc2')):
        super().__init__(['backbone', 'norm', *([outputs] if isinstance(outputs, str) else outputs)])

    def tune(self, site: Site) -> None:
        if not site.name:
            self.thaw(site, r'(.*[._])?bias')
        elif is_norm(site.module):
            self.thaw(site)
        else:
            self.reweight(site, Scale(len(site.weight)))
