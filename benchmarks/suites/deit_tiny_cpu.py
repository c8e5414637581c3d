"""DeiT-Tiny on small images, one seed: deit_tiny_real by a protocol for a CPU, 14 runs.

    python tools/benchmark.py benchmarks/suites/deit_tiny_cpu.py --data-root DATA --cfg-options
    model.backbone.checkpoint=FILE

Smaller than deit_tiny_real in this, and in nothing else: Flowers at 112 pixels (49 patches, not 196) for 20
epochs, CIFAR-100's part at 64 pixels (16 patches) for 5, the position embedding resampled; one seed; the
validation images of Flowers are not looked at. DATA and FILE as there.
"""

_base_ = ['deit_tiny_real.py']

seeds = [0]
options = {
    'train.threads': 1,
    'train.dataloader.workers_per_gpu': 0,
    'evaluation.dataloader.workers_per_gpu': 0,
    'evaluation.before': False,
    'model.backbone.kwargs.dynamic_img_size': True,
}  # one set of weights at every size
datasets = dict(
    flowers102=dict(val=None, options={'model.backbone.preprocessing.size': 112, 'train.max_epochs': 20}),
    cifar100_subset=dict(options={'model.backbone.preprocessing.size': 64, 'train.max_epochs': 5}),
)
