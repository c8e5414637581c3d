"""Tries the end of a run at its start, so that a run of hours can always be saved."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from vet.config import Settings
from vet.core.multitask import Classifier
from vet.errors import UserError
from vet.files import JsonObject


def try_saving(
    model: Classifier,
    settings: Settings,
    folder: Path,
    save_output: Callable[[Classifier, Path, JsonObject], None],
) -> None:
    """Saves the untrained model in a folder that is removed again.

    UserError for class names that no file can hold, and for a model or config that cannot be saved.
    """
    for task, classifier in model.tasks.items():
        _refuse_names(classifier.classes, task)
    trial = folder / f'.trial.{os.getpid()}.tmp'
    try:
        save_output(model, trial, dict(metrics={}, settings=settings.to_dict()))
    except (UnicodeEncodeError, TypeError) as error:
        raise UserError(
            f'the model could not be saved when training ends: {error}. A config and class names must be '
            'texts, numbers, lists and dicts that a JSON file in UTF-8 can hold.'
        ) from error
    finally:
        shutil.rmtree(trial, ignore_errors=True)


def _refuse_names(classes: list[str], task: str | None) -> None:
    where = f' of the task {task}' if task else ''
    for label, name in enumerate(classes):
        try:
            name.encode()
        except UnicodeEncodeError:
            raise UserError(
                f'the name of class {label}{where} is {name!r}, which is no valid UTF-8, so that no model '
                'folder can hold the name. Rename the folder of the class, or give other names in label_map.'
            ) from None
