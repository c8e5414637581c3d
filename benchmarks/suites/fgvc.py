"""FGVC: five fine-grained datasets, both ViT-B/16 checkpoints of ImageNet-21k, eleven tuners, three seeds:
330 runs, for a GPU.

    python tools/benchmark.py benchmarks/suites/fgvc.py --data-root DATA

One protocol, adapter_plus2024 (the last epoch counts), but linear probes and prompts have vpt2022's
optimizer, batch and grid of learning rates, base x batch / 256, chosen on validation images by 280 runs that
come first. The grid's weight decay is left at 1e-4 and VPT's length at 10, which VPT chooses too. orig is
normalised as VPT's images were, augreg as it was trained and as SSF's
were. Dogs are images of ImageNet: an ImageNet backbone has seen them.

Into DATA: CUB_200_2011, flowers-102 and stanford_dogs are downloaded where there is a network; nabirds and
stanford_cars are put there by hand (the command says how).
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
