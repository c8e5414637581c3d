"""LoRA under PEFT's names for its options, DeiT-Tiny and a new head: jellyfish and mushrooms.

    python tools/train.py configs/deit_tiny_peft_names_jellyfish_mushroom.py --data-root DATA_ROOT \
        --cfg-options model.backbone.checkpoint=DATA_ROOT/weights/deit_tiny_patch16_224.safetensors

`pipeline` reads the run's output/ folder, or a folder of build_trainer(…).save_pretrained(folder).

This config is a walk-through, not an accuracy claim: the weights have seen these ImageNet images in training.
docs/tuners.md has the numbers.
"""

_base_ = ['_base_/models/deit_tiny.py']

dataset = dict(
    train=dict(type='ImageFolder', path='seed-images/jellyfish-mushroom', split='train'),
    test=dict(type='ImageFolder', path='seed-images/jellyfish-mushroom', split='test'),
)
model = dict(tuners=[dict(type='LoRA', r=16, lora_alpha=16, lora_dropout=0.1, target_modules=['qkv'])])
train = dict(
    max_epochs=10,
    optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.01),
    dataloader=dict(batch_size_per_gpu=8, workers_per_gpu=0),
)
evaluation = dict(dataloader=dict(workers_per_gpu=0))
