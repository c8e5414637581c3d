"""The course of a training run: what it reads when, what it selects, when it stops and what it says of it."""

import multiprocessing

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score, f1_score, recall_score

from tests.engine.runs import SmallDigits, build, small
from vet import pipeline
from vet.core import coverage
from vet.core.objective import build_objective
from vet.core.tuner import Tuner
from vet.datasets.base import missing_classes, set_objective
from vet.engine.saving.log import read_log
from vet.errors import TrainingError, UserError


class Recording(SmallDigits):
    """Counts how often it is read, and where the training stands then."""

    def __init__(self, split):
        super().__init__(split)
        self.read, self.step = [], lambda: None

    def __getitem__(self, index):
        self.read.append((self.step(), index))
        return super().__getitem__(index)


@pytest.fixture
def recorded(tmp_path):
    """build(**options): a trainer whose test split tells at which step it is read."""

    def make(**options):
        data = dict(train_dataset=SmallDigits('train'), eval_dataset=Recording('test'))
        options = {'train.dataloader': dict(batch_size_per_gpu=32, workers_per_gpu=0)} | options
        trainer, steps = build(tmp_path / 'run', data=data, **options), []
        data['eval_dataset'].step = lambda: len(steps)
        # one backward a step
        trainer.model.head.fc.weight.register_hook(lambda grad: steps.append(1) and None)
        return trainer, data['eval_dataset']

    return make


@pytest.mark.parametrize('before', [True, False])
@pytest.mark.parametrize('select', ['last', 'best'])
def test_test_split_is_read_before_and_after_only(recorded, before, select):
    trainer, test = recorded(**{'evaluation.before': before, 'evaluation.select': select, 'train.ema': 0.9})
    summary = trainer.train()
    times = [0] * before + [summary['steps']]
    assert sorted(test.read) == sorted((step, index) for step in times for index in range(len(test)))
    assert (summary['before'] is not None) == before


class Impatient(Tuner):
    """Asks for the test result after the first step."""

    def __init__(self):
        super().__init__('norm')
        self.trainer = None

    def tune(self, site):
        self.thaw(site)

    def on_step(self, progress):
        self.trainer.evaluate()


def test_no_evaluation_on_demand_while_training(recorded, register_tuner):
    register_tuner(Impatient)
    trainer, test = recorded(**{'model.tuners': [dict(type='Impatient')], 'evaluation.before': False})
    [tuner] = trainer.model.tuners
    tuner.trainer = trainer
    with pytest.raises(TrainingError, match='while a training runs'):
        trainer.train()
    assert not test.read
    assert 0 <= trainer.evaluate()['accuracy'] <= 1  # it is over: reading is allowed again


class Listening(Tuner):
    """Trains the norms, and remembers what the training tells it."""

    def __init__(self):
        super().__init__('norm')
        self.batches, self.progress, self.asked = [], [], 0

    def tune(self, site):
        self.thaw(site)

    def prepare(self, batches):
        self.batches = [next(iter(batches)) for _ in range(2)]

    def on_step(self, progress):
        self.progress.append(progress)

    def penalty(self):
        self.asked += 1


def test_tuners_hear_of_the_course(tmp_path, register_tuner):
    register_tuner(Listening)
    trainer = small(tmp_path / 'run', **{'model.tuners': [dict(type='Listening')], 'train.accumulate': 2})
    trainer.train()
    [tuner] = trainer.model.tuners
    for batch, labels in tuner.batches:
        assert batch.shape == (32, 3, 8, 8) and labels.shape == (32,)
    assert tuner.progress == [0.25, 0.5, 0.75, 1.0] and tuner.asked == 4


def test_best_epoch_on_held_out_images(tmp_path):
    """A tenth of each class is held out of train; a rate that explodes makes an early epoch the best one."""
    options = {
        'evaluation.select': 'best',
        'train.max_epochs': 4,
        'train.optimizer': dict(type='SGD', lr=3.0),
    }
    trainer = small(tmp_path / 'run', **options)
    val, train = trainer.data['val'], trainer.data['train']
    assert len(val) == 12 and len(train) == 108
    whole = np.bincount(np.concatenate([val.targets, train.targets]))
    assert (abs(np.bincount(val.targets) - whole / 10) <= 1).all()
    summary = trainer.train()
    results = [record['val_accuracy'] for record in read_log(tmp_path / 'run') if 'val_accuracy' in record]
    assert len(results) == 4 and summary['validation'] == max(results)
    best = results.index(max(results)) + 1
    assert summary['selected'] == f'epoch {best}, the best on 12 images held out of train'
    assert summary['train_images'] == 108
    assert trainer.evaluate('val')['accuracy'] == max(results)  # the weights are those of that epoch


