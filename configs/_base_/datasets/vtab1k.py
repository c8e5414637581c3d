"""VTAB-1k for suites: 19 tasks in three groups. Each task trains on its 1,000 images (800 + 200).

The whole test set is for testing. A search trains on the 800 images and is judged on the 200, as VTAB-1k
splits them.
"""

groups = dict(
    natural=['caltech101', 'cifar', 'dtd', 'oxford_flowers102', 'oxford_iiit_pet', 'sun397', 'svhn'],
    specialized=['patch_camelyon', 'eurosat', 'resisc45', 'diabetic_retinopathy'],
    structured=[
        'clevr_count',
        'clevr_dist',
        'dmlab',
        'kitti',
        'dsprites_loc',
        'dsprites_ori',
        'smallnorb_azi',
        'smallnorb_ele',
    ],
)
datasets = {
    task: dict(
        train=dict(type='VTAB', task=task, split='train+val'),
        test=dict(type='VTAB', task=task, split='test'),
        search={split: dict(type='VTAB', task=task, split=split) for split in ('train', 'val')},
        group=group,
    )
    for group, tasks in groups.items()
    for task in tasks
}
