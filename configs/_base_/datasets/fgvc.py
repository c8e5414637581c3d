"""FGVC for suites: five datasets with their official splits.

Flowers trains only on its 1,020 training images.
"""

datasets = dict(
    cub200=dict(train=dict(type='CUB200', split='train'), test=dict(type='CUB200', split='test')),
    nabirds=dict(train=dict(type='NABirds', split='train'), test=dict(type='NABirds', split='test')),
    flowers102=dict(
        train=dict(type='Flowers102', split='train'),
        val=dict(type='Flowers102', split='val'),
        test=dict(type='Flowers102', split='test'),
    ),
    stanford_dogs=dict(
        train=dict(type='StanfordDogs', split='train'), test=dict(type='StanfordDogs', split='test')
    ),
    stanford_cars=dict(
        train=dict(type='StanfordCars', split='train'), test=dict(type='StanfordCars', split='test')
    ),
)
