"""A model folder of a stranger: nothing of it is run, fetched or written, and it ends within bounds of
time and memory.
"""

import functools
import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import timm
import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from tests.hub.hostile import BACKTRACKS, TIMM, TORCHVISION, changed
from tests.nets import VIT
from vet import build_trainer, pipeline
from vet.backbones.timm import ARCHITECTURE
from vet.builders import find_config
from vet.config import read_settings
from vet.core.assemble import build_classifier
from vet.core.budget import CALLS, Budget, bounded
from vet.errors import DataError, UserError
from vet.hub import push_to_hub
from vet.hub.combine import combine
from vet.hub.model_folder import load_model, load_models, read_configuration
from vet.registry import BACKBONES

LORA = dict(type='LoRA', rank=2)


@pytest.fixture
def says(folder):
    """says('model.head', value): a folder whose configuration says that."""
    made = folder(LORA)
    path = made / 'configuration.json'

    def say(place, value):
        path.write_text(json.dumps(changed(json.loads(path.read_text()), place, value)))
        return made

    return say


@pytest.fixture
def weights_server(tmp_path, monkeypatch):
    """(URL of a file on a server of its own, the paths that were asked for)."""
    asked, served = [], tmp_path / 'served'
    served.mkdir()
    (served / 'a.pth').write_bytes(b'import os')

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *args):
            pass

    for name in ('NO_PROXY', 'no_proxy'):
        monkeypatch.setenv(name, '127.0.0.1')
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Handler, directory=served))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}/a.pth', asked
    server.shutdown()
    server.server_close()


ROUTES = dict(
    pipeline=lambda path: pipeline(model=path, device='cpu'),
    load_model=load_model,
    several=lambda path: load_models(dict(a=path)),
    combine=lambda path: combine([path], path.parent / 'combined'),
    push=lambda path: push_to_hub(path, path.parent / 'pushed'),
    config=find_config,
    train=lambda path: build_trainer(
        model=path, work_dir=path.parent / 'run', train_dataset=dict(type='Digits', split='test')
    ),
)


@pytest.mark.parametrize('route', ROUTES)
def test_no_route_fetches_or_writes_what_a_folder_names(says, weights_server, tmp_path, route):
    url, asked = weights_server
    target = tmp_path / 'site-packages'
    backbone = {
        **TIMM,
        'pretrained': True,
        'kwargs': {**TIMM['kwargs'], 'cache_dir': str(target), 'pretrained_cfg': dict(url=url)},
    }
    with pytest.raises(
        DataError, match=r"model.backbone.kwargs is \{'cache_dir'.*which a model folder may not say"
    ):
        ROUTES[route](says('model.backbone', backbone))
    assert asked == [] and not target.exists()
    assert not (tmp_path / 'combined').exists() and not (tmp_path / 'pushed').exists()


def test_the_server_of_the_test_would_be_asked(weights_server, tmp_path, monkeypatch):
    url, asked = weights_server
    with pytest.raises(Exception, match='(?s).*'):  # which a user's own config may still do
        timm.create_model(
            'vit_tiny_patch16_224',
            pretrained=True,
            pretrained_cfg=dict(url=url),
            cache_dir=str(tmp_path / 'cache'),
        )
    assert asked == ['/a.pth']


@pytest.mark.parametrize(
    'entry',
    [
        {**TIMM, 'name': 'hf-hub:a/b'},
        {**TIMM, 'name': 'local-dir:/tmp'},
        {**TIMM, 'checkpoint': 'http://127.0.0.1:9/a.pth'},
        {**TIMM, 'checkpoint': 'a.pth'},
        {**TIMM, 'checkpoint': '/tmp/../etc/passwd'},
        {**TIMM, 'cache_dir': '/tmp'},
        {**TORCHVISION, 'kwargs': dict(weights_backbone='x')},
        {**TORCHVISION, 'weights': 'http://a'},
        dict(type='DigitsViT', checkpoint='//h/a', sha256='0' * 64),
        dict(type='DigitsViT', kwargs={}, sha256='0' * 64),
    ],
    ids=str,
)
def test_what_a_backbone_may_not_say(says, entry):
    with pytest.raises(DataError, match='which a model folder may not say. Allowed: '):
        read_configuration(says('model.backbone', entry))


def test_a_side_network_may_say_no_more(says):
    side = {**TIMM, 'kwargs': dict(pretrained_cfg=dict(url='http://127.0.0.1:9'))}
    with pytest.raises(DataError, match=r'model.tuners\[0\].side.kwargs is .*may not say'):
        load_model(says('model.tuners', [dict(type='SideTuning', side=side)]))


