"""Parameters of the contract suite: `case, family` over the grid. By default, each tuner runs on two
families; the slow suite has all.
"""

import pytest

from tests.contract.runs import Run, is_default, pairs, run


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if {'case', 'family'} <= set(metafunc.fixturenames):
        refuses = metafunc.function.__name__.startswith('test_refusal')
        metafunc.parametrize(
            'case, family',
            [
                pytest.param(
                    case,
                    family,
                    id=f'{case}-{family}',
                    marks=[] if is_default(case, family) else pytest.mark.slow,
                )
                for case, family in pairs()
                if case.on is None or (family in case.on) != refuses
            ],
        )


@pytest.fixture
def ran(case, family) -> Run:
    """The training of this case on this family."""
    result = run(case, family)
    if not isinstance(result, Run):
        if case.on is None:
            pytest.skip(f'refuses: {result.error}')
        raise result.error
    return result
