"""A class for each pixel: targets, losses and metrics against formulas, and a run from folders to a model "
"folder."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.metrics import confusion_matrix, jaccard_score

from tests.engine.runs import SmallDigits, failing
from tests.objectives.masks import NAMES, VOID, config, drawing, trainer_of, write_folder
from vet import build_trainer
from vet.core.loss import Loss
from vet.core.objective import build_objective
from vet.datasets.mask_folder import MaskFolder
from vet.datasets.multitask import MultiTask
from vet.engine.evaluate import compute_metrics
from vet.engine.learner import Learner
from vet.errors import UserError
from vet.hub.model_folder import load_model
from vet.objectives.segmentation import Segmentation
from vet.pipelines import pipeline
from vet.targets import as_mask


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp('drawings'))


@pytest.fixture(scope='module')
def run(folder, tmp_path_factory):
    """A trainer after its training of eight epochs, and the summary."""
    work = tmp_path_factory.mktemp('run')
    options = {'train.max_epochs': 8, 'evaluation.select': 'best', 'evaluation.report': True}
    trainer = trainer_of(folder, work, **options)
    return trainer, trainer.train()


# Numbers ----------------------------------------------------------------------------------------------------


def test_metrics_against_scikit_learn():
    draw = np.random.default_rng(0)
    objective = build_objective(dict(type='Segmentation'), [*NAMES, 'absent'])
    outputs = torch.tensor(draw.standard_normal((5, 4, 6, 7)), dtype=torch.float32)
    outputs[:, 3] = -9
    masks = torch.tensor(draw.integers(0, 3, (5, 6, 7)), dtype=torch.uint8)
    masks[:, 2] = 255
    scores, labels = (part.numpy() for part in objective.tally(outputs, masks))
    said, true = outputs.argmax(1)[masks != 255].numpy(), masks[masks != 255].numpy()
    found = compute_metrics(['mIoU', 'pixel_accuracy', 'iou_per_class'], scores, labels, objective)
    ious = jaccard_score(true, said, labels=range(3), average=None)
    assert found['mIoU'] == pytest.approx(ious.mean())
    assert found['pixel_accuracy'] == pytest.approx((said == true).mean())
    assert [found[f'iou_per_class.{name}'] for name in NAMES] == pytest.approx(ious.tolist())
    assert 'iou_per_class.absent' not in found
    matrix = confusion_matrix(true, said, labels=range(4))
    assert (scores[..., 1].sum(0) == matrix.diagonal()).all() and (labels.sum(0) == matrix.sum(1)).all()


def test_evaluation_counts_at_the_size_of_the_mask():
    objective = build_objective(dict(type='Segmentation'), ['a', 'b'])
    outputs = torch.stack([torch.zeros(1, 2, 2), torch.tensor([[[-1.0, 1.0]] * 2])], 1)
    masks = torch.zeros(1, 4, 8, dtype=torch.uint8)
    scores, labels = objective.tally(outputs, masks)
    assert scores[0].tolist() == [[16, 16], [16, 0]] and labels[0].tolist() == [32, 0]


def test_losses_against_formulas():
    objective = build_objective(dict(type='Segmentation'), NAMES)
    outputs = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    masks = torch.randint(0, 2, (2, 4, 5), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    masks[0, 0], masks[1] = 255, 1
    entropies, dice = [], []
    for output, mask in zip(outputs, masks):
        keep = mask != 255
        logits, labels = output[:, keep].T, mask[keep].long()
        entropies.append(F.cross_entropy(logits, labels))
        p, y = logits.softmax(1), F.one_hot(labels, 3)
        there = [k for k in range(3) if y[:, k].any()]
        dice.append(1 - torch.stack([2 * (p * y)[:, k].sum() / (p + y)[:, k].sum() for k in there]).mean())
    entropies, dice = torch.stack(entropies), torch.stack(dice)
    for entry, wanted in [
        (None, entropies),
        (dict(type='DiceLoss'), dice),
        (dict(type='CrossEntropyDiceLoss', dice=0.5), entropies + 0.5 * dice),
    ]:
        torch.testing.assert_close(Loss(entry, objective)(outputs, masks), wanted, rtol=1e-5, atol=1e-6)
    weights = torch.tensor([1.0, 3.0, 1.0])
    found = Loss(dict(type='CrossEntropyLoss', class_weight=weights.tolist()), objective)(outputs, masks)
    assert found[1].item() == pytest.approx(3 * entropies[1].item(), rel=1e-5)
    empty = torch.full((1, 4, 5), 255, dtype=torch.uint8)
    for name in ('CrossEntropyLoss', 'CrossEntropyDiceLoss'):
        assert Loss(dict(type=name), objective)(outputs[:1], empty).isfinite().all()


# Targets ----------------------------------------------------------------------------------------------------


def test_forms_of_a_mask():
    wanted = torch.tensor([[0, 1], [255, 2]], dtype=torch.uint8)
    for given in ([[0, 1], [255, 2]], wanted, wanted.numpy(), wanted.long(), Image.fromarray(wanted.numpy())):
        assert torch.equal(as_mask(given, NAMES, lambda: 'item'), wanted)


@pytest.mark.parametrize(
    'target, message',
    [
        (3, 'image 3 of Own has the target 3 .*but the target is a mask: whole numbers'),
        (np.zeros((2, 2, 3), np.uint8), r'of shape \(2, 2, 3\)'),
        (
            np.zeros((2, 2)),
            r'has the target \[\[0. 0.\] \[0. 0.\]\] \(ndarray of float64, of shape \(2, 2\)\), but',
        ),
        ([[0, 7], [7, 255]], 'has the value 7 in 2 of the 4 pixels of its mask, but there are 3 classes'),
        ([[0, -1]], 'has the value -1 in 1 of'),
        (None, r'has the target None \(NoneType\)'),
    ],
)
def test_wrong_targets(target, message):
    with pytest.raises(UserError, match=message):
        as_mask(target, NAMES, lambda: 'image 3 of Own')


def test_too_many_classes():
    with pytest.raises(UserError, match='there are 256 classes; a mask has at most 255'):
        Segmentation([str(number) for number in range(256)])


# Runs -------------------------------------------------------------------------------------------------------


def test_a_run_learns_masks(run):
    trainer, summary = run
    assert summary['mIoU'] > 0.6 > summary['before']['mIoU'] and summary['pixel_accuracy'] > 0.8
    log = [json.loads(line) for line in (trainer.folder.path / 'log.jsonl').read_text().splitlines()]
    assert summary['validation'] == max(line['val_mIoU'] for line in log if 'val_mIoU' in line)
    assert any('pixel_accuracy' in line for line in log)


def test_the_result_is_that_of_the_model_on_whole_images(run):
    trainer, summary = run
    model, said, true = trainer.model.eval(), [], []
    for image, mask in trainer.data['test']:
        mean, std = (torch.tensor(values)[:, None, None] for values in ((0.5,) * 3, (0.5,) * 3))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
        with torch.no_grad():
            said.append(model(((pixels - mean) / std)[None])[0].argmax(0).numpy())
        true.append(mask)
    said, true = np.stack(said), np.stack(true)
    keep = true != 255
    wanted = jaccard_score(true[keep], said[keep], labels=range(3), average=None).mean()
    assert summary['mIoU'] == pytest.approx(wanted, abs=1e-6)


@pytest.mark.slow
def test_a_folder_gives_the_same_answers_in_a_new_process(run, python):
    trainer, _ = run
    code = (
        'import sys, torch\nfrom vet.hub.model_folder import load_model\n'
        'model = load_model(sys.argv[1])\nx = torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32)\n'
        'with torch.no_grad():\n    torch.save(model(x), sys.argv[2])\n'
    )
    out = trainer.folder.path / 'out.pt'
    done = python('-c', code, trainer.folder.output, out)
    assert done.returncode == 0, done.stderr
    x = torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(torch.load(out), trainer.model.eval()(x))
    entry = json.loads((trainer.folder.output / 'configuration.json').read_text())['model']
    assert entry['objective'] == dict(type='Segmentation') and entry['head'] == dict(type='LinearMask')
    assert load_model(trainer.folder.output).classes == NAMES


def test_resume_is_bit_for_bit(folder, tmp_path):
    def make(resume, work='broken'):
        return trainer_of(folder, tmp_path / work, resume, **{'train.checkpoint': dict(every_steps=1)})

    def all_of(trainer):
        trainer.train()
        return {name: value.tolist() for name, value in trainer.model.trained_state().items()}

    whole = all_of(make(None, 'whole'))
    with pytest.MonkeyPatch.context() as broken, pytest.raises(ZeroDivisionError):
        broken.setattr(Learner, 'step', failing(Learner.step, 4))
        make(None).train()
    assert all_of(make('auto')) == whole


def test_images_of_any_sizes(tmp_path):
    for split, size in (('train', (40, 36)), ('val', (24, 60)), ('test', (50, 34))):
        write_folder(tmp_path / split, [(split, 6)], size)
    data = {
        split: MaskFolder(tmp_path / split, split, classes=NAMES, ignore=[VOID])
        for split in ('train', 'val', 'test')
    }
    made = config(tmp_path, **{'train.transform': [dict(type='RandomCrop', size=32)]})
    del made['dataset']
    trainer = build_trainer(
        model=made, work_dir=tmp_path / 'run', device='cpu', train_dataset=data['train'],
        eval_dataset=torch.utils.data.ConcatDataset([data['val'], data['test']]),
    )  # fmt: skip
    summary = trainer.train()
    assert 0 < summary['mIoU'] <= 1


@pytest.mark.parametrize(
    'options, message',
    [
        ({'train.mixup': 0.2}, "train.mixup is 0.2, but the objective 'Segmentation' has no mixture"),
        ({'train.cutmix': 1.0}, 'Set train.cutmix to 0'),
        ({'evaluation.tta': dict(flip=True)}, "'Segmentation' has no mean over several views"),
        ({'evaluation.metrics': 'accuracy'}, "'accuracy' is for targets that are one class.*a mask.*mIoU"),
        ({'train.loss': dict(type='MSELoss')}, 'a mask. Losses for such targets: .*DiceLoss'),
        ({'train.transform_on': 'device'}, 'transform_on is "device".*Set train.transform_on to "tensor"'),
        ({'train.sampler': dict(type='ClassBalanced')}, 'a mask'),
        ({'evaluation.transform': [dict(type='CenterCrop')]}, 'has the step CenterCrop, but a mask is of the whole'),
        ({'train.transform': [dict(type='RandAugment')]}, 'RandAugment'),
        ({'model.head': dict(type='Linear')}, "'Linear', which answers for the image.*LinearMask"),
        ({'model.objective': dict(type='SingleLabel')}, 'LinearMask'),
        ({'train.loss': dict(type='CrossEntropyLoss', class_weight='balanced')}, 'cannot choose weights of classes. Give a list'),
    ],
)  # fmt: skip
def test_refusals(folder, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        trainer_of(folder, tmp_path / 'run', **options).train()
    assert not (tmp_path / 'run' / 'log.jsonl').exists()


@pytest.mark.parametrize('key', ['cache_images', 'cache_features'])
def test_caches_change_nothing(folder, tmp_path, monkeypatch, caplog, key):
    monkeypatch.setenv('VET_CACHE_DIR', str(tmp_path / 'cache'))
    options = {'train.max_epochs': 1, 'train.transform': []}
    plain = trainer_of(folder, tmp_path / 'plain', **options).train()
    kept = trainer_of(folder, tmp_path / 'kept', **options, **{f'train.{key}': True}).train()
    assert kept['mIoU'] == plain['mIoU'] and kept['pixel_accuracy'] == plain['pixel_accuracy']
    assert f'train.{key} has no effect on the test images' in caplog.text


def test_images_are_held_out(folder, tmp_path):
    options = {'dataset.val': None, 'evaluation.select': 'best', 'train.max_epochs': 1}
    trainer = trainer_of(folder, tmp_path / 'run', **options)
    assert (len(trainer.data['train']), len(trainer.data['val'])) == (11, 1)
    assert 'held out of train' in trainer.train()['selected']


class Drawn:
    """A user's dataset, in memory."""

    classes = NAMES
    objective = dict(type='Segmentation')

    def __init__(self, first, count=8):
        self.items = [drawing(first + number) for number in range(count)]

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        pixels, mask = self.items[index]
        return pixels, np.where(mask == VOID, 255, mask)


