"""The fresh process of test_saving: builds each model again, loads its file and writes its logits."""

import json
from pathlib import Path

from safetensors.torch import load_file, save_file

from tests.contract.cases import CASES
from tests.contract.runs import classifier, logits


def load_and_compute(folder: Path) -> None:
    cases, found = {str(case): case for case in CASES}, {}
    for name, family in json.loads(Path(folder, 'jobs.json').read_text()):
        model = classifier(cases[name], family)
        model.load_trained_state(load_file(Path(folder, f'{name}-{family}.safetensors')))
        found[f'{name}-{family}'] = logits(model)
    save_file(found, Path(folder, 'logits.safetensors'))
