"""What a configuration may say of tasks: each refusal names the entry."""

import json
import shutil

import pytest

from vet.errors import DataError
from vet.hub.model_folder import load_model

HEAD = dict(type='Linear')


@pytest.mark.parametrize(
    'tasks, message',
    [
        (['birds'], r"has model\.tasks \['birds'\]; allowed: a dict of at most \d+ tasks, whose names"),
        ({'two words': {}}, r'model\.tasks .*two words.*whose names are of letters, digits and "_"'),
        ({f'task{i}': {} for i in range(1001)}, r'model\.tasks .*; allowed: a dict of at most \d+ tasks'),
        (dict(birds=7), r'has 7 as model\.tasks\.birds; allowed: a dict with "backbone" and "head"'),
        (dict(birds=dict(head=HEAD)), r'model\.tasks\.birds\.backbone'),
        (dict(birds='backbone'), r"has 'backbone' as model\.tasks\.birds; allowed: a dict with"),
    ],
    ids=['list', 'name', 'many', 'number', 'no backbone', 'text'],
)
def test_tasks_are_named_parts(trainer, tmp_path, tasks, message):
    folder = shutil.copytree(trainer.folder.output, tmp_path / 'copy')
    path = folder / 'configuration.json'
    configuration = json.loads(path.read_text())
    configuration['model']['tasks'] = tasks
    configuration['classes'] = {task: ['a', 'b'] for task in tasks}
    path.write_text(json.dumps(configuration))
    with pytest.raises(DataError, match=message):
        load_model(folder)
