"""A plugin that lacks a method of its base class says which method, in place of a silent None."""

import pytest
import torch

from vet.core.delta import Delta
from vet.core.head import FittedHead, StartedHead
from vet.core.maps import MapHead
from vet.core.objective import Objective
from vet.core.tuner import Tuner
from vet.hub.formats.format import Format, GraphFormat
from vet.hub.formats.weights import _Library
from vet.samplers.base import Sampler


def objective():
    return Objective(['cat', 'dog'])


@pytest.mark.parametrize(
    'made, method, arguments',
    [
        (Delta, 'split', 3),
        (Delta, 'turned', 2),
        (Delta, 'factors', 0),
        (FittedHead, 'fit', 2),
        (StartedHead, 'starts', 0),
        (MapHead, 'forward', 2),
        (objective, 'check', 2),
        (objective, 'coded', 1),
        (objective, 'watch', 2),
        (objective, 'calibrate', 2),
        (objective, 'answers', 3),
        (objective, 'examples', 0),
        (lambda: Tuner('block'), 'tune', 1),
        (lambda: Sampler(3), 'draw', 2),
        (Format, 'write', 3),
        (Format, 'read', 2),
        (GraphFormat, 'write_graph', 4),
        (_Library, 'make', 2),
    ],
    ids=lambda value: getattr(value, '__name__', None) or str(value),
)
def test_the_error_names_the_class_and_the_method(made, method, arguments):
    plugin = made()
    with pytest.raises(NotImplementedError, match=rf'{type(plugin).__name__} .*must write {method}\('):
        getattr(plugin, method)(*[torch.zeros(1)] * arguments)
