"""Photos of several sizes: a batch needs one size, and a call of pipeline does not."""

import pytest
from PIL import Image

from tests.engine.runs import config
from vet import build_trainer, pipeline
from vet.errors import UserError

SIZES = [(32, 32), (40, 32), (32, 64), (50, 32), (32, 33), (32, 32)]
SHORT_SIDE = [dict(type='Resize', size=32)]


class Photos:
    """A user's dataset: photos of one colour, without `targets`."""

    classes = ['a', 'b']

    def __init__(self, sizes):
        self.sizes = sizes

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, index):
        return Image.new('RGB', self.sizes[index], (40 * index, 0, 0)), index % 2


def trainer_of(work, train, test, **options):
    resnet = dict(type='torchvision', name='resnet18', pretrained=False, preprocessing=dict(size=32))
    options = {'train.max_epochs': 1, 'train.transform': SHORT_SIDE, 'model.backbone': resnet} | options
    options |= {'model.tuners': [dict(type='LinearProbe')]}
    data = dict(train_dataset=Photos(train), eval_dataset=Photos(test))
    return build_trainer(model=config(**options), work_dir=work, device='cpu', **data)


@pytest.mark.parametrize(
    'train, test, options',
    [
        (SIZES, SIZES[:1], {}),
        (SIZES, SIZES[:1], {'train.dataloader': dict(batch_size_per_gpu=3, workers_per_gpu=1)}),
        (SIZES, SIZES[:1], {'train.transform_on': 'device'}),
        (SIZES[:1] * 4, SIZES, {'evaluation.transform': SHORT_SIDE}),
    ],
    ids=['training', 'a process that reads', 'on the device', 'evaluation'],
)
def test_several_sizes_in_a_batch_are_refused(tmp_path, train, test, options):
    with pytest.raises(UserError, match=r'images of several sizes, such as .*dict\(type="Resize", size=\['):
        trainer_of(tmp_path, train, test, **options).train()


def test_a_call_takes_several_sizes(tmp_path):
    """Each answer is the answer of a call with this image alone."""
    trainer = trainer_of(tmp_path, SIZES[:1] * 4, SIZES[:1], **{'evaluation.transform': SHORT_SIDE})
    trainer.train()
    photos = [Photos(SIZES)[index][0] for index in range(len(SIZES))]
    classify = pipeline(model=trainer.folder.output, device='cpu')
    alone = [classify(photo, topk=2) for photo in photos]
    assert classify(photos, topk=2) == alone == trainer.predict(photos, topk=2)
