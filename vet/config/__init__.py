"""The settings of a run: which there are, and how a config file becomes them.

`sections.py` has every setting, with its type, range, choices and meaning at the field. `load_config` reads a config
file (mmengine's .py with `_base_`, .yaml or .json). `read_settings` checks a config once, and gives `Settings`.
`reference.py` and `schema.py` make from the same fields what people and editors read.
"""

from vet.config.file import load_config
from vet.config.nearest import nearest_settings
from vet.config.read import read_settings
from vet.config.sections import (
    Between,
    Checkpoints,
    Data,
    Dataloader,
    Evaluation,
    Model,
    Plugin,
    Schedule,
    Settings,
    Stage,
    Train,
)
from vet.config.short_forms import expand_short_forms, short_forms

__all__ = [
    'Between',
    'Checkpoints',
    'Data',
    'Dataloader',
    'Evaluation',
    'Model',
    'Plugin',
    'Schedule',
    'Settings',
    'Stage',
    'Train',
    'expand_short_forms',
    'load_config',
    'nearest_settings',
    'read_settings',
    'short_forms',
]