def test_last_epoch_says_so(tmp_path):
    assert small(tmp_path / 'run').train()['selected'] == 'last epoch'


@pytest.mark.parametrize('head, is_told', [('Linear', True), ('LDA', False)])
def test_a_head_that_nothing_trains_is_told(tmp_path, capfd, head, is_told):
    small(tmp_path / 'run', **{'model.head': dict(type=head), 'train.max_epochs': 0}).train()
    told = 'train.max_epochs is 0, so nothing trains the head' in ' '.join(capfd.readouterr().err.split())
    assert told == is_told


def test_early_stop(tmp_path):
    """Nothing is learned at a rate of 1e-9, so that the first epoch stays the best: two more, and it ends."""
    options = {'train.early_stop': 2, 'train.max_epochs': 9, 'train.optimizer': dict(type='SGD', lr=1e-9)}
    trainer = small(tmp_path / 'run', **options)
    summary = trainer.train()
    assert summary['epochs'] == 3 and summary['steps'] == 3 * 4
    assert summary['selected'] == 'last epoch' and summary['train_images'] == 108


def test_unknown_split(tmp_path):
    with pytest.raises(UserError, match="no 'val' split"):
        small(tmp_path / 'run').evaluate('val')


def test_metrics_are_scikit_learns(tmp_path):
    trainer = small(
        tmp_path / 'run',
        **{'evaluation.metrics': ['accuracy', 'mean_per_class_accuracy', 'macro_f1', 'top5']},
    )
    summary = trainer.train()
    data = trainer.data['test']
    answers = trainer.predict([data[i][0] for i in range(len(data))])
    truth = [data.classes[label] for label in data.targets]
    given = [answer['labels'][0] for answer in answers]
    assert 0.3 < summary['accuracy'] < 1
    assert summary['accuracy'] == accuracy_score(truth, given)
    assert summary['mean_per_class_accuracy'] == pytest.approx(recall_score(truth, given, average='macro'))
    assert summary['macro_f1'] == pytest.approx(f1_score(truth, given, average='macro'))
    assert summary['top5'] == 1.0  # of five classes


def test_bf16_and_what_it_leaves_behind(tmp_path):
    """Training in bf16 differs a little from float32; the weights stay float32 and the model is
    unwrapped again.
    """
    runs = {
        precision: small(tmp_path / precision, **{'train.precision': precision})
        for precision in ('fp32', 'bf16')
    }
    losses = {}
    for precision, trainer in runs.items():
        trainer.train()
        losses[precision] = read_log(tmp_path / precision)[-1]['loss']
        assert 'forward' not in vars(trainer.model) and not hasattr(trainer.model, '_original_forward')
    assert losses['bf16'] == pytest.approx(losses['fp32'], rel=0.05) and losses['bf16'] != losses['fp32']
    tensors = load_file(tmp_path / 'bf16' / 'output' / 'tuner.safetensors')
    assert {value.dtype for value in tensors.values()} == {torch.float32}


def test_deterministic_mode(tmp_path, deterministic_mode):
    runs = []
    for name in ('one', 'two'):
        small(tmp_path / name, **{'train.deterministic': True, 'train.max_epochs': 1}).train()
        assert torch.are_deterministic_algorithms_enabled()
        runs.append(load_file(tmp_path / name / 'output' / 'tuner.safetensors'))
    assert all(runs[0][name].equal(runs[1][name]) for name in runs[0])


