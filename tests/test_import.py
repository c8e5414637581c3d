"""What importing costs: the package alone nothing, the list of tuners no library of models."""

import json

import pytest

from vet.cli.vet import commands

CHECK = 'import sys; print([name for name in ("torch", "timm", "torchvision", "accelerate") if name in sys.modules])'


def test_the_package_imports_nothing_until_it_is_asked(python):
    assert python('-c', f'import vet; {CHECK}').stdout == '[]\n'


def test_the_process_that_hands_out_the_tests_imports_no_library(python):
    """xdist's first process imports tests/conftest.py before its workers start, and runs no test."""
    check = CHECK.replace('("torch", ', '("vet", "torch", ')
    assert python('-c', f'import tests.conftest; {check}').stdout == '[]\n'


COMMANDS = """
import contextlib, io, json, sys
import vet.cli.vet
for line in json.loads(sys.argv[1]):
    sys.argv, out = ["vet", *line.split()], io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            vet.cli.vet.main()
            code = 0
        except SystemExit as end:
            code = end.code
    print(json.dumps([code, out.getvalue(), [name for name in ("torch", "timm", "accelerate") if name in sys.modules]]))
"""
WRONG = 'train quickstart --cfg-options'
ANSWERS = [
    ('--help', 0, 'Trains a model'),
    ('--help', 0, 'interpolate Evaluates'),
    ('--version', 0, 'vet 0.'),
    ('trian', 2, "Did you mean 'train'?"),
    *((f'{name} --help', 0, f'usage: vet {name}') for name in commands()),
    ('train nosuch.py', 2, "the config 'nosuch.py' does not exist"),
    ('train quickstrat', 2, "unknown model 'quickstrat'. Did you mean 'quickstart'?"),
    ('train vitb16_lora_flower.py', 2, "Did you mean 'vitb16_lora_flowers'"),
    ('train quickstart --sed 3', 2, 'unknown argument --sed; did you mean --seed?'),
    (f'{WRONG} train.max_epoch=3', 2, "Did you mean 'max_epochs'?"),
    (f'{WRONG} train.max_epochs=x', 2, "train.max_epochs is 'x'"),
    (f'{WRONG} learning_rate=1', 2, "or 'train.optimizer.lr'?"),
    (f'{WRONG} model.backbone.lora_lenght=3', 2, "Did you mean 'lora_length'"),
    (f'{WRONG} model.backbone.type=Digitvit', 2, "unknown backbone 'Digitvit'"),
    (f'{WRONG} model.objective.type=Regresion', 2, "unknown objective 'Regresion'"),
    (f'{WRONG} model.head.type=Linnear', 2, "unknown head 'Linnear'"),
    (f'{WRONG} dataset.train.type=Digit', 2, "unknown dataset 'Digit'"),
    (f'{WRONG} evaluation.metrics=acc', 2, "unknown metric 'acc'"),
    ('predict nowhere x.png', 2, "no image file 'x.png'"),
    ('test nowhere', 2, "the model folder 'nowhere' does not exist"),
    ('test .', 2, 'is no model folder'),
    ('export nowhere x', 2, "the model folder 'nowhere' does not exist"),
    ('combine out nowhere', 2, "the model folder 'nowhere' does not exist"),
    ('push nowhere a/b', 2, "the model folder 'nowhere' does not exist"),
    ('benchmark nosuch', 2, "unknown suite 'nosuch'"),
    ('recipes vpt2022 vpt2023', 2, "unknown recipe 'vpt2023'. Did you mean 'vpt2022'"),
    ('config nosuch.py', 2, "the config 'nosuch.py' does not exist"),
    ('list tuners', 0, 'LoRA'),
    ('list configs', 0, 'quickstart'),
    ('list suites', 0, 'quickstart'),
    ('list examples', 0, 'own_tuner'),
    ('list recipes', 0, 'vpt2022'),
    ('list datasets', 0, 'ImageFolder'),
    ('list tuners Lora', 2, "unknown tuner 'Lora'. Did you mean 'LoRA'"),
    ('list tuner', 2, "Did you mean 'tuners'"),
]


@pytest.fixture(scope='module')
def answers(python):
    """{line: (exit code, what is printed, the slow libraries that are imported by then)}, of one process."""
    lines = [line for line, _, _ in ANSWERS]
    done = python('-c', COMMANDS, json.dumps(lines))
    assert done.returncode == 0, done.stderr
    return dict(zip(lines, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize('line, code, text', ANSWERS)
def test_a_command_answers_before_torch_is_imported(answers, line, code, text):
    found, said, imported = answers[line]
    assert (found, imported) == (code, []), said
    assert text in ' '.join(said.split()) and 'Traceback' not in said


WITHOUT_UNIX = """
import sys
import psutil        # on Windows, psutil has other modules than here
for name in ('fcntl', 'resource', 'grp', 'pwd', 'termios'):
    sys.modules[name] = None            # importing it raises, as on Windows
import os
del os.preadv
from vet import build_trainer, pipeline
print(pipeline('vision-efficient-tuning', sys.argv[1], device='cpu')(sys.argv[2])['labels'])
"""


@pytest.mark.slow
def test_inference_needs_nothing_of_unix(python, trainer, tmp_path):
    """On Windows vet is for inference."""
    from vet.datasets.image import open_image

    image = tmp_path / 'image.png'
    open_image(trainer.data['test'][0][0]).save(image)
    done = python('-c', WITHOUT_UNIX, trainer.folder.output, image)
    assert done.returncode == 0, done.stderr
    assert len(eval(done.stdout)) == 5


@pytest.mark.slow
def test_a_submodule_never_stands_in_the_place_of_a_function(python):
    done = python(
        '-c',
        'import vet.pipelines, vet.builders, vet; print(callable(vet.pipeline), callable(vet.build_trainer))',
    )
    assert done.stdout == 'True True\n', done.stderr
    assert 'AttributeError' in python('-c', 'import vet; vet.nothing').stderr


def test_names_that_are_written_twice_are_equal():
    """Some names stand a second time where torch must not be imported."""
    import inspect

    import torch

    from vet.cli.combine import METHODS
    from vet.cli.export import FORMATS
    from vet.config.nearest import OF_OPTIMIZERS
    from vet.core.peft_names import PEFT_NAMES
    from vet.hub import combine, formats
    from vet.registry import REGISTRIES, TUNERS

    assert METHODS == tuple(combine.METHODS) and FORMATS == tuple(formats.FORMATS)
    of_adamw = [name for name in inspect.signature(torch.optim.AdamW).parameters if name != 'params']
    assert [*OF_OPTIMIZERS] == [*of_adamw, 'momentum']
    for registry in REGISTRIES.values():
        for name, listed in registry.index.plugins.items():
            plugin = registry.find(name)
            assert plugin.__module__ == listed.module
            if listed.arguments is not None:
                peft = PEFT_NAMES.get(name, {}) if registry is TUNERS else {}
                assert {*listed.arguments, *peft} == {*inspect.signature(plugin).parameters}, name


@pytest.mark.parametrize('kind', ['configs', 'examples'])
def test_every_shipped_config_passes_the_early_check(kind, monkeypatch):
    from vet.registry import REGISTRIES
    from vet.shipped import shipped
    from vet.source import check_source

    for registry in REGISTRIES.values():
        monkeypatch.setattr(registry, '_module_dict', dict(registry.module_dict))
    for name, path in shipped(kind).items():
        if kind == 'configs' or path.name == 'config.py':
            check_source(name, {})
