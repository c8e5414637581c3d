"""Stanford Dogs: 12,000 train and 8,580 test images; no official validation split."""

dataset = dict(
    train=dict(type='StanfordDogs', split='train'), val=None, test=dict(type='StanfordDogs', split='test')
)
