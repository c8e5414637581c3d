"""VPT's recipe for prompts on FGVC.   Jia et al. 2022, arXiv:2203.12119, and its released code

SGD with momentum. 100 epochs, the first 10 of warmup. Images of 256 pixels on the short side, a random crop
of 224 and a flip. The learning rate is base x batch / 256, with base out of 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25
and 50: at batch 128, 0.05 to 25. Validation images choose the rate and the weight decay, out of 0, 1e-4, 1e-3
and 1e-2. Here stand the middle of the rates (base 2.5) and 1e-4. benchmarks/suites/fgvc.py gives the grid.

Linear probes: batch 1024, the same bases and 0.05, so the rate is 4 x base. Full: AdamW, batch 384, 5 epochs
of warmup, the rate 1.5 x base with base out of 1e-4, 5e-4, 1e-3 and 5e-3. The code decays Full by 0.01,
whatever weight decay is chosen.

This config does not set ImageNet's mean and std; a suite sets them by 'model.backbone.preprocessing'. The
code changes the rate by epoch, from 0 in the first; vet changes the rate by iteration. The code decays
prompts, and all of SGD's biases except the head's; vet decays neither. The code leaves out the validation
images also in the final runs; vet trains on all of `dataset.train`.
"""

train = dict(
    max_epochs=100,
    optimizer=dict(type='SGD', lr=1.25, momentum=0.9, weight_decay=1e-4),
    lr_scheduler=dict(type='CosineAnnealingLR', warmup_epochs=10),
    dataloader=dict(batch_size_per_gpu=128, workers_per_gpu=4),
    transform=[
        dict(type='Resize', size=256, interpolation='bilinear'),
        dict(type='RandomCrop', size=224),
        dict(type='RandomHorizontalFlip'),
    ],
)
evaluation = dict(
    metrics='accuracy',
    select='last',
    every=10,
    dataloader=dict(batch_size_per_gpu=128, workers_per_gpu=4),
    transform=[dict(type='Resize', size=256, interpolation='bilinear'), dict(type='CenterCrop', size=224)],
)
