"""Model folders: vet's folders, the folders of other libraries, and the repositories of hubs."""

from vet.hub.hub import from_pretrained, push_to_hub
from vet.hub.modelscope import load_modelscope
from vet.hub.names import find_folder
from vet.hub.peft import load_peft, save_peft

__all__ = ['find_folder', 'from_pretrained', 'load_modelscope', 'load_peft', 'push_to_hub', 'save_peft']
