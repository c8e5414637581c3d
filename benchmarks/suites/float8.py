"""The cost of float8 products in accuracy: LoRA r=10, DeiT-Tiny, Oxford Flowers, 3 precisions, 3 seeds.

    python tools/benchmark.py benchmarks/suites/float8.py --jobs 2 --data-root DATA \
        --cfg-options model.backbone.checkpoint=FILE

The protocol is that of deit_tiny_cpu, for 10 epochs: images of 112 pixels, the 1,020 of the training split. A
CPU computes float8 like a GPU, but no faster than float32. DATA and FILE are the same too. docs/speed.md has
the accuracies.
"""

_base_ = ['deit_tiny_cpu.py']

datasets = dict(
    _delete_=True,
    flowers102=dict(
        train=dict(type='Flowers102', split='train'),
        test=dict(type='Flowers102', split='test'),
        options={'model.backbone.preprocessing.size': 112, 'train.max_epochs': 10},
    ),
)
tuners = dict(
    _delete_=True,
    lora_fp32=dict(tuners=[dict(type='LoRA', rank=10)], options={'train.precision': 'fp32'}),
    lora_bf16=dict(tuners=[dict(type='LoRA', rank=10)], options={'train.precision': 'bf16'}),
    lora_fp8=dict(tuners=[dict(type='LoRA', rank=10)], options={'train.precision': 'fp8'}),
)
seeds = [0, 1, 2]
baseline = 'lora_fp32'