def test_what_networks_are_made_of_may_be_said(says):
    for entry in (
        {
            **TIMM,
            'kwargs': dict(VIT, global_pool='avg', drop_path_rate=0.1, window_size=[7, 7], act_layer='gelu'),
        },
        {
            **TORCHVISION,
            'kwargs': dict(width_per_group=32, replace_stride_with_dilation=[False, False, True]),
        },
        {**TIMM, 'checkpoint': '/data/My Weights/w.safetensors', 'roles': dict(block=r'blocks\.\d+')},
    ):
        assert read_configuration(says('model.backbone', entry))['model']['backbone'] == entry


def test_no_argument_that_is_allowed_names_a_place_or_code():
    assert not [
        name
        for name in ARCHITECTURE
        if any(
            word in name
            for word in (
                'url',
                'checkpoint',
                'file',
                'cache',
                'hub',
                'pretrained',
                'cfg',
                'fn',
                'feature_',
                'module',
                'block_args',
                'weights',
            )
        )
    ]


@pytest.mark.parametrize(
    'place, value',
    [
        ('model.tuners', [dict(type='LoRA', rank={BACKTRACKS: 8})]),
        ('model.tuners', [dict(type='LoRA', alpha={BACKTRACKS: 8.0})]),
        ('model.tuners', [dict(type='Partial', names=BACKTRACKS)]),
        ('model.backbone.roles', dict(block=BACKTRACKS)),
        ('model.shared', BACKTRACKS),
    ],
)
def test_patterns_take_linear_time(says, place, value):
    """Python's `re` would try for years, so that the test would not end."""
    try:
        load_model(says(place, value))
    except UserError as error:
        assert 'pattern' in str(error) or 'sha256' in str(error) or 'block' in str(error)


@pytest.mark.parametrize(
    'place, value, message',
    [
        ('model.tuners', [LORA] * 2000, '2,000 tuners; allowed: 64'),
        ('model.tuners', [dict(type='LoRA', rank=10**9)], 'allowed: numbers from -1,000,000 to 1,000,000'),
        (
            'model.tuners',
            [dict(type='FacT', rank=10**6)],
            'a tensor of .* numbers; allowed: 134,217,728|rank|from 1 to',
        ),
        ('model.head', dict(type='MLP', hidden=10**9), 'allowed: numbers from'),
        ('model.backbone.kwargs.depth', 10**9, 'may not say'),
        pytest.param(
            'model.backbone.kwargs.depth', 10**4, 'more than 20,000 tensors', marks=pytest.mark.slow
        ),
        (
            'model.backbone.kwargs.reg_tokens',
            30_000,
            'reg_tokens.*may not say.* at most 1,024 register tokens',
        ),
        ('model.backbone.kwargs.num_reg_tokens', 1025, 'may not say'),
        ('model.backbone.kwargs.img_size', 30_000, 'a tensor of .* numbers; allowed'),
        ('preprocessing', dict(size=[10**6, 10**6]), 'at most 2,048'),
        (
            'preprocessing',
            dict(std=[1e-45] * 3),
            'std: a list, each .*at least 0.001.*, of one or three values',
        ),
        ('evaluation', dict(transform=[dict(type='Pad', padding=4000)] * 5), 'allowed: 4,096 in all'),
        (
            'evaluation',
            dict(transform=[dict(type='Lambda', lambd='os.system')]),
            "'Lambda', which a model folder may not use",
        ),
        ('classes', ['a'] * 200_000, 'at most 100,000 names'),
    ],
    ids=lambda value: str(value)[:40],
)
def test_sizes_and_counts_are_bounded(says, place, value, message):
    with pytest.raises(UserError, match=message):
        pipeline(model=says(place, value), device='cpu')


@pytest.mark.parametrize('section', ['train', 'evaluation'])
def test_a_folder_starts_at_most_256_processes(says, section):
    """A larger number is the user's own to give."""
    place = f'{section}.dataloader.workers_per_gpu'
    assert find_config(says(place, 256))[section]['dataloader']['workers_per_gpu'] == 256
    with pytest.raises(DataError, match=f'257 as {place}; allowed: at most 256'):
        find_config(says(place, 257))


def test_an_evaluation_has_at_most_16_transforms(says):
    resize = dict(type='Resize', size=8)
    assert len(
        read_configuration(says('evaluation', dict(transform=[resize] * 16)))['evaluation']['transform']
    )
    with pytest.raises(DataError, match='as evaluation.transform; allowed: a list of at most 16'):
        read_configuration(says('evaluation', dict(transform=[resize] * 17)))


