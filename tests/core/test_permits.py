"""The values that a model folder may give to a plugin."""

import pytest

from vet.core.permits import SETTING, SETTINGS, lists, number, whole


@pytest.mark.parametrize('value', [None, True, 0.1, 1e6, -1, 30_000, 'gelu', 'a.b+c-d', ''])
def test_settings_of_a_network(value):
    assert SETTING.allows(value) and SETTINGS.allows([value, [value]])


@pytest.mark.parametrize(
    'value', [float('nan'), float('inf'), 1.1e6, -2, 30_001, '/etc', 'http://a', 'a b', b'a', {}, [[[1]]]]
)
def test_what_is_no_setting(value):
    assert not SETTING.allows(value) and not SETTINGS.allows([value])


def test_bounds_are_allowed_and_kinds_are_told_apart():
    assert whole(1, 3).allows(1) and whole(1, 3).allows(3)
    assert not any(map(whole(1, 3).allows, (0, 4, 2.0, True, '2')))
    assert number(0, 1).allows(0) and number(0, 1).allows(1.0)
    assert not any(map(number(0, 1).allows, (-1e-9, 1 + 1e-9, float('nan'), True, '0')))
    pair = lists(whole(0, 9), 1, 2)
    assert pair.allows([1]) and pair.allows((1, 2)) and pair.text.startswith('a list of 1 to 2 values')
    assert not any(map(pair.allows, ([], [1, 2, 3], ['a'], 5, '12')))
