"""DeiT-Tiny on Oxford Flowers and a part of CIFAR-100, seven tuners, three seeds: 42 runs, for a GPU.

    python tools/benchmark.py benchmarks/suites/deit_tiny_real.py --data-root DATA \
        --cfg-options model.backbone.checkpoint=FILE

On a CPU, take one seed and fewer epochs: add seeds=[0] train.max_epochs=5.

DATA holds flowers-102, which is downloaded if there is a network, and cifar100-subset/{train,test}/<class>/.
The latter is a part of CIFAR-100 as image files; its accuracy is not CIFAR-100's. FILE is
deit_tiny_patch16_224.safetensors. Without the option, the weights come from timm's hub. On Flowers the suite
trains on the 1,020 images of the training split, and only reports results on the validation split.
"""

_base_ = ['../../configs/_base_/recipes/vet.py']

backbones = dict(deit_tiny=dict(type='timm', name='deit_tiny_patch16_224.fb_in1k'))
datasets = dict(
    flowers102={split: dict(type='Flowers102', split=split) for split in ('train', 'val', 'test')},
    cifar100_subset={
        split: dict(type='ImageFolder', path='cifar100-subset', split=split) for split in ('train', 'test')
    },
)
tuners = dict(
    linear=[dict(type='LinearProbe')],
    full=dict(tuners=[dict(type='Full')], options={'train.optimizer.lr': 1e-4, 'train.head_lr': 2e-3}),
    lora=[dict(type='LoRA', rank=8)],
    adapter=[dict(type='Adapter', width=8)],
    vpt_deep=[dict(type='VPT', length=10)],
    ssf=[dict(type='SSF')],
    bitfit=[dict(type='BitFit')],
)
seeds = [0, 1, 2]
