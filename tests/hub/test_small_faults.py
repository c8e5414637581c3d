"""Values that a small fault in the reading of foreign folders would change, and that no other test
looks at.
"""

import pytest

from tests.hub.test_modelscope_folders import content, write
from vet.hub import load_modelscope


@pytest.mark.parametrize(
    'given, expected', [(dict(dropout_rate=0.3), 0.3), (dict(dropout_rate=None), 0.0), ({}, 0.0)]
)
def test_the_dropout_of_a_modelscope_head(tmp_path, given, expected):
    file = content()
    del file['head_cfg']['dropout_rate']
    file['head_cfg'] |= given
    assert load_modelscope(write(tmp_path / 'model', file)).head.dropout.p == expected
