"""Oxford Flowers 102: 1,020 train, 1,020 val and 6,149 test images; official splits."""

dataset = dict(
    train=dict(type='Flowers102', split='train'),
    val=dict(type='Flowers102', split='val'),
    test=dict(type='Flowers102', split='test'),
)
