"""FGVC: five datasets, two ViT-B/16 of ImageNet-21k, eleven tuners, three seeds: 330 runs, for a GPU.

    python tools/benchmark.py benchmarks/suites/fgvc.py --data-root DATA

All runs have one protocol, adapter_plus2024 (the last epoch counts), except linear probes and prompts. These
have vpt2022's optimizer, batch and grid of learning rates, base x batch / 256. 280 runs that come first
choose the rate on validation images. The weight decay stays at 1e-4 and VPT's length at 10; VPT's authors
choose these too. Images for orig are normalised as VPT's images were. Images for augreg are normalised as in
its training and in SSF's. Dogs are images of ImageNet, so an ImageNet backbone has seen them.

DATA holds CUB_200_2011, flowers-102 and stanford_dogs, which are downloaded if there is a network. DATA also
holds nabirds and stanford_cars, which you put there by hand (the command says how).
"""

_base_ = ['../../configs/_base_/recipes/adapter_plus2024.py', '../../configs/_base_/datasets/fgvc.py']

backbones = dict(
    vitb16_orig=dict(
        type='timm',
        name='vit_base_patch16_224.orig_in21k',
        preprocessing=dict(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
    ),
    vitb16_augreg=dict(type='timm', name='vit_base_patch16_224.augreg_in21k'),
)
sgd = {'train.optimizer.type': 'SGD', 'train.optimizer.momentum': 0.9, 'train.lr_scheduler.eta_min': 0}
prompts = dict(
    options={**sgd, 'train.dataloader.batch_size_per_gpu': 128},
    grid={'train.optimizer.lr': [0.05, 0.125, 0.25, 0.5, 1.25, 2.5, 5.0, 12.5, 25.0]},
)
tuners = dict(
    linear=dict(
        tuners=[dict(type='LinearProbe')],
        options={**sgd, 'train.dataloader.batch_size_per_gpu': 1024},
        grid={'train.optimizer.lr': [0.2, 0.4, 1.0, 2.0, 4.0, 10.0, 20.0, 40.0, 100.0, 200.0]},
    ),
    full=dict(tuners=[dict(type='Full')], options={'train.optimizer.lr': 1e-4}),
    lora=[dict(type='LoRA', rank=8)],
    adapter=[dict(type='Adapter', width=8)],
    vpt_shallow=dict(tuners=[dict(type='VPT', length=10, depth='shallow')], **prompts),
    vpt_deep=dict(tuners=[dict(type='VPT', length=10)], **prompts),
    bitfit=[dict(type='BitFit')],
    ssf=[dict(type='SSF')],
    arc=[dict(type='ARC')],
    rlrr=[dict(type='RLRR')],
    gps=[dict(type='GPS')],
)
seeds = [0, 1, 2]
options = {'model.backbone.kwargs.drop_path_rate': 0.1}
