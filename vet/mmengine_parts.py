"""The parts of mmengine that vet uses. No other file of vet imports mmengine.

mmengine imports yapf. yapf 0.43 keeps its grammars as files in the user's cache folder, and gives each file
its name before all bytes are written. So another process may read half a file, and a killed process leaves
half a file for ever. In both cases, this module makes the grammars anew.
"""

import importlib
import pickle
from functools import partial
from typing import Any

try:
    importlib.import_module('mmengine')
except (EOFError, pickle.UnpicklingError):
    _driver: Any = importlib.import_module('yapf_third_party._ylib2to3.pgen2.driver')
    _driver.load_grammar = partial(_driver.load_grammar, force=True)  # reads no cached file, and writes anew
    importlib.import_module('mmengine')

from mmengine.config import Config
from mmengine.fileio import BaseFileHandler, register_handler
from mmengine.registry import Registry

__all__ = ['BaseFileHandler', 'Config', 'Registry', 'register_handler']
