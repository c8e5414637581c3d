"""Model folders: vet's folders, the folders of other libraries, and the repositories of hubs."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vet.hub.hub import from_pretrained, push_to_hub
    from vet.hub.modelscope import load_modelscope
    from vet.hub.names import find_folder
    from vet.hub.peft import load_peft, save_peft

__all__ = ['find_folder', 'from_pretrained', 'load_modelscope', 'load_peft', 'push_to_hub', 'save_peft']

_HOMES = dict(
    find_folder='names',
    from_pretrained='hub',
    load_modelscope='modelscope',
    load_peft='peft',
    push_to_hub='hub',
    save_peft='peft',
)


def __getattr__(name: str) -> Any:
    """Imports a function at its first use, because torch imports slowly."""
    if name not in _HOMES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(f'vet.hub.{_HOMES[name]}'), name)
