"""The door of what a run writes: its work folder, its log and its checkpoints, from which it goes on.

Nothing outside this folder imports another file of the folder.

| file | what |
|---|---|
| work_folder.py | the folder of one run: who may write there, and who may go on |
| checkpoint.py | what a step leaves behind, so that the next step is as if nothing had come between |
| identity.py | what a run was begun with: the model, the images, the versions |
| log.py, events.py | the record of a run, as JSON lines, for TensorBoard, and as curves |
| rehearsal.py | the saving at the end, tried at the start |
"""

from vet.engine.saving.checkpoint import Progress, load_optimizer_state, optimizer_state
from vet.engine.saving.identity import identity_of
from vet.engine.saving.log import Log, draw_curves, peak_memory_mb, read_log
from vet.engine.saving.rehearsal import rehearse_the_end
from vet.engine.saving.work_folder import WorkFolder

__all__ = [
    'Log',
    'Progress',
    'WorkFolder',
    'draw_curves',
    'identity_of',
    'load_optimizer_state',
    'optimizer_state',
    'peak_memory_mb',
    'read_log',
    'rehearse_the_end',
]
