"""vgg19(x) + B A x, a low-rank branch from the pixels to the 1,000 logits of the frozen VGG-19: five
goldfish.

    python tools/train.py configs/vgg19_pixels_goldfish.py --data-root DATA_ROOT

1,515,280 parameters, 6 MB, beside the 575 MB of VGG-19. Soft targets: 0.9 on the class, 0.1 spread over all.
There are no test images, so no accuracy is measured.
"""

dataset = dict(
    train=dict(
        type='ImageFolder', path='seed-images/goldfish', classes='imagenet-1k', label_map=dict(goldfish=1)
    )
)
model = dict(
    backbone=dict(type='torchvision', name='vgg19', weights='IMAGENET1K_V1', classifier=True),
    tuners=[dict(type='PixelBranch', rank=10)],
    head=dict(type='Pretrained'),
)
train = dict(
    max_epochs=10,
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.0),
    dataloader=dict(batch_size_per_gpu=5, workers_per_gpu=0),
    transform=[dict(type='EvaluationCrop')],
    label_smoothing=0.1,
)
evaluation = dict(dataloader=dict(workers_per_gpu=0))
