"""What ties an attention to the number or the places of its tokens. Read by tuners that add tokens."""

import inspect
import re

from torch import nn

POSITIONS = re.compile(r'rope|rel_?pos|relative_position|window|attention_bias|bias_table')


def tie_to_positions(part: nn.Module) -> str | None:
    """The name of an argument, parameter or setting by which a module within `part` needs a fixed number of tokens.

    Windows, relative-position tables and rotary angles do; None where any number of tokens will do.
    """
    for module in part.modules():
        arguments = list(inspect.signature(type(module).forward).parameters)
        tensors = [name for name, _ in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]]
        settings = [name for name, value in vars(module).items() if value is not None]
        for name in (*arguments, *tensors, *settings):
            if POSITIONS.search(name):
                return name
    return None


def attends(part: nn.Module) -> bool:
    """Whether an attention lies within `part`, so that its tokens exchange information whatever their number."""
    return any('attention' in type(module).__name__.lower() for module in part.modules())
