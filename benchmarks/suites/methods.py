"""Every method: DeiT-Tiny, three datasets, a rate chosen on validation for each, three seeds: 603 runs.

    python tools/benchmark.py benchmarks/suites/methods.py --data-root DATA \
        --cfg-options model.backbone.checkpoint=FILE

One command makes the whole campaign. First come the 804 runs that choose a learning rate out of the grid,
on validation images alone, for each method and dataset. Then come three seeds at that rate, of which the
last epoch counts. Then come the tables, with mean ranks, Friedman's test, and the differences to LoRA that
are more than the noise of the seeds. If the command is killed, the same command goes on. The tables say
which rates lie at the edge of the grid.

Flowers trains on its 1,020 training images at 112 pixels, for 20 epochs; its validation split chooses.
CIFAR-100's part has 64 pixels and 5 epochs; a tenth of the training images is held out and chooses. CamVid
has masks, images of 128 x 176 pixels and 12 epochs; its validation split chooses. The methods have their
default dropout and no stochastic depth.

DATA holds flowers-102, cifar100-subset/{train,test}/<class>/ and camvid/{train,val,test}/{images,masks}/.
FILE is deit_tiny_patch16_224.safetensors. Without the option, the weights come from timm's hub.
"""

_base_ = ['../../configs/_base_/recipes/vet.py']

