"""Wrong targets: each message names the item, the value and the remedy."""

import numpy as np
import pytest
import torch

from tests.objectives.conftest import TAGS, Measured, Tagged, trainer_of
from vet.datasets.base import ImageDataset, targets_of
from vet.errors import UserError
from vet.targets import as_class_set, as_label, as_numbers


def item():
    return 'image 3 of Own'


@pytest.mark.parametrize(
    'target',
    [
        {0, 2},
        {'odd', 'large'},
        frozenset([2, 0]),
        ['large', 'odd'],
        [1, 0, 1],
        np.array([1.0, 0, 1]),
        torch.tensor([1, 0, 1]),
    ],
)
def test_forms_of_a_set(target):
    assert as_class_set(target, TAGS, item) == (1, 0, 1)
    assert as_class_set(as_class_set(target, TAGS, item), TAGS, item) == (1, 0, 1)


def test_other_forms():
    assert as_class_set(set(), TAGS, item) == as_class_set([], TAGS, item) == (0, 0, 0)
    assert as_class_set(np.int64(1), TAGS, item) == (0, 1, 0)
    assert as_numbers(3, ['x'], item) == as_numbers(torch.tensor([3.0]), ['x'], item) == (3.0,)
    assert as_numbers(dict(y=2, x=1), ['x', 'y'], item) == (1.0, 2.0)


@pytest.mark.parametrize(
    'check, target, message',
    [
        (as_label, [1, 0, 1], r'image 3 of Own has the label \[1, 0, 1\] \(list\).*type="MultiLabel"'),
        (as_label, {0, 1}, 'type="MultiLabel"'),
        (as_label, 1.5, r'has the label 1.5 \(float\).*type="Regression"'),
        (as_label, -100, 'has the label -100.*whole number from 0 to 2.*leave the image out'),
        (as_label, 3, 'has the label 3.*Correct the label, or add the class to `classes`'),
        (as_label, 'odd', 'has the label odd.*Give the number of the class in place of a text'),
        (as_label, float('nan'), 'has the label nan'),
        (as_class_set, {0, 3}, 'has the label 3.*but there are 3 classes'),
        (as_class_set, {'odd', 'od'}, "has the class 'od'.*no such name among 3"),
        (as_class_set, ['odd', 'od'], "has the class 'od'.*no such name among 3"),
        (as_class_set, ['odd', 2], 'has the target'),
        (as_class_set, [1, 0], r'has the target \[1, 0\] \(list\).*3 values, each 0 or 1'),
        (as_class_set, [1, 0, -1], "has the value -1 for the class 'large'; allowed: 1 if the image"),
        (as_class_set, [1, 0.5, 0], "has the value 0.5 for the class 'loop'"),
        (as_class_set, [1, float('nan'), 0], "has the value nan for the class 'loop'"),
        (as_class_set, 'odd|loop', 'has the target odd|loop'),
        (as_class_set, True, 'has the target True'),
        (as_numbers, [1.0, float('nan'), 0], "has the number nan as 'loop'.*leave the image out"),
        (as_numbers, [1.0, float('inf'), 0], "has the number inf as 'loop'"),
        (as_numbers, [1.0, 2.0], 'but the target is 3 numbers: odd, loop, large'),
        (as_numbers, 2, r"has the target 2 .int.*For a CSV, name the columns of numbers: targets=\['road'\]"),
        (as_numbers, ['1', '2', '3'], 'has the target'),
        (as_numbers, None, 'has the target None'),
    ],
)
def test_refusals(check, target, message):
    with pytest.raises(UserError, match=message):
        check(target, 3 if check is as_label else TAGS, item)


class Own(ImageDataset):
    def __init__(self, targets):
        super().__init__(['a', 'b'], [(np.zeros((8, 8), np.uint8), target) for target in targets])


def test_a_wrong_label_of_a_dataset_of_samples():
    with pytest.raises(UserError, match=r'labels -100 … 1, but 2 class names.*-100, of image 2 of Own'):
        Own([0, 1, -100])
    with pytest.raises(UserError, match=r'image 1 of Own has the label 1.5 \(float\)'):
        targets_of(Own([0, 1.5]))


@pytest.mark.parametrize('kind, wrong, message', [
    (Tagged, [0, 1, 7], 'has the target'),
    (Measured, [(1.0, float('nan'))], "image 0 of Measured has the number nan as 'share'"),
])  # fmt: skip
def test_wrong_targets_stop_a_run_before_its_first_step(tmp_path, kind, wrong, message):
    targets = [*([*kind('train').given][: 120 - len(wrong)]), *wrong][::-1]
    given = type(
        kind.__name__, (kind,), {'__init__': lambda self, split: kind.__init__(self, split, targets)}
    )
    if kind is Tagged:
        targets[0] = 'odd|loop'
    with pytest.raises(UserError, match=message):
        trainer_of(tmp_path / 'run', given).train()
    assert not (tmp_path / 'run' / 'checkpoints').exists()


def test_sets_under_single_label_name_the_remedy(tmp_path):
    with pytest.raises(UserError, match=r'image 0 of Tagged.*has the label.*type="MultiLabel"'):
        trainer_of(tmp_path / 'run', Tagged, **{'model.objective': dict(type='SingleLabel')}).train()


@pytest.mark.parametrize('kind', ['SingleLabel', 'Embedding'])
def test_a_single_class_is_refused(tmp_path, kind):
    class Alike(Measured):
        def __init__(self, split):
            super().__init__(split, [0] * (120 if split == 'train' else 60))
            self.classes = ['only']
            self.objective = dict(type=kind)

    head = {'model.head': dict(type='Embedding')} if kind == 'Embedding' else {}
    with pytest.raises(UserError, match="the dataset has one class, 'only'. A model learns to tell classes"):
        trainer_of(tmp_path / 'run', Alike, **head)
