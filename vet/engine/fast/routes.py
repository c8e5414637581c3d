"""Routes of low-rank updates, chosen by measuring: after the first step, each kind of layer is timed once.

core/routes.py names the routes. The choices are kept in the cache folder, for each machine, and in the
checkpoints of the run. So a run that continues takes the same routes, and so does the next run of the
machine. Entered by door.py.
"""

import hashlib
import json
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from vet.cache_folder import cache_path, cannot_keep, locked
from vet.config import Train
from vet.config.older import oldest_name_of_route, route_of_today
from vet.core.delta import Delta, declared
from vet.core.multitask import Classifier
from vet.core.products import can_fuse, rule
from vet.core.reweight import all_split, reweights_of
from vet.core.routes import CONVOLVED, FUSED, ROUTES, choose_routes
from vet.environment import host
from vet.errors import DataError
from vet.files import JsonObject, read_json
from vet.log import warn

ROUNDS = 15  # of a kind, at most
SECONDS = 0.3  # of a kind; when they have passed, no further round begins
NOISE = 0.97  # a route is taken in place of the rule's only if its time is below this share
clock = time.perf_counter


class Routes:
    """The routes of the layers of `model` in one training.

    train.routes is 'measure', 'rule', or a route for all layers. train.deterministic turns 'measure' into
    'rule'.
    taken: {module: route}. None: the first step will show what is to be measured.
    """

    def __init__(
        self,
        model: Classifier,
        train: Train,
        accelerator: Accelerator,
        taken: Mapping[str, str] | None = None,
    ):
        self._accelerator = accelerator
        self._trained = model.trainable
        self._layers = {} if train.compile else _layers(model)
        self._inputs: dict[str, torch.Tensor] = {}  # of the first step, without data
        self.taken: Mapping[str, str] | None = (
            taken if taken is None else {name: route_of_today(taken[name]) for name in taken}
        )
        if train.routes in ROUTES:
            self.taken = dict.fromkeys(self._layers, train.routes)
        elif train.routes == 'rule' or train.deterministic or not self._layers:
            self.taken = {}

    @contextmanager
    def in_training(self) -> Iterator[None]:
        """Within this context, layers take their routes. Afterwards, they take the rule."""
        self.take(self.taken)
        try:
            yield
        finally:
            choose_routes(self._layers.items(), {})

    def take(self, taken: Mapping[str, str] | None) -> None:
        """From now on, layers take these routes."""
        self.taken = taken
        choose_routes(self._layers.items(), taken or {})

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Run a step within. If routes are still to be measured, the inputs of the layers are noted."""
        with ExitStack() as hooks:
            for name, layer in self._layers.items() if self.taken is None else ():
                handle = layer.register_forward_pre_hook(partial(self._note, name))
                hooks.callback(handle.remove)
            yield

    def _note(self, name: str, layer: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        if len(args) == 1 and torch.is_grad_enabled():
            self._inputs.setdefault(name, torch.empty_like(args[0], device='meta'))

    def measured(self) -> dict[str, str]:
        """The fastest route of each layer whose input was noted, from the cache folder or measured now."""
        device = self._accelerator.device
        with torch.random.fork_rng([device] if device.type == 'cuda' else []):
            return self._measured()

    def _measured(self) -> dict[str, str]:
        kinds = {name: self._kind(name, x) for name, x in self._inputs.items()}
        # with the oldest names, so that the file of an older vet is found
        routes = tuple(map(oldest_name_of_route, ROUTES))
        machine = host(self._accelerator.device) | dict(routes=routes)
        path = cache_path('routes') / f'{hashlib.sha256(repr(machine).encode()).hexdigest()[:16]}.json'
        known = _read(path)
        found: JsonObject = {}
        for name, kind in kinds.items():
            if kind not in known | found:
                found[kind] = self._compared(self._layers[name], self._inputs[name])
        if found:
            known = _kept(path, machine, found)
        self._inputs.clear()
        return {name: known[kind]['route'] for name, kind in kinds.items()}

    def told(self) -> str:
        """The routes in words. '' if the model has no low-rank updates."""
        counts = Counter((self.taken or {}).values())
        return ', '.join(f'{route} at {counts[route]}' for route in ROUTES if counts[route])

    def _kind(self, name: str, x: torch.Tensor) -> str:
        """All that the time of a layer depends on, beside the machine."""
        layer = self._layers[name]
        with self._accelerator.autocast():
            device = self._accelerator.device.type
            autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        ranks = [f'{type(delta).__name__} of {_rank(delta)}' for delta in _deltas(layer)]
        return (
            f'{type(layer).__name__}({layer.extra_repr()}), {", ".join(ranks)}, x {tuple(x.shape)} '
            f'of {x.dtype} with strides {x.stride()}, autocast to {autocast}'
        )

    def _compared(self, layer: nn.Module, like: torch.Tensor) -> JsonObject:
        """The route of the layer for such inputs, and the milliseconds of each route."""
        device = self._accelerator.device
        trained = list(self._trained().values())
        with ExitStack() as stack:
            for parameter in trained:
                if not parameter.requires_grad:  # a later stage trains the parameter
                    stack.callback(parameter.requires_grad_, False)
                    parameter.requires_grad_(True)
            stack.callback(choose_routes, [('', layer)], {})
            x = torch.randn_like(like, device=device).requires_grad_()
            with self._accelerator.autocast():
                fuses = can_fuse(layer, _deltas(layer), x)
            routes = [route for route in ROUTES if _is_possible(route, layer, fuses)]
            routes.sort(key=lambda route: route != rule(layer, x))  # the rule's is the first
            seconds: dict[str, list[float]] = {route: [] for route in routes}
            began = clock()
            for number in range(ROUNDS + 1):
                if number > 3 and clock() - began > SECONDS:
                    break
                for route, times in seconds.items():
                    choose_routes([('', layer)], {'': route})
                    spent = self._timed(layer, x, trained)
                    if number:  # the first round finds cold memory
                        times.append(spent)
        first = next(iter(seconds))  # the rule's
        shares = {}
        for route, times in seconds.items():
            shares[route] = statistics.median(one / (other or 1) for one, other in zip(times, seconds[first]))
        best = min(shares, key=shares.__getitem__)
        middle = {route: round(1e3 * statistics.median(times), 3) for route, times in seconds.items()}
        return dict(route=best if shares[best] < NOISE * shares[first] else first, milliseconds=middle)

    def _timed(self, layer: nn.Module, x: torch.Tensor, trained: list[nn.Parameter]) -> float:
        """The seconds of one forward and one backward pass."""
        self._wait()
        began = clock()
        with self._accelerator.autocast():
            y = layer.forward(x)
        # not y.backward(), which would call hooks of DDP
        torch.autograd.grad(y, [x, *trained], torch.ones_like(y), allow_unused=True)
        self._wait()
        return clock() - began

    def _wait(self) -> None:
        if self._accelerator.device.type != 'cpu':
            torch.accelerator.synchronize(self._accelerator.device)


def _layers(model: Classifier) -> dict[str, nn.Module]:
    """The layers of the model that have several routes, by their paths."""
    found = {}
    for name, module in model.named_modules():
        if type(module) in (nn.Linear, nn.Conv2d) and reweights_of(module) and all_split(module):
            if any(delta.has_routes for delta in _deltas(module)):
                found[name] = module
    return found


def _is_possible(route: str, layer: nn.Module, fuses: bool) -> bool:
    """Whether a route differs from the other routes at this layer."""
    if route == FUSED:
        return fuses
    return route != CONVOLVED or isinstance(layer, nn.Conv2d)


def _deltas(layer: nn.Module) -> list[Delta]:
    return [declared(edit.delta) for edit in reweights_of(layer)]


def _rank(delta: Delta) -> int:
    return len(delta.factors()[0]) if delta.has_routes else 0


def _read(path: Path) -> JsonObject:
    """{kind: its measurement} of a file of the cache folder. Entries that are damaged are left out."""
    with suppress(DataError, KeyError, TypeError, AttributeError):
        kinds = read_json(path)['kinds'].items()
        routes = {kind: measured | dict(route=route_of_today(measured['route'])) for kind, measured in kinds}
        return {kind: measured for kind, measured in routes.items() if measured['route'] in ROUTES}
    return {}


def _kept(path: Path, machine: Mapping[str, object], found: JsonObject) -> JsonObject:
    """Writes measurements into the file of this machine. Those of another process that was faster count."""
    try:
        with locked(path) as temporary:
            known = found | _read(path)
            temporary.write_text(json.dumps(dict(machine=machine, kinds=known), indent=1))
            temporary.replace(path)
    except OSError as error:
        warn(
            f'warning: {cannot_keep(path, error)}. The routes of this run are measured again in the next run.'
        )
        return found | _read(path)
    return known
