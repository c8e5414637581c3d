"""Tuners that add nothing and train some of the backbone's own parameters, as copies in their place."""

from vet.core.site import Site
from vet.core.tuner import Tuner
from vet.errors import UserError
from vet.registry import TUNERS


@TUNERS.register_module()
class LinearProbe(Tuner):
    """Only the head trains. Parameters: none but the head's."""

    head_only = True

    def __init__(self) -> None:
        super().__init__('backbone')

    def tune(self, site: Site) -> None:
        pass


@TUNERS.register_module()
class Full(Tuner):
    """Every parameter trains, running statistics included. Parameters: the backbone's."""

    def __init__(self) -> None:
        super().__init__('backbone')

    def tune(self, site: Site) -> None:
        self.thaw(site)


@TUNERS.register_module()
class Partial(Tuner):
    """The last `blocks` blocks train, whole; with `norm`, so does a norm that follows them.   VPT's "Partial-k" (2203.12119)"""

    def __init__(self, blocks: int = 1, norm: bool = False):
        if blocks < 1:
            raise UserError(f'blocks is {blocks}; it must be at least 1.')
        super().__init__([f'block[-{blocks}:]'] + ['norm'] * norm)
        self.blocks = blocks

    def tune(self, site: Site) -> None:
        if self.blocks > site.num_blocks:
            raise UserError(f'blocks is {self.blocks}, but the backbone has {site.num_blocks}.')
        if site.depth >= site.num_blocks - self.blocks:
            self.thaw(site)


@TUNERS.register_module()
class BitFit(Tuner):
    """Every bias of the backbone trains.   Ben Zaken et al. 2021, arXiv:2106.10199

    ViT-B/16: 102,912 parameters, that is 12 blocks of 11 C and the biases of the patch embedding and the last norm.
    """

    def __init__(self, at: str | list[str] = 'backbone'):
        super().__init__(at)

    def tune(self, site: Site) -> None:
        self.thaw(site, r'(.*[._])?bias')
