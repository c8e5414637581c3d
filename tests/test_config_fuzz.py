"""The config fuzz of tests/config_fuzz.py: no traceback, no hang, and no value accepted that no person
can mean.
"""

import pytest

from tests.config_fuzz import Mutation, faults, no_mutations, random_mutations, run, shown, targeted_mutations

PARTS = 8


@pytest.mark.slow
@pytest.mark.parametrize(
    'mutation',
    [
        Mutation('quickstart', ('train', 'mixup'), 'set', 1),
        Mutation('quickstart', ('train', 'max_epochs'), 'set', 1, by_options=True),
    ],
)
def test_a_sensible_value_is_accepted(mutation):
    [outcome] = run(list, [mutation])
    assert outcome.kind == 'accepted', shown(outcome)


@pytest.mark.slow
def test_every_config_is_accepted_as_it_is():
    outcomes = run(no_mutations)
    assert len(outcomes) > 20
    assert not (wrong := [outcome for outcome in outcomes if outcome.kind != 'accepted']), '\n'.join(
        map(shown, wrong)
    )


@pytest.mark.slow
@pytest.mark.parametrize('part', range(PARTS))
def test_random_mutations(part):
    wrong = faults(run(random_mutations, 1300, 0, part, PARTS))
    assert not wrong, '\n'.join(map(shown, wrong))


@pytest.mark.slow
@pytest.mark.parametrize('part', range(PARTS))
def test_targeted_mutations(part):
    wrong = faults(run(targeted_mutations, 800, 0, part, PARTS))
    assert not wrong, '\n'.join(map(shown, wrong))