def test_seed_decides(tmp_path):
    one, two, other = (
        small(tmp_path / name, seed=seed, **{'train.max_epochs': 1})
        for name, seed in (('a', 1), ('b', 1), ('c', 2))
    )
    for trainer in (one, two, other):
        trainer.train()
    states = [trainer.model.trained_state() for trainer in (one, two, other)]
    assert all(states[0][name].equal(states[1][name]) for name in states[0])
    assert not states[0]['head.fc.weight'].equal(states[2]['head.fc.weight'])


def test_no_process_is_left(tmp_path):
    small(
        tmp_path / 'run',
        **{'train.dataloader': dict(batch_size_per_gpu=32, workers_per_gpu=2), 'train.max_epochs': 1},
    ).train()
    assert not multiprocessing.active_children()


def test_predictions_and_a_saved_copy(tmp_path):
    """What the folder says of the test split agrees with the metric; `save_pretrained` writes what
    `pipeline` reads.
    """
    trainer = small(tmp_path / 'run', **{'train.max_epochs': 1})
    summary = trainer.train()
    with np.load(tmp_path / 'run' / 'predictions.npz') as answers:
        assert (answers['labels'] == SmallDigits('test').targets).all()
        assert (answers['labels'] == answers['given']).mean() == pytest.approx(summary['accuracy'])
    for _ in range(2):  # the second replaces the first
        trainer.save_pretrained(tmp_path / 'copy')
    image = SmallDigits('test')[3][0]
    assert pipeline(model=tmp_path / 'copy')(image, topk=5) == trainer.predict([image], 5)[0]
    (tmp_path / 'photos').mkdir()
    (tmp_path / 'photos' / 'one.jpg').write_bytes(b'')
    with pytest.raises(
        UserError, match='photos. exists and is no model folder; give a new or an empty folder'
    ):
        trainer.save_pretrained(tmp_path / 'photos')
    assert (tmp_path / 'photos' / 'one.jpg').exists()


def test_coverage_is_told_before_the_first_step(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(coverage, 'BEHIND', -1)  # no share behind the last block is small enough
    with pytest.warns(UserWarning, match=r"'block\[-1:\]' are the last blocks, but 0 % of the weights"):
        small(tmp_path, **{'train.max_epochs': 1, 'model.tuners': [dict(type='Partial')]}).train()
    told = capfd.readouterr().err
    assert (
        'Partial reaches 17 % of the weights, 1 of 6 attention layers, 2 of 13 norms, 1 of 6 blocks\n' in told
    )
    assert told.index('Partial reaches') < told.index('epoch 1')


@pytest.mark.parametrize(
    'objective, labels, missing',
    [
        ('SingleLabel', lambda label: 1 if label == 3 else label, "'8' (1 of 5 classes have"),
        ('MultiLabel', lambda label: {0, label} - {2, 4}, "'7' (2 of 5 classes have"),
        ('MultiLabel', lambda label: set(), "'5' (5 of 5 classes have"),
        ('Ordinal', lambda label: min(label, 3), "'9' (1 of 5 classes have"),
    ],
)
def test_a_class_without_training_images_is_told(tmp_path, objective, labels, missing):
    train, test = SmallDigits('train'), SmallDigits('test')
    train.samples = [(image, labels(label)) for image, label in train.samples]
    train.targets = [label for _, label in train.samples]
    if objective == 'MultiLabel':
        test.samples = [(image, {label}) for image, label in test.samples]
        test.targets = [label for _, label in test.samples]
    options = {'model.objective': dict(type=objective), 'train.max_epochs': 1, 'evaluation.before': False}
    data = dict(train_dataset=train, eval_dataset=test)
    with pytest.warns(UserWarning) as warned:
        build(tmp_path / 'run', data=data, **options).train()
    [said] = [str(one.message) for one in warned if 'no training image' in str(one.message)]
    assert missing in said and 'cannot learn such a class' in said


def test_no_class_is_missed_where_each_has_an_image_or_where_items_would_be_read():
    class Unread:
        classes = ['a', 'b']

        def __len__(self):
            return 2

        def __getitem__(self, index):
            raise AssertionError('the item was read')

    for dataset in (SmallDigits('train'), Unread()):
        set_objective(dataset, {None: build_objective(dict(type='SingleLabel'), dataset.classes)})
        assert missing_classes(dataset) == []
    assert missing_classes(SmallDigits('train')) == []  # without an objective
