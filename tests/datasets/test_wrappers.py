"""Datasets that wrap others: their class names, labels, images and file names are those of what they wrap."""

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Subset, random_split
from torchvision.transforms import v2

from tests.objectives.masks import NAMES, VOID, write_folder
from vet import build_trainer
from vet.datasets.base import item_name, sources_of, targets_of
from vet.datasets.digits import Digits
from vet.datasets.mask_folder import MaskFolder
from vet.datasets.multitask import MultiTask
from vet.datasets.overlap import refuse_overlaps
from vet.datasets.wrappers import given_images
from vet.errors import UserError

CONFIG = dict(
    model=dict(backbone=dict(type='DigitsViT', lora_length=2)),
    dataset={},
    train=dict(max_epochs=1, threads=1, dataloader=dict(workers_per_gpu=0), transform=[dict(type='Resize')]),
    evaluation=dict(dataloader=dict(workers_per_gpu=0), before=False),
)


class Shades:
    """Images of one colour, with class names and a transform, without `targets`."""

    def __init__(self, classes=('dark', 'light'), size=8):
        self.classes, self.size = list(classes), size
        self.transform = v2.RandomHorizontalFlip(1.0)

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) + index)
        return self.transform(image), index % 2


def rows(size=8, names=('dark', 'light'), image='image', label='label', label_of_last=1, **more):
    images = [Image.fromarray(np.full((8, 8), 9 * index, np.uint8)) for index in range(size)]
    features = {image: datasets.Image(), label: datasets.ClassLabel(names=list(names))}
    table = {image: images, label: [*(index % 2 for index in range(size - 1)), label_of_last]}
    return datasets.Dataset.from_dict({**table, **more}, datasets.Features({**features, **{
        name: datasets.Value('int64') for name in more
    }}))  # fmt: skip


def test_a_subset_has_classes_and_targets_and_the_transform_of_what_it_wraps():
    digits = Digits('train')
    inner = Subset(Subset(digits, range(10, 30)), torch.tensor([3, 1, 4]))
    given = given_images(inner)
    assert given.classes == digits.classes
    assert given.targets == [digits.targets[place] for place in (13, 11, 14)] == targets_of(given)
    assert given[0][0].tobytes() == digits[13][0].tobytes()
    shades = given_images(Subset(Shades(), [5, 2]))
    assert shades.classes == ['dark', 'light'] and targets_of(shades) == [1, 0]
    assert not hasattr(shades, 'targets') and shades[0][0].getpixel((0, 0)) == 12  # 5 + 7: flipped


def test_parts_of_random_split_share_nothing_with_each_other_and_all_with_the_whole():
    train, test = map(given_images, random_split(Digits('train'), [0.75, 0.25]))
    refuse_overlaps(dict(train=train, test=test), chooses=False)
    with pytest.raises(UserError, match='share'):
        refuse_overlaps(dict(train=train, test=given_images(ConcatDataset([test, train]))), chooses=False)
    shades = Shades()
    with pytest.raises(UserError, match='share 2 images'):
        refuse_overlaps(
            dict(train=given_images(Subset(shades, [1, 2, 3])), test=given_images(Subset(shades, [3, 1]))),
            False,
        )


def test_joined_parts(tmp_path):
    for name in ('a.png', 'b.png'):
        Image.new('RGB', (4, 4)).save(tmp_path / name)
    from vet.datasets.base import ImageDataset

    files = ImageDataset(['dark', 'light'], [(str(tmp_path / 'a.png'), 1), (str(tmp_path / 'b.png'), 0)])
    given = given_images(ConcatDataset([Subset(files, [1]), files]))
    assert given.classes == ['dark', 'light'] and given.targets == [0, 1, 0]
    assert sources_of(given) == [str(tmp_path / name) for name in ('b.png', 'a.png', 'b.png')]
    assert 'a.png' in item_name(given, 1)
    assert not hasattr(given_images(ConcatDataset([files, Shades()])), 'targets')


