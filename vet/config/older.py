"""The settings of an older vet, by the names of today.

Configs, checkpoints and files of the cache folder may hold the older names.
"""

from collections.abc import Mapping

SETTINGS = dict(lean='shortcuts')  # of `train`
ROUTES = dict(merged='fused')  # values of train.routes


def train_of_today(train: Mapping[str, object]) -> dict[str, object]:
    """The section `train` with the names of today. A setting that has both names keeps both."""
    renamed = dict(train)
    for older, name in SETTINGS.items():
        if older in renamed and name not in renamed:
            renamed[name] = renamed.pop(older)
    if isinstance(route := renamed.get('routes'), str):
        renamed['routes'] = route_of_today(route)
    return renamed


def route_of_today(route: str) -> str:
    """The name of a route of core/routes.py."""
    return ROUTES.get(route, route)


def oldest_name_of_route(route: str) -> str:
    """The first name that a route of core/routes.py had."""
    return next((older for older, name in ROUTES.items() if name == route), route)
