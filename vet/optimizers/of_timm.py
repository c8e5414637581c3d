"""timm's optimizers by timm's names, such as 'lion' and 'adan'. Their names are in lower case.

Optimizers of torch have torch's names ('AdamW', not 'adamw').
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from timm.optim import get_optimizer_info, list_optimizers

from vet.allowed import Dropout
from vet.optimizers.ranges import RANGES, Numbers
from vet.registry import OPTIMIZERS, hints_of

# Kron draws from a random generator that no checkpoint holds. Adahessian needs the graph of the gradient.
LEFT_OUT = ('Kron', 'Adahessian')


def is_timms(kind: object) -> bool:
    """Whether the class is timm's, and vet can continue its runs exactly."""
    return inspect.isclass(kind) and kind.__module__.startswith('timm.') and kind.__name__ not in LEFT_OUT


def with_defaults(name: str) -> Callable[..., torch.optim.Optimizer]:
    """timm's optimizer `name`, with the defaults of timm.optim.create_optimizer_v2."""
    info = get_optimizer_info(name)
    kind: Any = info.opt_class
    given = (dict(momentum=0.9) if info.has_momentum else {}) | (info.defaults or {})
    known = inspect.signature(kind)
    hints = hints_of(kind.__init__)

    def make(params: object, **options: object) -> torch.optim.Optimizer:
        return kind(params, **{**given, **options})

    parameters = [
        parameter.replace(default=given.get(parameter.name, parameter.default))
        for parameter in known.parameters.values()
    ]
    # the docstring is timm's
    make.__name__ = name
    make.__module__ = kind.__module__
    docstrings = (inspect.cleandoc(text or '') for text in (kind.__doc__, kind.__init__.__doc__))
    make.__doc__ = '\n\n'.join([f'{info.description}.', *docstrings]).strip()
    make.__signature__ = known.replace(parameters=parameters)  # type: ignore[attr-defined]  # inspect reads it
    make.__annotations__ = {parameter.name: _hint(parameter, hints) for parameter in parameters}
    if info.has_betas:
        make.__annotations__['betas'] = tuple[(Dropout,) * info.num_betas]  # type: ignore[misc]  # computed
    return make


def _hint(parameter: inspect.Parameter, hints: Any) -> Any:
    """vet's range, else timm's hint, else the kind of the default."""
    by_default = {bool: bool, int: Numbers, float: Numbers}.get(type(parameter.default), Any)
    return RANGES.get(parameter.name, hints.get(parameter.name, by_default))


for _name in map(str, list_optimizers()):
    if is_timms(get_optimizer_info(_name).opt_class):
        OPTIMIZERS.register_module(name=_name, module=with_defaults(_name))
