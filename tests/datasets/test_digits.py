import numpy as np
import pytest
from sklearn.datasets import load_digits

from vet.datasets.digits import Digits
from vet.errors import UserError


def test_splits_cover_all_and_are_stratified():
    train, test = Digits(split='train'), Digits(split='eval')
    assert (len(train), len(test)) == (1201, 596)
    share = np.bincount(test.targets) / (np.bincount(test.targets) + np.bincount(train.targets))
    assert np.abs(share - 1 / 3).max() < 0.005
    both = sorted(bytes(source) for data in (train, test) for source, _ in data.samples)
    scanned = np.rint(load_digits().images * (255 / 16)).astype(np.uint8)
    assert both == sorted(map(bytes, scanned))


def test_pixels_and_label():
    digits = load_digits()
    image, label = Digits()[0]  # the first image of all is a 0, the first of its digit, hence in train
    assert image.mode == 'RGB' and image.size == (8, 8)
    np.testing.assert_array_equal(np.asarray(image)[..., 0], np.rint(digits.images[0] / 16 * 255))
    assert label == digits.target[0] == 0


def test_some_digits_keep_their_split():
    some, every = Digits(split='test', digits=(5, 6, 9)), Digits(split='test')
    assert some.classes == ['5', '6', '9'] and set(some.targets) == {0, 1, 2}
    expected = [(source.tobytes(), label) for source, label in every.samples if label in (5, 6, 9)]
    assert [(source.tobytes(), int(some.classes[label])) for source, label in some.samples] == expected


@pytest.mark.parametrize('digits', [(), (10,), (5, 5), (-1,), ('5',)])
def test_wrong_digits(digits):
    with pytest.raises(UserError, match='some of 0 … 9'):
        Digits(digits=digits)


def test_wrong_split():
    with pytest.raises(UserError, match='Allowed: test, train'):
        Digits(split='val')
