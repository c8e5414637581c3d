"""What the messages of errors show of a value."""

import pytest

from vet.errors import shown


def test_a_value_is_shown_as_python_writes_it():
    assert shown({'b': [1, 'x'], 'a': (None,)}) == "{'b': [1, 'x'], 'a': (None,)}"
    assert shown('a' * 400) == f"'{'a' * 299}…"
    assert shown(list(range(5000))).startswith('[0, 1, 2')


@pytest.mark.parametrize('kind', [list, tuple, dict])
def test_a_value_whose_text_would_fill_the_memory_is_named_by_its_type(kind):
    value = 'ha'
    for _ in range(40):
        value = dict(enumerate([value] * 10)) if kind is dict else kind([value] * 10)
    assert shown(value) == f'a {kind.__name__} with too many parts to show'


def test_a_value_that_holds_itself():
    value = []
    value.append(value)
    assert len(shown(value)) < 300
    deep = []
    for _ in range(9_000):
        deep = [deep]
    assert shown(deep) == 'a list that is too deep or too long to show'
    assert shown(10**5000) == 'a int that is too deep or too long to show'
