"""Model folders: vet's own, and those that other libraries write and read."""

from vet.hub.modelscope import load_modelscope
from vet.hub.peft import load_peft, save_peft

__all__ = ['load_modelscope', 'load_peft', 'save_peft']
