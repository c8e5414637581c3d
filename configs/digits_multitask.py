"""Two tasks with one shared LoRA: the digits 5 and 6, and the digits 7 to 9, on the ViT that ships with vet.
Offline.

    python tools/train.py configs/digits_multitask.py

Every task has its own head and class names. `model.tasks` may also give each task its own backbone, of equal
shape. model.shared=".*A" shares only A. After the training, pipeline('vision-efficient-tuning', folder,
task='low')(image) works. The learning rate is below the quickstart's, because steps of one task at a time are
uneven. docs/tuners.md has the numbers.
"""

_base_ = ['quickstart.py']

tasks = dict(low=[5, 6], high=[7, 8, 9])
dataset = {
    split: dict(
        _delete_=True,
        type='MultiTask',
        tasks={task: dict(type='Digits', split=split, digits=digits) for task, digits in tasks.items()},
    )
    for split in ('train', 'test')
}
model = dict(head=dict(num_classes=None), shared='.*')
train = dict(optimizer=dict(lr=5e-3))
