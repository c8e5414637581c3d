"""A tuned backbone as a plain file of weights under the backbone's own names."""

from pathlib import Path

from safetensors.torch import save

from vet.engine.files import write_file
from vet.hub.model_folder import find_model_folder, load_model


def export_backbone(folder: str | Path, path: str | Path, task: str | None = None) -> None:
    """Merges what was trained into the backbone's weights and writes them, without the head, as safetensors.

    task: of a model of several tasks, whose backbone. UserError where a tuner cannot be merged.
    """
    network = load_model(find_model_folder(folder)).for_task(task).merge()
    tensors = {name: tensor.detach().contiguous() for name, tensor in network.state_dict().items()}
    write_file(Path(path), save(tensors))
