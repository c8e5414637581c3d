"""Soups and sums of model folders against their formulas, computed from the separate models alone."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.contract.cases import CASES
from tests.contract.runs import Run, logits, run, trained
from tests.hub.conftest import BACKBONE
from tests.hub.sealed import seal
from tests.nets import images, tiny
from vet import pipeline
from vet.config import load_config
from vet.errors import DataWarning, UnknownNameError, UserError
from vet.hub.combine import _linear, combine
from vet.hub.model_folder import load_model
from vet.registry import BACKBONES, TUNERS

ROOT = Path(__file__).parents[2]
LORA = dict(type='LoRA', rank=2, at='weight')


def merged(path):
    return {name: value.double() for name, value in load_model(path).merge().state_dict().items()}


def frozen():
    return {name: value.double() for name, value in BACKBONES.build(BACKBONE).network.state_dict().items()}


def scores(path):
    return logits(load_model(path))


def refused(tmp_path, message, *folders, **options):
    with pytest.raises(UserError, match=message) as caught:
        combine(folders, tmp_path / 'none', **options)
    assert '\n' not in str(caught.value) and not (tmp_path / 'none').exists()


# Sums ----------------------------------------------------------------------------------------------------------------

KIN = [
    LORA,
    dict(type='LoRA', rank=2, parts='qv', alpha=6, dropout=0.1),
    dict(type='LoRA', rank=2, variant='rslora', at='weight'),
    dict(type='LoRA', rank=[0, 1, 2], variant='pissa', at='weight'),
    dict(type='LoRA', rank=4, variant='vera', parts='qv', seed=3),
]


@pytest.mark.parametrize('weights', [pytest.param([0.5, 0.75], marks=pytest.mark.slow), [1.0, -0.7]])
@pytest.mark.parametrize(
    'one, other',
    [(KIN[1], KIN[2]), (KIN[3], KIN[4])]
    + [pytest.param(kin, kin, marks=pytest.mark.slow) for kin in (KIN[0], KIN[3])],
)
def test_sum_is_w0_and_the_weighted_updates_of_the_separate_models(folder, tmp_path, one, other, weights):
    a, b = folder(one, seed=1), folder(other, dict(type='LoRA', rank=1, at='mlp.fc1'), seed=2)
    combine([a, b], tmp_path / 'out', weights, 'sum')
    W0, A, B, found = frozen(), merged(a), merged(b), merged(tmp_path / 'out')
    for name in W0:
        wanted = W0[name] + weights[0] * (A[name] - W0[name]) + weights[1] * (B[name] - W0[name])
        assert torch.allclose(found[name], wanted, rtol=1e-5, atol=1e-5), name
    assert not torch.allclose(found['blocks.2.attn.qkv.weight'], W0['blocks.2.attn.qkv.weight'], atol=1e-3)


@pytest.mark.slow
def test_sum_by_default_adds_each_once_and_takes_the_mean_of_the_heads(folder, tmp_path):
    a, b = folder(LORA, seed=1), folder(LORA, seed=2)
    combine([a, b], tmp_path / 'plain', method='sum')
    combine([a, b], tmp_path / 'weighted', [1, 3], method='sum')
    heads = [
        load_file(path / 'tuner.safetensors')['head.fc.weight']
        for path in (a, b, tmp_path / 'plain', tmp_path / 'weighted')
    ]
    assert torch.allclose(heads[2], (heads[0] + heads[1]) / 2, atol=1e-7)
    assert torch.allclose(heads[3], heads[0] / 4 + 3 * heads[1] / 4, atol=1e-7)
    W0, A, B, found = frozen(), merged(a), merged(b), merged(tmp_path / 'plain')
    assert all(torch.allclose(found[name], A[name] + B[name] - W0[name], atol=1e-5) for name in W0)


def test_one_folder_of_weight_1_is_itself_and_of_weight_0_the_frozen_backbone(folder, tmp_path):
    a = folder(LORA, seed=1)
    combine([a], tmp_path / 'same', [1.0], 'sum')
    assert torch.equal(scores(tmp_path / 'same'), scores(a))
    combine([a], tmp_path / 'frozen', [0.0], 'sum', head=0)
    model = load_model(tmp_path / 'frozen')
    with torch.no_grad():
        assert torch.equal(model.backbone(images(6)), BACKBONES.build(BACKBONE).eval()(images(6)))
        assert torch.equal(model.head(torch.ones(1, 32)), load_model(a).head(torch.ones(1, 32)))


@pytest.mark.slow
def test_the_negative_of_a_model_takes_it_away(folder, tmp_path):
    a, b = folder(LORA, seed=1), folder(LORA, seed=2)
    combine([a, b], tmp_path / 'both', method='sum')
    combine([tmp_path / 'both', b], tmp_path / 'without', [1, -1], 'sum', head=0)  # a sum of a sum
    found, A = merged(tmp_path / 'without'), merged(a)
    assert all(torch.allclose(found[name], A[name], atol=1e-5) for name in A)


@pytest.mark.slow
def test_sum_of_other_classes_takes_the_head_and_classes_that_are_named(folder, tmp_path):
    a, b = folder(LORA, seed=1), folder(LORA, seed=2, classes='xy')
    refused(
        tmp_path,
        r"different classes: \['a', 'b', 'c'\] and \['x', 'y'\].*head=0: the first",
        a,
        b,
        method='sum',
    )
    combine([a, b], tmp_path / 'out', method='sum', head=1)
    model = load_model(tmp_path / 'out')
    assert model.classes == ['x', 'y']
    assert torch.equal(model.head.fc.weight, load_model(b).head.fc.weight)
    assert json.loads((tmp_path / 'out/configuration.json').read_text())['seed'] == 2


@pytest.mark.parametrize(
    'entry',
    [
        dict(type='LoRA', rank=2, variant='dora'),
        dict(type='Adapter', width=2),
        dict(type='VPT', length=2),
        dict(type='BitFit'),
        dict(type='SSF'),
        dict(type='ARC', width=2),
    ],
    ids=lambda entry: entry['type'],
)
def test_sum_refuses_by_name_what_is_not_linear(folder, tmp_path, entry):
    a, b = folder(LORA, seed=1), folder(LORA, entry, seed=2)
    refused(
        tmp_path,
        f'the update of {entry["type"]} in .*{b.name}. is not linear in its tensors.*or use method "soup"',
        a,
        b,
        method='sum',
    )


def test_what_says_that_it_is_linear_scales_its_whole_update():
    """Of every tuner, those to come too: with the named tensors times -2, the weights move by -2 times
    as much.
    """
    W0, linear = tiny('vit').network.state_dict(), set()
    for case in CASES:
        if case.on is not None and 'vit' not in case.on:
            continue
        model = trained(case, 'vit') if isinstance(run(case, 'vit'), Run) else None
        names = model and _linear(model.tuners[0])
        if not names:
            continue
        linear.add(str(case))
        once = {name: value.clone() for name, value in model.merge().state_dict().items()}
        model.unmerge()
        with torch.no_grad():
            for name, value in model.tuners[0].state().items():
                value.mul_(-2 if name in names else 1)
        twice = model.merge().state_dict()
        assert all(
            torch.allclose(twice[name] - W0[name], -2 * (once[name] - W0[name]), atol=1e-5) for name in W0
        ), str(case)
        assert any(not torch.equal(once[name], W0[name]) for name in W0)
    assert linear >= {
        'LoRA',
        'LoRA-qv',
        'LoRA-weight',
        'LoRA-rslora',
        'LoRA-pissa',
        'LoRA-vera',
        'LoRA-vera-qv',
    }
    assert not linear & {'LoRA-dora', 'LoRA-dora-qv', 'Adapter', 'BitFit', 'SSF', 'ARC', 'Full', 'VPT'}


# Soups ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'entry',
    [
        LORA,
        dict(type='BitFit'),
        *(
            pytest.param(entry, marks=pytest.mark.slow)
            for entry in (
                dict(type='Adapter', width=2),
                dict(type='SCT', channels=4),
                dict(type='LoRA', rank=2, variant='dora'),
            )
        ),
    ],
    ids=str,
)
def test_soup_is_the_mean_of_every_trained_tensor(folder, tmp_path, entry):
    paths = [folder(entry, seed=seed) for seed in range(3)]
    combine(paths, tmp_path / 'mean')
    combine(paths, tmp_path / 'weighted', [1, 0, 3])
    one, two, three, mean, weighted = (
        load_file(path / 'tuner.safetensors') for path in (*paths, tmp_path / 'mean', tmp_path / 'weighted')
    )
    assert one.keys() == mean.keys() == weighted.keys()
    for name in mean:
        if one[name].is_floating_point():
            assert torch.allclose(mean[name], (one[name] + two[name] + three[name]) / 3, atol=1e-6), name
            assert torch.allclose(weighted[name], one[name] / 4 + three[name] * 3 / 4, atol=1e-6), name
        assert mean[name].dtype == one[name].dtype
    assert any('thawed' in name or 'deltas' in name for name in mean) and 'head.fc.bias' in mean


def test_soup_of_a_model_with_itself_is_itself(folder, tmp_path):
    a = folder(LORA, seed=1)
    combine([a, a], tmp_path / 'out', [0.25, 0.75])
    assert torch.equal(scores(tmp_path / 'out'), scores(a))


def test_soup_refusals(folder, tmp_path):
    a = folder(LORA)
    refused(
        tmp_path,
        r"have different tuners: .*'rank': 2.* and .*'rank': 3.*Combine folders that agree",
        a,
        folder(dict(LORA, rank=3)),
    )
    refused(tmp_path, 'have different classes', a, folder(LORA, classes='xyz'))
    refused(tmp_path, 'have different classes', a, folder(LORA, classes='xyz'), head=0)
    refused(
        tmp_path,
        r'weights are \[2, -1\], but the weights of a mean are at least 0; .* use method "sum"',
        a,
        a,
        weights=[2, -1],
    )
    refused(tmp_path, r'weights are \[0, 0\], whose sum is 0', a, a, weights=[0, 0])
    one, other = folder(dict(type='SCT', channels=4)), folder(dict(type='SCT', channels=4))
    tensors = load_file(other / 'tuner.safetensors')
    tensors['tuners.0.deltas.blocks.0.norm2.index'] += 1
    seal(other, tensors)
    refused(
        tmp_path,
        r'blocks.0.norm2.index. in .* have no mean: .*equal values where they are whole numbers',
        one,
        other,
    )


def chosen(path, **numbers):
    """The folder, with numbers that validation images chose."""
    configuration = json.loads((path / 'configuration.json').read_text())
    configuration['model']['objective'] = numbers
    (path / 'configuration.json').write_text(json.dumps(configuration))
    return path


@pytest.mark.parametrize(
    'numbers',
    [
        [dict(type='SingleLabel', temperature=1.5), dict(type='SingleLabel', temperature=2.0)],
        [dict(type='SingleLabel', temperature=1.5), dict(type='SingleLabel')],
        [dict(type='MultiLabel', thresholds=[0.5] * 3), dict(type='MultiLabel', thresholds=[0.4] * 3)],
    ],
)
@pytest.mark.parametrize('head', [None, 0])
def test_numbers_that_were_chosen_for_each_model_alone_are_left_out(folder, tmp_path, numbers, head):
    a, b = (chosen(folder(LORA, seed=seed), **each) for seed, each in enumerate(numbers))
    name = next(key for key in numbers[0] if key != 'type')
    with pytest.warns(DataWarning, match=f'the combined model has no {name}: each model has another'):
        combine([a, b], tmp_path / 'out', head=head)
    objective = load_model(tmp_path / 'out').objective
    assert objective.entry() == dict(type=numbers[0]['type'])
    combine([a, a], tmp_path / 'same')
    assert load_model(tmp_path / 'same').objective.entry() == numbers[0]


# Both ----------------------------------------------------------------------------------------------------------------


def test_refusals_of_what_is_given(folder, tmp_path):
    a = folder(LORA)
    with pytest.raises(UnknownNameError, match="unknown method of combining 'mean'.*soup, sum"):
        combine([a], tmp_path / 'none', method='mean')
    refused(tmp_path, 'nothing to combine; give one')
    refused(
        tmp_path, r'weights are \[0.5\]; allowed: a number for each of the 2 folders', a, a, weights=[0.5]
    )
    refused(tmp_path, 'weights are .nan.; allowed: a number', a, weights=[float('nan')])
    refused(tmp_path, 'The numbers and their sum are finite', a, a, weights=[1e308, 1e308])
    refused(tmp_path, 'head is 2; allowed: 0 to 1', a, a, head=2)
    refused(tmp_path, 'different backbone settings: .*', a, folder(LORA, crop_pct=0.5))
    refused(tmp_path, "the model folder '.*nothing' does not exist", a, tmp_path / 'nothing')
    several = folder(LORA)
    configuration = json.loads((several / 'configuration.json').read_text())
    task = {part: configuration['model'][part] for part in ('backbone', 'head')}
    configuration['model']['tasks'], configuration['classes'] = (
        dict(pets=task),
        dict(pets=configuration['classes']),
    )
    configuration['preprocessing'] = dict(pets=configuration['preprocessing'])
    (several / 'configuration.json').write_text(json.dumps(configuration))
    refused(tmp_path, f'{several.name}. is a model of several tasks', a, several)
    with pytest.raises(UserError, match=f'{a.name}. exists already; give a new folder'):
        combine([a, a], a)


def test_refuses_another_backbone_with_both_names(folder, tmp_path):
    a, b = folder(LORA), folder(LORA, name='deit_tiny_patch16_224')
    path = b / 'configuration.json'
    configuration = json.loads(path.read_text())
    configuration['model']['backbone']['sha256'] = '0' * 64
    path.write_text(json.dumps(configuration))
    refused(
        tmp_path,
        r'different backbone weights: vit_tiny_patch16_224, sha256 \w{64} and deit_tiny_patch16_224, sha256 0{64}',
        a,
        b,
    )


@pytest.mark.slow
def test_pipeline_in_a_new_process(folder, tmp_path, python):
    a, b = folder(LORA, seed=1), folder(dict(type='LoRA', rank=1), seed=2)
    combine([a, b], tmp_path / 'out', [1, -0.5], 'sum', head=0)
    Image.new('RGB', (40, 30), 'orange').save(tmp_path / 'image.png')
    code = (
        'import json, torch; torch.set_num_threads(1); from vet import pipeline\n'
        f"print(json.dumps(pipeline('vision-efficient-tuning', r'{tmp_path / 'out'}', device='cpu')(r'{tmp_path / 'image.png'}')))"
    )
    done = python('-c', code)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == pipeline(model=tmp_path / 'out', device='cpu')(tmp_path / 'image.png')
    # of a model nobody has measured
    assert json.loads((tmp_path / 'out/configuration.json').read_text())['metrics'] == {}
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == [
        'configuration.json',
        'tuner.safetensors',
    ]


# Trained together ----------------------------------------------------------------------------------------------------


def test_the_ensemble_config_trains_w0_and_the_sum_of_its_updates():
    entries = load_config(ROOT / 'configs/deit_tiny_lora_ensemble_flowers.py').model.tuners
    assert len(entries) > 1
    torch.manual_seed(0)
    backbone, tuners = tiny('vit').eval().double(), [TUNERS.build(dict(entry)) for entry in entries]
    W0 = {name: value.clone() for name, value in backbone.network.state_dict().items()}
    for tuner in tuners:
        tuner.attach(backbone)
        tuner.double()
        for _, parameter in tuner.trainable():
            torch.nn.init.normal_(parameter, std=0.5)
    x = images(2).double()
    found, plain = backbone(x), tiny('vit').eval().double()
    sites = [delta.replace('/', '.') for delta in tuners[0].deltas]
    assert sites == [f'blocks.{i}.attn.qkv' for i in range(3)]
    for name in sites:
        update = sum(
            entry['alpha']
            / entry['rank']
            * tuner.state()[f'deltas.{name}.B']
            @ tuner.state()[f'deltas.{name}.A']
            for entry, tuner in zip(entries, tuners)
        )
        plain.network.get_submodule(name).weight.data = W0[f'{name}.weight'] + update
    assert torch.allclose(found, plain(x), rtol=0, atol=1e-8)
