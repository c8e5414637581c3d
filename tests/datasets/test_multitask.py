"""MultiTask: what its tasks may be."""

import pytest

from vet.datasets.digits import Digits
from vet.datasets.multitask import MultiTask
from vet.errors import UserError


@pytest.mark.parametrize('entry', [3, 'Flowers102', [dict(type='Digits')], None])
def test_an_entry_that_is_no_dataset_is_refused_by_its_task(entry):
    with pytest.raises(
        UserError, match=r'tasks\.low is .*; give a dataset that has `classes`, or a config entry'
    ):
        MultiTask(dict(high=Digits(digits=[5, 6]), low=entry))


def test_a_dataset_and_an_entry_stand_one_after_another():
    high, entry = Digits(digits=[5, 6]), dict(type='Digits', split='train', digits=[0, 1, 2])
    both = MultiTask(dict(high=high, low=entry))
    assert both.classes == dict(high=['5', '6'], low=['0', '1', '2'])
    assert len(both) == len(high) + len(Digits(digits=[0, 1, 2]))
    assert [both.task_of(index) for index in (0, len(high) - 1, len(high), len(both) - 1)] == [
        'high',
        'high',
        'low',
        'low',
    ]
