"""The names that other folders use of this folder, which writes a run's work folder, log and checkpoints.

No module outside this folder imports another file of the folder.

| file | content |
|---|---|
| work_folder.py | the folder of one run: which run may write there, and which run may continue |
| same_run.py | whether the run that continues is the run that was begun |
| checkpoint.py | the state after a step, from which a run continues as without an interruption |
| identity.py | the start of a run: the model, the images, the versions |
| log.py, events.py | the record of a run, as JSON lines, for TensorBoard, and as curves |
| trackers.py | sends the config and the numbers of a run to mlflow, wandb, … |
| rehearsal.py | tries the saving of the end at the start |
| outcome.py | the files of the end: curves, predictions and the report |
| together.py | what the main process gives to all processes |
"""

from vet.engine.saving.checkpoint import Progress, list_checkpoints, load_optimizer_state, optimizer_state
from vet.engine.saving.identity import identity_of
from vet.engine.saving.log import Log, peak_memory_mb, read_log
from vet.engine.saving.outcome import write_outcome
from vet.engine.saving.rehearsal import try_saving
from vet.engine.saving.same_run import check_identity
from vet.engine.saving.together import on_main, share
from vet.engine.saving.trackers import Trackers, require_trackers
from vet.engine.saving.work_folder import WorkFolder

__all__ = [
    'Log',
    'Progress',
    'Trackers',
    'WorkFolder',
    'check_identity',
    'identity_of',
    'list_checkpoints',
    'load_optimizer_state',
    'on_main',
    'optimizer_state',
    'peak_memory_mb',
    'read_log',
    'require_trackers',
    'share',
    'try_saving',
    'write_outcome',
]
