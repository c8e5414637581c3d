"""Changed model folders that fit their checksum again, as a stranger would make them."""

import hashlib
import json

from safetensors.torch import save


def seal(folder, tensors=None):
    """Writes `tensors` (None: leaves the file), and the file's sha256 into configuration.json. Returns
    the folder.
    """
    path, file = folder / 'configuration.json', folder / 'tuner.safetensors'
    if tensors is not None:
        file.write_bytes(save(tensors))
    configuration = json.loads(path.read_text())
    configuration['sha256'] = {file.name: hashlib.sha256(file.read_bytes()).hexdigest()}
    path.write_text(json.dumps(configuration))
    return folder
