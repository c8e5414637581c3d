"""LoRA on qkv, r=4 in the first six blocks and r=16 with twice the scale in the last six, DeiT-Tiny, Oxford
Flowers 102.

    python tools/train.py configs/deit_tiny_lora_by_layer_flowers.py

Not measured.
"""

_base_ = ['_base_/models/deit_tiny.py', '_base_/datasets/flowers102.py', '_base_/recipes/vet.py']

model = dict(
    tuners=[
        dict(
            type='LoRA',
            rank={r'blocks\.[0-5]\.': 4, r'blocks\.([6-9]|1[01])\.': 16},
            alpha={r'blocks\.([6-9]|1[01])\.': 32},
        )
    ]
)
