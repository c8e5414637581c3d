"""ModelScope's own training script for this task, with only its import lines changed, as a user runs it."""

import hashlib
import json
import os
import runpy

import numpy as np
import pytest
import timm
import torchvision.datasets
from PIL import Image
from safetensors.torch import save_file
from scipy.io import savemat

from vet.compat.modelscope import DownloadMode, MsDataset, Tasks, Trainers, pipeline
from vet.errors import UnknownNameError

ID = 'damo/cv_vitb16_classification_vision-efficient-tuning-lora'
VIT = 'test_vit'  # timm's own tiny ViT: 160 pixels, 0.4 million parameters
SCRIPT = """
import os
from vet.compat.modelscope import DownloadMode, MsDataset, Tasks, Trainers, build_trainer, pipeline

model_id = 'damo/cv_vitb16_classification_vision-efficient-tuning-lora'
work_dir = os.environ['WORK_DIR']

train_dataset = MsDataset.load(
    'foundation_model_evaluation_benchmark', namespace='damo', subset_name='OxfordFlowers', split='train',
    download_mode=DownloadMode.FORCE_REDOWNLOAD)
eval_dataset = MsDataset.load(
    'foundation_model_evaluation_benchmark', namespace='damo', subset_name='OxfordFlowers', split='eval',
    download_mode=DownloadMode.FORCE_REDOWNLOAD)


def cfg_modify_fn(cfg):
    cfg.model.head.num_classes = 102
    cfg.model.finetune = True
    cfg.train.max_epochs = 1
    cfg.train.lr_scheduler.T_max = 1
    cfg.train.dataloader = dict(batch_size_per_gpu=8, workers_per_gpu=0)
    cfg.evaluation = dict(metrics=['vision-efficient-tuning-metric'], dataloader=dict(workers_per_gpu=0))
    cfg.model.backbone.lora_length = 10
    cfg.model.backbone.name = os.environ['VIT']
    cfg.model.backbone.checkpoint = os.environ['CHECKPOINT']
    return cfg


kwargs = dict(model=model_id, work_dir=work_dir, train_dataset=train_dataset, eval_dataset=eval_dataset,
              cfg_modify_fn=cfg_modify_fn)
trainer = build_trainer(name=Trainers.vision_efficient_tuning, default_args=kwargs)
trainer.train()
result = trainer.evaluate()
print('result:', result)

classify = pipeline(Tasks.vision_efficient_tuning, os.path.join(work_dir, 'output'), model_revision='v1.0.2')
print('labels:', classify(os.environ['IMAGE'])['labels'])
"""


@pytest.fixture(scope='module')
def flowers(tmp_path_factory):
    """A data root with Oxford Flowers in the official layout, 12 images of it; and what makes
    torchvision take its lists.
    """
    root = tmp_path_factory.mktemp('data')
    folder = root / 'flowers-102'
    (folder / 'jpg').mkdir(parents=True)
    for number in range(1, 13):
        Image.new('RGB', (40, 30), (number * 20, 90, 0)).save(folder / f'jpg/image_{number:05d}.jpg')
    savemat(folder / 'imagelabels.mat', dict(labels=np.array([[1, 102, 77, 5] * 3], np.uint8)))
    savemat(folder / 'setid.mat', dict(trnid=[[1, 2, 3, 4]], valid=[[5, 6]], tstid=[[7, 8, 9, 10, 11, 12]]))
    lists = {
        kind: (name, hashlib.md5((folder / name).read_bytes()).hexdigest())
        for kind, name in (('label', 'imagelabels.mat'), ('setid', 'setid.mat'))
    }
    return root, lists


def stamps(root):
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in root.rglob('*')}


def run_script(folder, lists, environment):
    """Of a child process: runs script.py as `python script.py` does. Writes both streams into files."""
    for number, name in ((1, 'out'), (2, 'err')):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), number)
    os.environ |= environment
    # torchvision checks the md5 of the two lists; the fixture's lists pass, and the script stays as it is
    torchvision.datasets.Flowers102._file_dict |= lists
    runpy.run_path(str(folder / 'script.py'), run_name='__main__')


def test_the_script(flowers, process, tmp_path):
    root, lists = flowers
    network = timm.create_model(VIT, num_classes=0)
    save_file(network.state_dict(), tmp_path / 'vit.safetensors')
    (tmp_path / 'script.py').write_text(SCRIPT)
    before = stamps(root)
    image = root / 'flowers-102/jpg/image_00007.jpg'
    environment = dict(
        WORK_DIR=str(tmp_path / 'work'),
        VET_DATA_ROOT=str(root),
        VIT=VIT,
        CHECKPOINT=str(tmp_path / 'vit.safetensors'),
        IMAGE=str(image),
        CUDA_VISIBLE_DEVICES='',
    )
    child = process(run_script, tmp_path, lists, environment)
    child.join()
    out, err = ((tmp_path / name).read_text() for name in ('out', 'err'))
    assert child.exitcode == 0, err
    assert 'OxfordFlowers is not downloaded again' in err and stamps(root) == before
    result, labels = out.strip().splitlines()[-2:]
    metrics = eval(result.removeprefix('result: '))
    assert set(metrics) == {'accuracy'} and 0 <= metrics['accuracy'] <= 1
    names = torchvision.datasets.Flowers102.classes
    assert len(eval(labels.removeprefix('labels: '))) == 5 and set(
        eval(labels.removeprefix('labels: '))
    ) <= set(names)
    configuration = json.loads((tmp_path / 'work/output/configuration.json').read_text())
    assert configuration['classes'] == names
    assert configuration['model']['tuners'] == [dict(type='LoRA', rank=10)]
    assert configuration['model']['backbone']['name'] == VIT
    config = json.loads((tmp_path / 'work/config.json').read_text())
    assert config['train']['max_epochs'] == config['train']['lr_scheduler']['T_max'] == 1


def test_splits_and_download_mode(flowers, monkeypatch):
    root, lists = flowers
    monkeypatch.setenv('VET_DATA_ROOT', str(root))
    monkeypatch.setattr(
        torchvision.datasets.Flowers102, '_file_dict', torchvision.datasets.Flowers102._file_dict | lists
    )
    before = stamps(root)

    def load(split, **options):
        return MsDataset.load(
            'foundation_model_evaluation_benchmark',
            namespace='damo',
            subset_name='OxfordFlowers',
            split=split,
            **options,
        )

    assert load('train').targets == [0, 101, 76, 4]
    # the official test, never val
    assert load('eval').targets == load('test').targets == [76, 4, 0, 101, 76, 4]
    with pytest.warns(UserWarning, match=f'OxfordFlowers is not downloaded again: the copy under {root}'):
        load('train', download_mode=DownloadMode.FORCE_REDOWNLOAD)
    assert stamps(root) == before


def test_names():
    assert Trainers.vision_efficient_tuning == Tasks.vision_efficient_tuning == 'vision-efficient-tuning'
    with pytest.raises(UnknownNameError, match="unknown dataset 'foundation'"):
        MsDataset.load('foundation')
    with pytest.raises(UnknownNameError, match="unknown subset_name 'Flowers'. Did you mean 'OxfordFlowers'"):
        MsDataset.load('foundation_model_evaluation_benchmark', subset_name='Flowers')


def test_pipeline_ignores_the_revision(trainer):
    image = Image.new('L', (8, 8), 80)
    assert pipeline(
        Tasks.vision_efficient_tuning, trainer.folder.output, model_revision='v1.0.2', device='cpu'
    )(image) == pipeline(task=Tasks.vision_efficient_tuning, model=str(trainer.folder.output), device='cpu')(
        image
    )