@pytest.mark.parametrize('given', [dict(type='Resize', size=8), 'Resize', 7], ids=repr)
def test_the_transforms_of_an_evaluation_are_a_list(says, given):
    with pytest.raises(DataError, match='as evaluation.transform; allowed: a list of at most 16'):
        read_configuration(says('evaluation', dict(transform=given)))


@pytest.mark.parametrize('given', [[dict(type='Resize', size=8)], 'Resize', 7], ids=repr)
def test_an_evaluation_is_a_dict(says, given):
    with pytest.raises(DataError, match='as evaluation; allowed: a dict'):
        pipeline(model=says('evaluation', given), device='cpu')


def test_a_seed_alone_may_be_a_whole_number_of_any_size(says):
    entry = dict(LORA, variant='vera', seed=2**40)
    assert read_configuration(says('model.tuners', [entry]))['model']['tuners'] == [entry]
    for wrong in (dict(seed=2.0**40), dict(rank=2**40)):
        with pytest.raises(DataError, match='allowed: numbers from -1,000,000 to 1,000,000'):
            read_configuration(says('model.tuners', [LORA | wrong]))


def test_a_network_that_needs_too_many_operations_is_refused_before_they_run():
    with pytest.raises(DataError, match='needs more than 1e.13 operations'), Budget() as budget:
        budget.operations = 1e6
        BACKBONES.build(dict(type='DigitsViT'))


def test_tuners_that_take_too_long_to_check_are_refused():
    """Each tuner is checked together with all tuners before: the time grows with the square of their
    number.
    """
    calls = {}
    for count in (1, 2, 4):
        with bounded('x'), Budget() as budget:
            build_classifier(
                BACKBONES.build(dict(type='DigitsViT')),
                [dict(type='LadderSide')] * count,
                dict(type='Linear'),
                ['a', 'b'],
            )
        calls[count] = CALLS - budget.calls
    assert calls[4] - calls[2] > 2 * (calls[2] - calls[1])
    with pytest.raises(DataError, match='takes more than 500,000 calls of functions'), Budget() as budget:
        budget.calls = calls[2]
        build_classifier(
            BACKBONES.build(dict(type='DigitsViT')),
            [dict(type='LadderSide')] * 4,
            dict(type='Linear'),
            ['a', 'b'],
        )


def test_memory_is_counted_in_bytes_of_float32():
    with Budget() as budget:
        before = budget.bytes
        torch.zeros(3, 5), torch.empty(7)
        assert before - budget.bytes == 4 * (3 * 5 + 7)
        budget.bytes = 4 * 6
        torch.ones(6)
        with pytest.raises(DataError, match='need more than 75% of the memory that is free here'):
            torch.ones(1)


def test_an_image_that_would_pass_the_budget_on_the_second_run_is_never_computed():
    """The first run of an image only counts. The second run computes, and costs the same."""
    with Budget() as budget:
        left = budget.operations
        BACKBONES.build(dict(type='DigitsViT'))
        both = left - budget.operations
    assert both > 0
    devices = set()
    seen = register_module_forward_pre_hook(
        lambda module, args: devices.update(arg.device.type for arg in args if isinstance(arg, torch.Tensor))
    )
    try:
        with pytest.raises(DataError, match='needs more than 1e.13 operations'), Budget() as budget:
            budget.operations = 0.75 * both
            BACKBONES.build(dict(type='DigitsViT'))
        assert devices == {'meta'}
        with Budget() as budget:
            budget.operations = both
            BACKBONES.build(dict(type='DigitsViT'))
        assert devices == {'meta', 'cpu'}
    finally:
        seen.remove()


@pytest.mark.parametrize('name', ['configuration.json', 'tuner.safetensors'])
def test_pipes_and_devices_are_not_read(folder, tmp_path, name):
    path = folder(LORA)
    (path / name).unlink()
    os.mkfifo(path / name)
    with pytest.raises(DataError, match='is no regular file'):
        load_model(path)
    for target in ('/dev/zero', '/etc/passwd'):
        (path / name).unlink()
        (path / name).symlink_to(target)
        with pytest.raises(DataError, match='is a link out of its folder'):
            load_model(path)


@pytest.mark.parametrize(
    'text', ['[' * 100_000, '{"model": ' * 100_000, '[' * 500 + ']' * 500], ids=['lists', 'dicts', 'closed']
)
def test_deep_json_is_refused(folder, text):
    path = folder(LORA)
    (path / 'configuration.json').write_text(text)
    with pytest.raises(DataError, match='nested (too deep|deeper than 32 levels)'):
        load_model(path)