@pytest.mark.parametrize(
    'others, parts',
    [
        (['dark', 'bright'], ["label 1 is 'light' in part 0 (Shades", "and 'bright' in part 1 (Shades"]),
        (['light', 'dark'], ["label 0 is 'dark' in part 0", "and 'light' in part 1"]),
        (['dark', 'light', 'grey'], ['label 2 is no class in part 0', "and 'grey' in part 1"]),
    ],
)
def test_joined_parts_that_differ_in_their_classes(others, parts):
    with pytest.raises(UserError) as error:
        given_images(ConcatDataset([Shades(), Shades(others)]))
    assert all(part in str(error.value) for part in parts), error.value


def test_what_wraps_no_classes_is_refused_by_name():
    plain = torch.utils.data.TensorDataset(torch.zeros(4, 3, 8, 8), torch.zeros(4))
    for wrapper in (Subset(plain, [0]), ConcatDataset([plain])):
        with pytest.raises(UserError, match='wraps a dataset TensorDataset that has no `classes`'):
            given_images(wrapper)
    named = Subset(plain, [0])
    named.classes = ['a']
    assert given_images(named) is named


@pytest.mark.parametrize(
    'indices, given',
    [
        ([0, 99], '99 .int.'),
        ([0, -9], '-9 .int.'),
        (['a'], "'a' .str."),
        ([0.5], '0.5 .float.'),
        ([True, False], 'True .bool.'),
        (torch.tensor([True, False]), 'a Tensor'),
        (np.array([True, False]), 'True'),
    ],
)
def test_an_index_of_a_subset_that_names_no_image_is_refused(indices, given):
    with pytest.raises(
        UserError, match='a Subset has the index .*, but the dataset has 8 images.*from 0 to 7'
    ):
        given_images(Subset(Shades(), indices))


def test_an_image_in_memory_that_is_none_is_named(tmp_path):
    shades = Shades()
    shades.transform = lambda image: None
    with pytest.raises(UserError, match='image 0 of Shades: an image is a path'):
        build_trainer(model=CONFIG, work_dir=tmp_path, device='cpu', train_dataset=shades).train()


def test_rows_of_hugging_face():
    given = given_images(rows())
    assert given.classes == ['dark', 'light'] and given.targets == [0, 1] * 4 and len(given) == 8
    assert given[3][0].getpixel((0, 0)) == 27 and given[3][1] == 1
    other = given_images(rows(image='img', label='fine', id=list(range(8))))
    assert other.targets == given.targets and other[3][0].getpixel((0, 0)) == 27
    assert given_images(datasets.DatasetDict(train=rows())['train']).targets == given.targets
    undecoded = given_images(rows().cast_column('image', datasets.Image(decode=False)))
    assert isinstance(undecoded[0][0], bytes)
    part = given_images(Subset(rows(), [3, 1]))
    assert part.targets == [1, 1] and part[0][0].getpixel((0, 0)) == 27
    whole = rows()
    with pytest.raises(UserError, match='share'):
        refuse_overlaps(dict(train=given_images(whole), test=given_images(Subset(whole, [1]))), False)


@pytest.mark.parametrize(
    'given, text',
    [
        (lambda: datasets.DatasetDict(train=rows(), test=rows()), 'splits train, test; give one split'),
        (lambda: rows().to_iterable_dataset(), 'a stream'),
        (lambda: rows().cast_column('label', datasets.Value('int64')), 'class_encode_column'),
        (lambda: rows(size=7, label_of_last=None), 'image 6 of Rows has the label None .NoneType.'),
        (lambda: rows().remove_columns('image'), '0 columns that hold an image'),
        (lambda: rows().rename_column('label', 'a').add_column('b', [0] * 8).cast_column(
            'b', datasets.ClassLabel(names=['x'])), '2 columns that hold a class label'),
    ],
)  # fmt: skip
def test_rows_that_are_refused(given, text, tmp_path):
    with pytest.raises(UserError, match=text):
        build_trainer(model=CONFIG, work_dir=tmp_path, train_dataset=given())


def of_feature(feature, values):
    images = [Image.fromarray(np.full((8, 8), 9 * index, np.uint8)) for index in range(len(values))]
    return datasets.Dataset.from_dict(
        dict(image=images, label=values), datasets.Features(dict(image=datasets.Image(), label=feature))
    )


