"""--cfg-options as a shell hands it over: what each value becomes, and what is refused."""

import json
import sys

import pytest

from vet.cli.command import free_name, literal

SHOW = (
    'import argparse, json; from vet.cli.command import add_options; parser = argparse.ArgumentParser(); '
    'add_options(parser); print(json.dumps(parser.parse_args().cfg_options))'
)

VALUES = {
    '/data/My Models/w.safetensors': '/data/My Models/w.safetensors',
    '/data/a,b/[1]/w (2).pth': '/data/a,b/[1]/w (2).pth',
    '~/x y': '~/x y',
    "'/data/My, Models'": '/data/My, Models',
    '"quoted"': 'quoted',
    "it's": "it's",
    'a=b': 'a=b',
    '': '',
    ' x ': ' x ',
    r'C:\new\table': r'C:\new\table',
    '3': 3,
    '-1': -1,
    '1e-3': 1e-3,
    '.5': 0.5,
    '1_000': 1000,
    'True': True,
    'true': True,
    'False': False,
    'None': None,
    'null': None,
    '010': '010',
    '[1,2]': [1, 2],
    '1,2': [1, 2],
    '(1, 2)': [1, 2],
    '[]': [],
    '[accuracy,top5]': ['accuracy', 'top5'],
    '[a b, "c,d"]': ['a b', 'c,d'],
    '[[1,0],[x]]': [[1, 0], ['x']],
    "dict(type='SGD', lr=0.1)": dict(type='SGD', lr=0.1),
    "{'a': [1, None]}": {'a': [1, None]},
    "[dict(type='LoRA', rank=2)]": [dict(type='LoRA', rank=2)],
    'accuracy,top5': 'accuracy,top5',
    '1+1j': '1+1j',
    "b'x'": "b'x'",
    '...': '...',
    '[{"type": "FiveCrop"}]': [dict(type='FiveCrop')],
    '[open("x")]': ['open("x")'],
    'nan': 'nan',
    '5-6': '5-6',
    'dictionary': 'dictionary',
    "__import__('os').getcwd()": "__import__('os').getcwd()",
    'é ü': 'é ü',
}


@pytest.mark.parametrize('text', VALUES)
def test_a_value(text):
    value = literal(text)
    assert value == VALUES[text] and type(value) is type(VALUES[text])


@pytest.mark.parametrize(
    'text',
    ['[1,2', '(1', '[a]]', "{'a': x}", 'dict(a=b)', 'dict(1)', '[' * 3000, '{', '[' * 3000 + ']' * 3000],
)
def test_brackets_that_do_not_fit(text):
    with pytest.raises(ValueError):
        literal(text)


def test_a_real_process_hands_every_value_over_whole(python):
    given = [f'key{i}.path={text}' for i, text in enumerate(VALUES)]
    done = python('-c', SHOW, '--cfg-options', *given)
    assert done.returncode == 0, done.stderr
    assert list(json.loads(done.stdout).values()) == list(VALUES.values())


def test_what_is_given_last_counts(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['x', '--cfg-options', 'a=1', 'b=2', '--cfg-options', 'a=3'])
    exec(SHOW)
    assert list(json.loads(capsys.readouterr().out).items()) == [('b', 2), ('a', 3)]


def test_each_file_of_a_call_has_a_name_of_its_own():
    taken = set()
    assert [free_name(stem, taken) for stem in ('a', 'a', 'b', 'a-2', 'a')] == [
        'a',
        'a-2',
        'b',
        'a-2-2',
        'a-3',
    ]
