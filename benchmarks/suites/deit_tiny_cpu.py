"""DeiT-Tiny on small images, one seed: deit_tiny_real by a protocol for a CPU, 14 runs.

    python tools/benchmark.py benchmarks/suites/deit_tiny_cpu.py --data-root DATA \
        --cfg-options model.backbone.checkpoint=FILE

This suite differs from deit_tiny_real only in the following. Flowers has 112 pixels (49 patches, not 196) and
20 epochs. CIFAR-100's part has 64 pixels (16 patches) and 5 epochs. The position embedding is resampled.
There is one seed. The validation images of Flowers are not used. DATA and FILE are the same.
"""

_base_ = ['deit_tiny_real.py']

seeds = [0]
# one set of weights at every size
options = {
    'train.threads': 1,
    'train.dataloader.workers_per_gpu': 0,
    'evaluation.dataloader.workers_per_gpu': 0,
    'evaluation.before': False,
    'model.backbone.kwargs.dynamic_img_size': True,
}
datasets = dict(
    flowers102=dict(val=None, options={'model.backbone.preprocessing.size': 112, 'train.max_epochs': 20}),
    cifar100_subset=dict(options={'model.backbone.preprocessing.size': 64, 'train.max_epochs': 5}),
)
