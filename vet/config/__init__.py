"""The settings of a run, and how vet reads them from a config file.

- `sections.py` has every setting, with its type, range, choices and meaning.
- `load_config` reads a config file: mmengine's .py with `_base_`, .yaml or .json.
- `read_settings` checks a config once, and gives `Settings`.
- `reference.py` lists the settings for people, and `schema.py` for editors.
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
    Views,
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
    'Views',
    'Train',
    'expand_short_forms',
    'load_config',
    'nearest_settings',
    'read_settings',
    'short_forms',
]
