"""Masks in pipeline, on the command line, in reports, exports and on cards, and in two processes."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.engine.runs import TWO_PROCESSES, small
from tests.objectives.masks import NAMES, VOID, drawing, trainer_of, write_folder
from vet import build_trainer
from vet.cli.vet import main
from vet.core.objective import build_objective
from vet.datasets.mask_folder import MaskFolder
from vet.errors import UserError
from vet.hub.card import model_card
from vet.hub.export import export
from vet.hub.model_folder import load_model
from vet.pipelines import pipeline


@pytest.fixture(scope='module')
def drawings(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp('drawings'))


@pytest.fixture(scope='module')
def trainer(drawings, tmp_path_factory):
    options = {'train.max_epochs': 6, 'evaluation.report': True, 'model.head': dict(type='FPNMask', width=16)}
    made = trainer_of(drawings, tmp_path_factory.mktemp('run'), **options)
    made.train()
    return made


def test_answers_have_modelscopes_form(trainer):
    pixels, mask = drawing(77, (48, 60))  # larger than the network's 32 x 32
    answer = pipeline(model=trainer.folder.output, device='cpu')(pixels)
    assert list(answer) == ['masks', 'labels', 'scores']
    assert all(one.shape == (48, 60) and one.dtype == np.uint8 and one.max() == 1 for one in answer['masks'])
    assert np.array_equal(sum(answer['masks']), np.ones((48, 60)))
    sizes = [int(one.sum()) for one in answer['masks']]
    assert sizes == sorted(sizes, reverse=True) and answer['labels'][0] == 'ground'
    assert all(1 / 3 <= score <= 1 for score in answer['scores'])
    said = sum(NAMES.index(label) * one for label, one in zip(answer['labels'], answer['masks']))
    assert (said == mask)[mask != VOID].mean() > 0.6


def test_masks_come_back_in_the_size_of_each_image(trainer):
    classify = pipeline(model=trainer.folder.output, device='cpu')
    images = [drawing(number, size)[0] for number, size in enumerate([(32, 32), (20, 33), (70, 40)])]
    answers = classify(images, batch_size=2)
    assert [answer['masks'][0].shape for answer in answers] == [(32, 32), (20, 33), (70, 40)]
    for one, other in zip(answers, trainer.predict(images)):
        assert one['labels'] == other['labels'] and all(map(np.array_equal, one['masks'], other['masks']))
    assert len(classify(images[0], topk=1)['labels']) == 1
    with pytest.raises(UserError, match='the model gives masks, which have no single score'):
        classify(images[0], threshold=0.5)


def test_a_resized_view_gives_masks_of_the_image(drawings, tmp_path):
    options = {'train.max_epochs': 1, 'evaluation.transform': [dict(type='Resize', size=[32, 32])]}
    trainer = trainer_of(drawings, tmp_path, **options)
    trainer.train()
    answer = pipeline(model=tmp_path, device='cpu')(drawing(1, (41, 37))[0])
    assert answer['masks'][0].shape == (41, 37)


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, 'argv', ['vet', *map(str, arguments)])
    main()


def test_predict_saves_masks(trainer, drawings, tmp_path, monkeypatch, capsys):
    images = drawings / 'test' / 'images'
    arguments = ('predict', trainer.folder.output, images / '0.png', images / '1.png', '--device', 'cpu')
    run(monkeypatch, *arguments, '--save-masks', tmp_path / 'masks', '--format', 'json')
    found = json.loads(capsys.readouterr().out)
    assert [set(answer) for answer in found] == [{'image', 'labels', 'scores', 'shares'}] * 2
    assert sorted(path.name for path in (tmp_path / 'masks').iterdir()) == [
        '0-drawn.jpg', '0.png', '1-drawn.jpg', '1.png', 'classes.txt',
    ]  # fmt: skip
    mask = Image.open(tmp_path / 'masks' / '0.png')
    answer = pipeline(model=trainer.folder.output, device='cpu')(images / '0.png')
    assert mask.mode == 'P' and (tmp_path / 'masks' / 'classes.txt').read_text().split() == NAMES
    for label, one in zip(answer['labels'], answer['masks']):
        assert np.array_equal(np.asarray(mask) == NAMES.index(label), one > 0)
    assert found[0]['shares'] == [pytest.approx(one.mean()) for one in answer['masks']]
    drawn = np.asarray(Image.open(tmp_path / 'masks' / '0-drawn.jpg'), float)
    assert drawn.shape == (32, 32, 3) and 5 < np.abs(drawn - np.asarray(Image.open(images / '0.png'))).mean()
    run(monkeypatch, *arguments, '--format', 'csv')
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert rows[0]['label'].split('|') == answer['labels'] and rows[0]['share'] and not rows[0]['error']
    run(monkeypatch, *arguments)
    assert '% of the pixels' in capsys.readouterr().out


def test_masks_replace_neither_images_nor_masks_of_other_classes(
    trainer, drawings, tmp_path, monkeypatch, capsys
):
    images = drawings / 'test' / 'images'
    before = (images / '0.png').read_bytes()
    (tmp_path / 'other').mkdir()
    (tmp_path / 'other' / 'classes.txt').write_text('cat\n')
    for folder, words in ((images, 'could be written over'), (tmp_path / 'other', 'masks of other classes')):
        arguments = ('predict', trainer.folder.output, images / '0.png', '--device', 'cpu')
        with pytest.raises(SystemExit):
            run(monkeypatch, *arguments, '--save-masks', folder)
        assert words in ' '.join(capsys.readouterr().err.split())
    assert (images / '0.png').read_bytes() == before
    assert (tmp_path / 'other' / 'classes.txt').read_text() == 'cat\n'


def test_explanations_of_masks_are_refused(trainer, drawings, tmp_path, monkeypatch, capsys):
    image = drawings / 'test' / 'images' / '0.png'
    with pytest.raises(SystemExit):
        run(
            monkeypatch, 'explain', trainer.folder.output, image, '--out', tmp_path / 'out', '--device', 'cpu'
        )
    assert "'Segmentation' gives an answer for each pixel" in capsys.readouterr().err


def test_saved_masks_are_a_dataset(trainer, drawings, tmp_path, monkeypatch, capsys):
    images = drawings / 'test' / 'images'
    run(
        monkeypatch,
        'predict',
        trainer.folder.output,
        images,
        '--device',
        'cpu',
        '--save-masks',
        tmp_path / 'masks',
    )
    (tmp_path / 'images').symlink_to(images)
    made = MaskFolder(tmp_path, classes='masks/classes.txt')
    assert made.classes == NAMES and len(made) == 5


def test_vet_test_repeats_the_result(trainer, monkeypatch, capsys):
    run(monkeypatch, 'test', trainer.folder.path, '--device', 'cpu')
    found = json.loads(capsys.readouterr().out)
    summary = json.loads((trainer.folder.path / 'summary.json').read_text())
    assert found['mIoU'] == summary['mIoU'] and found['pixel_accuracy'] == summary['pixel_accuracy']


def test_the_report_and_the_predictions(trainer):
    page = (trainer.folder.path / 'report.html').read_text()
    assert 'Intersection over union, precision and recall of each class' in page and 'IoU' in page
    assert 'Worst answers' in page and 'data:image/jpeg' in page
    rows = list(csv.DictReader((trainer.folder.path / 'predictions.csv').open()))
    assert len(rows) == 5 and 'ground' in rows[0]['label'] and '%' in rows[0]['answer']


def test_the_card(trainer):
    card = model_card(trainer.folder.output)
    assert 'a model that finds the class of each pixel of an image' in card and 'mIoU' in card
    assert 'pipeline_tag: image-segmentation' in card and 'FPNMask' in card


@pytest.mark.parametrize('to', ['torch-export', pytest.param('onnx', marks=pytest.mark.slow)])
@pytest.mark.slow
def test_an_export_gives_the_models_logits(trainer, tmp_path, to):
    done = export(trainer.folder.output, tmp_path / f'model.{"pt2" if to == "torch-export" else "onnx"}', to)
    assert done.difference < 1e-3
    if to == 'torch-export':
        images = torch.randn(2, 3, 32, 32)
        network = torch.export.load(done.path).module()
        with torch.no_grad():
            torch.testing.assert_close(
                network(images), load_model(trainer.folder.output)(images), rtol=1e-3, atol=1e-3
            )


def test_a_folder_may_not_say_another_overlap(trainer, tmp_path):
    configuration = json.loads((trainer.folder.output / 'configuration.json').read_text())
    configuration['model']['objective'] = dict(type='Segmentation', overlap=0.999)
    (tmp_path / 'configuration.json').write_text(json.dumps(configuration))
    with pytest.raises(UserError, match='model.objective.overlap is 0.999'):
        load_model(tmp_path)
    assert build_objective(dict(type='Segmentation', overlap=0.2), NAMES).overlap == 0.2


def test_a_model_of_classes_saves_no_masks(tmp_path, monkeypatch, capsys):
    trainer = small(tmp_path / 'run', **{'train.max_epochs': 1})
    trainer.train()
    Image.new('RGB', (8, 8)).save(tmp_path / 'a.png')
    with pytest.raises(SystemExit):
        run(
            monkeypatch,
            'predict',
            trainer.folder.output,
            tmp_path / 'a.png',
            '--save-masks',
            tmp_path / 'masks',
        )
    assert 'the model gives no masks' in capsys.readouterr().err and not (tmp_path / 'masks').exists()


@pytest.mark.slow
def test_two_processes_count_every_pixel_once(drawings, tmp_path, python, monkeypatch, capsys):
    done = python(*TWO_PROCESSES, '-m', 'tests.objectives.masks', drawings, tmp_path, CUDA_VISIBLE_DEVICES='')
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / 'summary.json').read_text())
    run(monkeypatch, 'test', tmp_path, '--device', 'cpu')  # five images, in one process
    assert json.loads(capsys.readouterr().out)['mIoU'] == pytest.approx(summary['mIoU'], abs=1e-9)


CAMVID = Path(__file__).parents[3] / 'shared' / 'data' / 'camvid'


@pytest.mark.slow
@pytest.mark.skipif(not CAMVID.is_dir(), reason='needs shared/data/camvid beside the repository')
def test_the_config_of_camvid(tmp_path):
    trainer = build_trainer(
        model='configs/deit_tiny_lora_camvid.py', data_root=CAMVID.parent, work_dir=tmp_path, device='cpu',
        cfg_options={
            'model.backbone.checkpoint': str(CAMVID.parent / 'weights/deit_tiny_patch16_224.safetensors'),
            'train.max_epochs': 1, 'train.lr_scheduler.warmup_epochs': 0, 'evaluation.before': False,
            'dataset.val': None, 'train.dataloader.workers_per_gpu': 0,
        },
    )  # fmt: skip
    assert [len(trainer.data[split]) for split in ('train', 'test')] == [367, 233]
    assert trainer.train()['mIoU'] > 0.25
