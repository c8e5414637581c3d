"""Fine-tuning in two stages, MobileNetV2 with concatenated pools and a new MLP head: jellyfish and mushrooms.

    python tools/train.py configs/finetune_jellyfish_mushroom.py --data-root DATA_ROOT \
        --cfg-options model.backbone.checkpoint=DATA_ROOT/weights/mobilenetv2_100.safetensors

First the head trains alone, then everything trains, the head with ten times the backbone's learning rate. The
batch norms of this checkpoint are folded into its convolutions. Their scales stay frozen, which keeps them in
eval. For other checkpoints, write tuners=[dict(type='Full')].

This config is a walk-through, not an accuracy claim: the weights have seen these ImageNet images in training.
docs/tuners.md has the numbers.
"""

dataset = dict(
    train=dict(type='ImageFolder', path='seed-images/jellyfish-mushroom', split='train'),
    test=dict(type='ImageFolder', path='seed-images/jellyfish-mushroom', split='test'),
)
model = dict(
    backbone=dict(
        type='timm',
        name='mobilenetv2_100',
        kwargs=dict(global_pool='catavgmax', pad_type='same'),
        preprocessing=dict(mean=[0.5] * 3, std=[0.5] * 3),
    ),
    tuners=[dict(type='Partial', names=r'.*(conv\w*\.weight|bn\d\.bias)')],
    head=dict(type='MLP', hidden=512, dropout=0.5),
)
train = dict(
    stages=[dict(epochs=10, train=r'head\..*', head_lr=1e-3), dict(epochs=10, train='.*')],
    optimizer=dict(type='AdamW', lr=3e-5, weight_decay=0.01),
    head_lr=3e-4,
    accumulate=2,
    dataloader=dict(batch_size_per_gpu=8, workers_per_gpu=0),
    transform=[dict(type='RandomResizedCrop', scale=[0.5, 1.0]), dict(type='RandomHorizontalFlip')],
)
evaluation = dict(dataloader=dict(workers_per_gpu=0))
