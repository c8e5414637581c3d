"""Stanford Cars: 8,144 train and 8,041 test images; no official validation split."""

dataset = dict(
    train=dict(type='StanfordCars', split='train'), val=None, test=dict(type='StanfordCars', split='test')
)