def test_rows_of_several_classes_and_of_numbers():
    several = of_feature(datasets.List(datasets.ClassLabel(names=['a', 'b'])), [[0], [], [0, 1]])
    for given in map(given_images, (several, several.with_format('torch'))):
        assert (given.classes, given.objective) == (['a', 'b'], dict(type='MultiLabel'))
        assert given.targets == [{0}, set(), {0, 1}] and given[2][1] == {0, 1}
    numbers = given_images(of_feature(datasets.Value('float32'), [0.5, 2]).rename_column('label', 'age'))
    assert (numbers.classes, numbers.objective) == (['age'], dict(type='Regression'))
    assert numbers.targets == [0.5, 2.0] and numbers[1][1] == 2.0


class Targets(Shades):
    """Images with any targets, which the dataset says if `said`."""

    def __init__(self, targets, classes, said, objective):
        super().__init__(classes, len(targets))
        self.all, self.objective = targets, objective
        if said:
            self.targets = targets

    def __getitem__(self, index):
        return super().__getitem__(index)[0], self.all[index]


KINDS = dict(
    Regression=([index / 3 for index in range(8)], ['age']),
    MultiLabel=([[index % 2, 1, 0] for index in range(8)], ['a', 'b', 'c']),
    Ordinal=([index % 3 for index in range(8)], ['a', 'b', 'c']),
)


@pytest.mark.parametrize('said', [True, False], ids=['targets', 'no targets'])
@pytest.mark.parametrize('kind', KINDS)
def test_wrapped_targets_of_any_objective(kind, said, tmp_path):
    whole = Targets(*KINDS[kind], said, dict(type=kind))
    train = ConcatDataset([Subset(Subset(whole, range(6)), [0, 1, 2, 3]), Subset(whole, [6])])
    trainer = build_trainer(
        model=CONFIG, work_dir=tmp_path, train_dataset=train, eval_dataset=Subset(whole, [4, 5, 7])
    )
    given = trainer.data['train']
    assert type(trainer.model.objective).__name__ == kind
    expected = [trainer.model.objective.check(whole.all[place], str) for place in (0, 1, 2, 3, 6)]
    assert targets_of(given) == expected


def test_wrapped_masks(tmp_path):
    folder = MaskFolder(write_folder(tmp_path), 'train', classes=NAMES, ignore=[VOID])
    given = given_images(ConcatDataset([Subset(folder, [3]), folder]))
    assert given.objective == folder.objective and not hasattr(given, 'targets')
    assert np.array_equal(given[0][1], folder[3][1])


def test_parts_of_other_objectives():
    parts = [Targets([0, 1], ['a', 'b'], True, dict(type=kind)) for kind in ('Ordinal', 'MultiLabel')]
    with pytest.raises(
        UserError, match="'Ordinal'} in part 0 .Targets., and {'type': 'MultiLabel'} in part 1"
    ):
        given_images(ConcatDataset(parts))


def test_a_contradiction_of_label_maps_is_seen_through_a_subset(tmp_path):
    data = []
    for maps in (dict(dark=0, light=1), dict(dark=1, light=0)):
        data.append(Shades())
        data[-1].label_map = maps
    with pytest.raises(UserError, match="label_map gives 'dark' the label 1, but"):
        build_trainer(
            model=CONFIG, work_dir=tmp_path, train_dataset=Subset(data[0], [0, 1]), eval_dataset=data[1]
        )


def test_a_task_may_be_wrapped():
    tasks = MultiTask(dict(few=Subset(Shades(), [1, 2]), rows=rows()))
    assert tasks.classes == dict(few=['dark', 'light'], rows=['dark', 'light'])


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['split', 'joined', 'rows'])
def test_they_train(kind, tmp_path):
    if kind == 'rows':
        train, test = rows(16), rows(8)
    else:
        train, test = random_split(
            Digits('train', digits=[5, 6]), [40, len(Digits('train', digits=[5, 6])) - 40]
        )
        train = ConcatDataset([train, train]) if kind == 'joined' else train
    trainer = build_trainer(
        model=CONFIG, work_dir=tmp_path, train_dataset=train, eval_dataset=test, device='cpu'
    )
    summary = trainer.train()
    assert summary['train_images'] == len(train) and 0 <= summary['accuracy'] <= 1
