"""Ranks: the checks of a tuner's rank and of a site's weight, and the rank and alpha for one site.

Tuners that compute with weight matrices import this file.
"""

from typing import Any

from vet.core.site import Site
from vet.core.tuner import Tuner, refuse
from vet.errors import UserError


def check_rank(tuner: Any, sites: list[Site]) -> None:
    """UserError for a rank above that of every weight at `sites`: the update would have more numbers than
    the weights.
    """
    weights = [site.weight for site in sites if site.has_weight]
    ranks = [min(len(weight), weight[0].numel()) for weight in weights if len(weight.shape) > 1]
    wanted = max(site.at_depth(tuner.rank, 'rank') for site in sites)
    if ranks and wanted > max(ranks):
        raise UserError(
            f'rank is {wanted}, but the largest of the {len(ranks)} weights at {tuner.at!r} has '
            f'{max(ranks)}; give a smaller rank.'
        )


def require_matrix(tuner: Tuner, site: Site) -> None:
    """NoSiteError if the weight of the site is no matrix (out, in, …)."""
    if len(site.weight.shape) < 2:
        raise refuse(tuner, site, 'a weight matrix')


def rank_and_alpha(tuner: Any, site: Site) -> tuple[int, float]:
    """The rank and alpha of the tuner for a site. The site must have a weight matrix.

    (0, 0) if the rank skips the site. If no alpha is given, alpha is the rank.
    """
    rank = site.at_depth(tuner.rank, 'rank')
    if not rank:
        return 0, 0.0
    require_matrix(tuner, site)
    alpha = site.number(tuner.alpha, 'alpha')
    return rank, rank if alpha is None else alpha
