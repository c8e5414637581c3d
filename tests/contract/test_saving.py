"""What training made is saved, and loaded in a process that never saw it."""

import functools
import json
import pickle
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.contract.cases import Case
from tests.contract.reload import load_and_compute
from tests.contract.runs import Run, is_default, logits, pairs, run, trained
from vet.errors import DataError


def group(case: Case, family: str) -> str:
    """The pairs that one fresh process loads: those of the default suite, or the others of a family."""
    return 'default' if is_default(case, family) else family


@functools.cache
def reloaded(wanted: str, process) -> dict[str, torch.Tensor]:
    """The logits of every trained model of a group, computed by one fresh process from the saved files."""
    with tempfile.TemporaryDirectory() as folder:
        jobs = [
            (case, family)
            for case, family in pairs()
            if group(case, family) == wanted and isinstance(run(case, family), Run)
        ]
        for case, family in jobs:
            save_file(
                {k: v.contiguous() for k, v in run(case, family).model.trained_state().items()},
                Path(folder, f'{case}-{family}.safetensors'),
            )
        Path(folder, 'jobs.json').write_text(json.dumps([[str(case), family] for case, family in jobs]))
        child = process(load_and_compute, Path(folder))
        child.join()
        assert child.exitcode == 0
        return load_file(Path(folder, 'logits.safetensors'))


def test_fresh_process_loads_the_file_and_gives_the_same_logits(ran, case, family, process):
    assert torch.equal(reloaded(group(case, family), process)[f'{case}-{family}'], logits(ran.model))


def test_pickle_round_trip_computes_the_same(ran):
    again = pickle.loads(pickle.dumps(ran.model))
    assert torch.equal(logits(again), logits(ran.model))
    assert set(again.trainable()) == set(ran.model.trainable())


def test_saved_tensors_are_those_that_train_and_their_statistics(ran):
    state, trains = ran.model.trained_state(), set(ran.model.trainable())
    assert trains <= set(state)
    others = {name.rpartition('.')[2] for name in set(state) - trains if '.thawed.' in name}
    assert others <= {'running_mean', 'running_var', 'num_batches_tracked'}


@pytest.mark.parametrize('fault', ['missing', 'left over', 'shape'])
def test_state_that_does_not_fit_is_refused_and_loads_nothing(fault):
    case, family = next((c, f) for c, f in pairs() if c.label == 'weight')
    model = trained(case, family)
    state = {name: value + 1 for name, value in model.trained_state().items()}
    name = sorted(state)[-1]
    value = state.pop(name)
    if fault == 'left over':
        state |= {name: value, 'tuners.7.deltas.A': value}
    if fault == 'shape':
        state[name] = value[:1]
    before = logits(model)
    with pytest.raises(DataError, match='tuners.7' if fault == 'left over' else name):
        model.load_trained_state(state)
    assert torch.equal(logits(model), before)