backbones = dict(deit_tiny=dict(type='timm', name='deit_tiny_patch16_224.fb_in1k'))
flowers = {split: dict(type='Flowers102', split=split) for split in ('train', 'val', 'test')}
classes = 'sky building pole road pavement tree sign fence car pedestrian cyclist'.split()
camvid = {
    split: dict(type='MaskFolder', path='camvid', split=split, classes=classes, ignore=[11])
    for split in ('train', 'val', 'test')
}
size = [128, 176]
datasets = dict(
    flowers102=dict(
        train=flowers['train'],
        test=flowers['test'],
        search=dict(val=flowers['val']),
        options={'model.backbone.preprocessing.size': 112, 'train.max_epochs': 20},
    ),
    cifar100_subset=dict(
        train=dict(type='ImageFolder', path='cifar100-subset', split='train'),
        test=dict(type='ImageFolder', path='cifar100-subset', split='test'),
        options={'model.backbone.preprocessing.size': 64, 'train.max_epochs': 5},
    ),
    camvid=dict(
        train=camvid['train'],
        test=camvid['test'],
        search=dict(val=camvid['val']),
        options={
            'model.backbone.preprocessing.size': size,
            'model.head': dict(type='LinearMask'),
            'train.max_epochs': 12,
            'train.loss': dict(type='CrossEntropyDiceLoss'),
            'train.head_lr': 1e-2,
            'train.dataloader.batch_size_per_gpu': 8,
            'train.transform': [dict(type='Resize', size=size), dict(type='RandomHorizontalFlip')],
            'evaluation.transform': [dict(type='Resize', size=size)],
            'evaluation.metrics': ['mIoU', 'pixel_accuracy'],
        },
    ),
)
tuners = {
    'LinearProbe': [dict(type='LinearProbe')],
    'Full': dict(tuners=[dict(type='Full')], grid={'train.optimizer.lr': [2e-5, 1e-4, 5e-4, 2.5e-3]}),
    'Partial': [dict(type='Partial')],
    'BitFit': [dict(type='BitFit')],
    'NormTune': [dict(type='NormTune')],
    'DiffFit': [dict(type='DiffFit')],
    'GPS': [dict(type='GPS')],
    'LoRA': [dict(type='LoRA', rank=10)],
    'LoRA-qv': [dict(type='LoRA', rank=8, parts='qv')],
    'LoRA-weight': [dict(type='LoRA', rank=4, at='weight')],
    'rsLoRA': [dict(type='LoRA', rank=10, variant='rslora')],
    'DoRA': [dict(type='LoRA', rank=10, variant='dora')],
    'PiSSA': [dict(type='LoRA', rank=10, variant='pissa')],
    'VeRA': [dict(type='LoRA', rank=256, variant='vera')],
    'LoRA-ensemble': [dict(type='LoRA', rank=4), dict(type='LoRA', rank=4), dict(type='LoRA', rank=2)],
    'OLoRA': [dict(type='LoRA', rank=10, variant='olora')],
    'EVA': [dict(type='LoRA', rank=10, variant='eva')],
    'CorDA': [dict(type='LoRA', rank=10, variant='corda')],
    'LoRA-GA': [dict(type='LoRA', rank=10, variant='lora_ga')],
    'DyLoRA': [dict(type='DyLoRA', rank=8)],
    'AdaLoRA': [dict(type='AdaLoRA')],
    'MoLoRA': [dict(type='MoLoRA', rank=4)],
    'LoHa': [dict(type='LoHa')],
    'LoKr': [dict(type='LoKr')],
    'FacT-TT': [dict(type='FacT', rank=16, variant='tt')],
    'FacT-TK': [dict(type='FacT', rank=32, variant='tk')],
    'HiRA': [dict(type='HiRA')],
    'HRA': [dict(type='HRA')],
    'OFT': [dict(type='OFT')],
    'BOFT': [dict(type='BOFT', block=8, factors=2)],
    'FourierFT': [dict(type='FourierFT')],
    'C3A': [dict(type='C3A', block=64)],
    'RandLoRA': [dict(type='RandLoRA')],
    'GLoRA': [dict(type='GLoRA')],
    'MLAE': [dict(type='MLAE')],
    'Hydra': [dict(type='Hydra')],
    'SNELL': [dict(type='SNELL')],
    'PACE': [dict(type='PACE')],
    'IA3': [dict(type='IA3')],
    'SSF': [dict(type='SSF')],
    'RLRR': [dict(type='RLRR')],
    'ARC': [dict(type='ARC')],
    'RepAdapter': [dict(type='RepAdapter')],
    'Adapter': [dict(type='Adapter')],
    'Houlsby': [dict(type='Houlsby')],
    'Pfeiffer': [dict(type='Pfeiffer')],
    'Intermediate': [dict(type='Intermediate')],
    'AdaptFormer': [dict(type='AdaptFormer', width=64, dropout=0.1)],
    'AdaptFormer-normed': [dict(type='AdaptFormer', width=64, dropout=0.1, normed=True)],
    'AdapterPlus': [dict(type='AdapterPlus')],
    'Convpass': [dict(type='Convpass')],
    'UTuning': [dict(type='UTuning')],
    'Mona': [dict(type='Mona')],
    'Compacter': [dict(type='Compacter')],
    'SCT': [dict(type='SCT', channels=24)],
    'SCT-mlp': [dict(type='SCT', channels=24, mode='mlp')],
    'SCT-qkv': [dict(type='SCT', channels=24, mode='qkv')],
    'SCT-output': [dict(type='SCT', channels=24, mode='output')],
    'VPT-deep': [dict(type='VPT', length=10)],
    'VPT-shallow': [dict(type='VPT', length=10, depth='shallow')],
    'Prefix': [dict(type='Prefix', length=10)],
    'SideTuning': [dict(type='SideTuning')],
    'LadderSide': [dict(type='LadderSide')],
    'ResTuningBypass': [dict(type='ResTuningBypass')],
    'DTL': [dict(type='DTL')],
    'DTL-plus': [dict(type='DTL', kernel=3)],
    'PixelBranch': [dict(type='PixelBranch')],
}
grid = {'train.optimizer.lr': [2e-4, 1e-3, 5e-3, 2.5e-2]}
seeds = [0, 1, 2]
baseline = 'LoRA'
options = {
    'train.threads': 1,
    'train.dataloader.workers_per_gpu': 0,
    'evaluation.dataloader.workers_per_gpu': 0,
    'evaluation.before': False,
    'model.backbone.kwargs.dynamic_img_size': True,
}
