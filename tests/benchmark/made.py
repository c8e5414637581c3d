"""Result files made by hand for the tests of tables, reports and comparisons: all that a run's file
holds, with given numbers.
"""

from vet.benchmark.cells import run_name
from vet.benchmark.results import read_results, write_result
from vet.benchmark.suite import Suite

B16 = 'vit_base_patch16_224.orig_in21k'
ENVIRONMENT = dict(
    vet='0.1.0',
    git_revision='1803b872465abe',
    git_changes=False,
    python='3.11.7',
    device='cpu, x86_64',
    cores=2,
    threads=1,
    packages=dict(torch='2.15.0', timm='1.0.31'),
)
BACKBONES = dict(
    vit=dict(type='DigitsViT'),
    vitb16=dict(type='Timm', name=B16),
    vitl14=dict(type='Timm', name='vit_large_patch14_clip_quickgelu_224.openai'),
)


def suite(
    tuners=('lora', 'ssf'),
    datasets=('cifar100',),
    seeds=(0, 1, 2),
    groups=(),
    name='made',
    backbones=('vitb16',),
):
    entries = {
        dataset: dict(group=group) if group else {}
        for dataset, group in zip(datasets, [*groups, *[''] * len(datasets)])
    }
    return Suite(
        name,
        'A suite made by hand.',
        {key: BACKBONES[key] for key in backbones},
        dict.fromkeys(tuners, {}),
        entries,
        list(seeds),
        {},
        {},
        {},
        {},
    )


def result(tuner='lora', seed=0, accuracy=0.9, dataset='cifar100', backbone='vitb16', config=None, **changes):
    """A run that is done. config: changes to its train section; changes: to anything else."""
    made = dict(
        suite='made',
        dataset=dataset,
        backbone=backbone,
        tuner=tuner,
        seed=seed,
        point={},
        is_search=False,
        group='',
        config=dict(
            model=dict(backbone=BACKBONES[backbone]),
            train=dict(max_epochs=3, **config or {}),
            evaluation=dict(select='last'),
            seed=seed,
        ),
        identity=f'{tuner}{seed}',
        backbone_sha256='a' * 64,
        warnings=[],
        status='done',
        metrics=dict(accuracy=accuracy, top5=1.0),
        data=dict(
            train=dict(images=1200, classes=3, sha256='1'),
            val=None,
            test=dict(images=30, classes=3, sha256='2'),
        ),
        before=None,
        validation=None,
        selected='last epoch',
        epochs=3.0,
        steps=30,
        train_images=1200,
        parameters=dict(tuners=1000, head=300, trainable=1300, backbone=86000, total=87300),
        train_seconds=4.0,
        peak_memory_mb=900.4,
        file_bytes=5200,
        images_per_second=900.0,
        wall_seconds=10.0 + seed,
        curves=[
            dict(
                step=step,
                epoch=step // 10,
                loss=3 / step / accuracy,
                accuracy=step / 30,
                val_accuracy=step / 40,
            )
            for step in (10, 20, 30)
        ],
        environment=ENVIRONMENT,
        per_class=[0.9, 0.5, 0.7],
        images_by_class=[10, 10, 10],
        confusion=[[0, 2, 1], [1, 0, 5], [2, 1, 3]],
        class_names=['ant', 'bee', 'cow'],
    )
    made['data'] = {split: data for split, data in made['data'].items() if data}
    return made | changes


def failed(error='CUDA out of memory', **of):
    """A run that failed: what its file says before anything was measured, and the error."""
    whole = result(**of)
    names = (
        'suite',
        'dataset',
        'backbone',
        'tuner',
        'seed',
        'point',
        'is_search',
        'group',
        'config',
        'identity',
        'data',
        'backbone_sha256',
        'warnings',
    )
    return {name: whole[name] for name in names} | dict(status='failed', error=error, wall_seconds=1.0)


def search(point, validation, **of):
    """A run of a grid, which was judged on validation images."""
    whole = result(is_search=True, point=point, metrics={}, validation=validation, **of)
    for name in ('per_class', 'images_by_class', 'confusion'):
        del whole[name]
    return whole | dict(data=dict(train=whole['data']['train'], val=dict(images=120, classes=3, sha256='3')))


def written(folder, *results):
    """Puts results into files, and reads them back."""
    for one in results:
        write_result(folder / f'{run_name(one)}.json', one)
    return read_results(folder)
