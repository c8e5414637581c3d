"""Model folders: vet's own, those that other libraries write and read, and those on a hub."""

from vet.hub.hub import from_pretrained, push_to_hub
from vet.hub.modelscope import load_modelscope
from vet.hub.names import find_folder
from vet.hub.peft import load_peft, save_peft

__all__ = ['find_folder', 'from_pretrained', 'load_modelscope', 'load_peft', 'push_to_hub', 'save_peft']