def test_a_dataset_of_a_user(tmp_path):
    made = config(tmp_path)
    del made['dataset']
    arguments = dict(model=made, work_dir=tmp_path / 'run', device='cpu', eval_dataset=Drawn(500))
    assert 0 < build_trainer(**arguments, train_dataset=Drawn(0)).train()['mIoU'] <= 1
    wrong = Drawn(0)
    wrong.items[0] = wrong.items[0][0][:-1], wrong.items[0][1]
    with pytest.raises(
        UserError, match='image 0 of Drawn: the mask has 32 x 32 pixels.*the image has 31 x 32'
    ):
        build_trainer(**{**arguments, 'work_dir': tmp_path / 'wrong'}, train_dataset=wrong).train()


def test_a_task_of_masks_beside_a_task_of_classes(tmp_path, folder):
    def data(split):
        return MultiTask(
            dict(
                mask=MaskFolder(folder, split, classes=NAMES, ignore=[VOID]),
                digit=SmallDigits('train' if split == 'train' else 'test'),
            )
        )

    made = config(folder, **{'train.max_epochs': 1, 'train.transform': [dict(type='Resize', size=[32, 32])]})
    made['model'] |= dict(head=dict(type='Linear'), tasks=dict(mask=dict(head=dict(type='LinearMask'))))
    del made['dataset']
    summary = build_trainer(
        model=made, work_dir=tmp_path, device='cpu', train_dataset=data('train'), eval_dataset=data('test')
    ).train()
    assert {'mask/mIoU', 'digit/accuracy'} <= set(summary)
    classify = pipeline(model=tmp_path, device='cpu')
    pixels = drawing(5, (40, 50))[0]
    assert classify(pixels, task='mask')['masks'][0].shape == (40, 50)
    assert len(classify(pixels, task='digit')['labels']) == 5
