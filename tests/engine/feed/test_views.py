"""Before step 0: images are normalised once, and alike in training and evaluation, and the network
takes their size.
"""

import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from tests.engine.runs import SmallDigits, build, config, small
from vet import build_trainer, pipeline
from vet.cli.train import _line_of_python
from vet.errors import UserError

HALF = dict(type='Normalize', mean=[0.5, 0.5, 0.5], std=[0.5, 0.5, 0.5])  # as the backbone has it
OTHER = dict(type='Normalize', mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])


class Floats(SmallDigits):
    """Digits as a dataset gives them whose own transform ends with floats, normalised where `normalised`."""

    def __init__(self, split, normalised):
        super().__init__(split)
        steps = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)]
        self.transform = v2.Compose(steps[: 3 if normalised else 2])

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return self.transform(image), label


def weights(work_dir, data=None, **options):
    """What a run of one epoch ends with."""
    options = {
        'train.max_epochs': 1,
        'train.dataloader': dict(batch_size_per_gpu=32, workers_per_gpu=0),
    } | options
    data = dict(train_dataset=SmallDigits('train'), eval_dataset=SmallDigits('test')) | (data or {})
    trainer = build(work_dir, data=data, **options)
    trainer.train()
    return trainer.model.trained_state()


@pytest.mark.parametrize('where', ['pil', 'tensor', 'device'])
def test_a_normalize_of_the_config_is_not_a_second_one(tmp_path, where):
    plain = weights(tmp_path / 'plain', **{'train.transform_on': where})
    own = weights(
        tmp_path / 'own', **{'train.transform': [dict(type='ToTensor'), HALF], 'train.transform_on': where}
    )
    for name, value in plain.items():
        torch.testing.assert_close(own[name], value, rtol=0, atol=1e-5)


def test_floats_of_a_dataset_train_as_its_images_do(tmp_path):
    plain = weights(tmp_path / 'plain')
    floats = weights(tmp_path / 'floats', dict(train_dataset=Floats('train', normalised=False)))
    for name, value in plain.items():
        torch.testing.assert_close(floats[name], value, rtol=0, atol=1e-5)


@pytest.mark.parametrize('split', ['train_dataset', 'eval_dataset'])
def test_a_dataset_that_normalises_is_refused_before_training(tmp_path, split):
    data = dict(train_dataset=SmallDigits('train'), eval_dataset=SmallDigits('test'))
    data[split] = Floats('train' if split == 'train_dataset' else 'test', normalised=True)
    with pytest.raises(
        UserError,
        match=r'float image with values from -1 to 1; .*Take Normalize out of the transform of the dat',
    ):
        build(tmp_path / 'run', data=data).train()
    assert not list((tmp_path / 'run').glob('checkpoints/*'))


@pytest.mark.parametrize(
    'options', [{'train.transform': [OTHER]}, {'evaluation.transform': [dict(type='EvaluationCrop'), OTHER]}]
)
def test_two_normalisations_are_refused(tmp_path, options):
    with pytest.raises(
        UserError, match=r'train.transform normalises images by mean \(0.* Leave Normalize out of both'
    ):
        small(tmp_path / 'run', **options)


def test_the_same_in_both_holds_in_the_folder_too(tmp_path):
    """The one normalisation of train.transform and evaluation.transform is that of `predict`,
    `pipeline` and the saved metric.
    """
    options = {
        'train.transform': [dict(type='ToTensor'), OTHER],
        'evaluation.transform': [dict(type='EvaluationCrop'), OTHER],
    }
    trainer = small(tmp_path / 'run', **{'train.max_epochs': 1}, **options)
    summary, test = trainer.train(), trainer.data['test']
    images, names = [test[i][0] for i in range(len(test))], [test.classes[label] for label in test.targets]
    found = trainer.predict(images)
    assert pipeline(model=tmp_path / 'run' / 'output')(images, topk=1) == found
    assert sum(one['labels'] == [name] for one, name in zip(found, names)) / len(names) == pytest.approx(
        summary['accuracy']
    )


@pytest.mark.parametrize('key', ['train.transform', 'evaluation.transform'])
def test_a_size_that_the_network_does_not_take(tmp_path, key):
    with pytest.raises(
        UserError, match=rf'{key} makes images of \(6, 6\).*does not take.*end with the size \(8, 8\)'
    ):
        small(tmp_path / 'run', **{key: [dict(type='CenterCrop', size=6)]}).train()
    assert not (tmp_path / 'run').exists()


def test_a_size_that_the_network_takes(tmp_path):
    """A convolutional network is evaluated on larger images than it is trained on, as its authors do."""
    made = config(
        **{
            'train.max_epochs': 1,
            'train.transform': [dict(type='Resize', size=[32, 32])],
            'evaluation.transform': [dict(type='Resize', size=[40, 40])],
        }
    )
    made['model'] = dict(
        tuners=[dict(type='LinearProbe')],
        backbone=dict(
            type='timm',
            name='resnet18',
            pretrained=False,
            preprocessing=dict(size=32),
            kwargs=dict(layers=(1, 1, 1, 1), channels=(8, 8, 8, 8)),
        ),
    )
    data = dict(train_dataset=SmallDigits('train'), eval_dataset=SmallDigits('test'))
    assert build_trainer(model=made, work_dir=tmp_path / 'run', device='cpu', **data).train()['steps']


def test_the_example_beside_a_run_may_be_a_tensor(tmp_path):
    """The line that `vet train` ends with shows an image of the test split, which a dataset may give as
    a tensor.
    """
    data = dict(train_dataset=SmallDigits('train'), eval_dataset=Floats('test', normalised=False))
    trainer = build(tmp_path / 'run', data=data, **{'train.max_epochs': 1})
    trainer.train()
    assert 'example.png' in _line_of_python(trainer)
    assert Image.open(tmp_path / 'run' / 'example.png').tobytes() == SmallDigits('test')[0][0].tobytes()