@pytest.mark.parametrize('place, value', [('format', 4), ('vet_version', '99.1')])
def test_a_folder_of_a_newer_vet_says_so(says, place, value):
    path = says(place, value)
    if place == 'format':
        with pytest.raises(
            DataError,
            match=r'is of format 4; this vet \(.*\) reads formats 1 to 3. If a newer vet wrote the folder .*, update vet',
        ):
            load_model(path)
        return
    with pytest.warns(
        UserWarning, match='was written by vet 99.1, which is newer than this vet .*: update vet'
    ):
        load_model(path)
    with (
        pytest.raises(UserError, match="unknown tuner 'OfTomorrow'.*was written by vet 99.1"),
        pytest.warns(UserWarning),
    ):
        load_model(says('model.tuners', [dict(type='OfTomorrow')]))
    with pytest.raises(UserError, match='says model.adapters.*was written by vet 99.1'):
        load_model(says('model.adapters', []))


@pytest.mark.parametrize(
    'dataset, message',
    [
        (
            dict(train=dict(type='torchvision', name='CIFAR10', root='/tmp')),
            r'dataset.train.root\), which is for you to say: give --data-root',
        ),
        (
            dict(test=dict(type='CSV', file='/dev/zero')),
            "'/dev/zero' as dataset.test.file; allowed: names, and paths of files and folders",
        ),
        (dict(test=dict(type='CSV', file='http://127.0.0.1:9/a.csv')), 'allowed: names, and paths'),
    ],
)
def test_a_run_of_a_folder_reads_no_place_that_the_folder_chooses(says, dataset, message):
    path = says('dataset', dataset)
    with pytest.raises(DataError, match=message):
        find_config(path)
    load_model(path)  # which needs no dataset


def test_control_characters_of_a_folder_are_escaped_in_messages(says):
    for place, value in (
        ('model.head', dict(type='\x1b[2J')),
        ('model.tuners', [dict(type='LoRA', **{'\x1b[2J': 1})]),
        ('model.backbone.name', '\x1b]0;x\x07'),
        ('classes', ['\x1b[2J' * 500]),
    ):
        with pytest.raises(UserError) as caught:
            load_model(says(place, value))
        assert str(caught.value).isprintable()


def test_an_error_of_a_library_is_about_the_folder():
    with pytest.raises(DataError, match="^'x' cannot be built: KeyError: 'a'"), bounded("'x'"):
        raise KeyError('a')


HARMLESS = {  # another notation, or a value that changes nothing when a folder is opened
    "rank {'': 8}",
    'evaluation 1',
    'vet_version 0',
    'vet_version 1',
    'vet_version 2',
    'metrics 0',
    'metrics 1',
    'prepared 3',
    'huge numbers',
    'UTF-16',
    'BOM',
}


@pytest.mark.slow
def test_three_hundred_hostile_folders(trainer, tmp_path):
    """Each opens or is refused, in a process of its own, within bounds; nothing is fetched, started or
    written.
    """
    done = subprocess.run(
        [sys.executable, '-m', 'tests.hub.guarded', str(trainer.folder.output), str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    came = [json.loads(line) for line in done.stdout.splitlines()]
    assert len({what for what, *_ in came}) >= 300
    assert [row for row in came if row[2] == 'fault'] == []
    opened = {what for what, call, outcome, _ in came if (call, outcome) == ('opens', 'opened')}
    of_a_run = {what for what in opened if what.startswith('run ')}  # `pipeline` reads no setting of a run
    assert opened - of_a_run == HARMLESS


def test_a_config_file_stays_free():
    settings = read_settings(
        dict(dataset={}, model=dict(backbone={**TIMM, 'kwargs': dict(TIMM['kwargs'], cache_dir='/tmp/x')}))
    )
    assert settings.model.backbone['kwargs']['cache_dir'] == '/tmp/x'


@pytest.mark.parametrize('place, value', [('dataset', 7), ('train', 7)])
def test_sections_that_are_no_dict(says, place, value):
    with pytest.raises(DataError, match=f'has 7 as {place}; allowed: a dict'):
        find_config(says(place, value))


def test_the_calls_of_a_budget_are_counted_down():
    with Budget() as budget:
        budget.calls = 2
        total = torch.zeros(1)
        total += 1
        with pytest.raises(DataError, match='more than 500,000 calls'):
            total += 1
