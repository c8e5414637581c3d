"""Three LoRA updates at the same sites, trained together, W0 + sum_i B_i A_i: DeiT-Tiny, Oxford Flowers 102.

    python tools/train.py configs/deit_tiny_lora_ensemble_flowers.py

For ensembles of runs trained apart, use `python tools/combine.py OUT RUN RUN … --method sum`.
Not measured.
"""

_base_ = ['_base_/models/deit_tiny.py', '_base_/datasets/flowers102.py', '_base_/recipes/vet.py']

model = dict(
    tuners=[
        dict(type='LoRA', rank=4, alpha=4),
        dict(type='LoRA', rank=4, alpha=8),
        dict(type='LoRA', rank=2, alpha=8),
    ]
)
