"""Published numbers: all of them are there, each says where it stands, and a broken file is refused."""

from collections import Counter
from pathlib import Path

import pytest

from vet.benchmark.references import Reference, find, references
from vet.errors import DataError, UserError

ROOT = Path(__file__).parents[2]
ORIG, AUGREG, CLIP = (
    'vit_base_patch16_224.orig_in21k',
    'vit_base_patch16_224.augreg_in21k',
    'vit_large_patch14_clip_quickgelu_224.openai',
)
FGVC = ('cub200', 'nabirds', 'flowers102', 'stanford_dogs', 'stanford_cars')
UNKNOWN = ('not stated', 'not published')


def values(method, checkpoint, datasets, source):
    found = [
        [entry.value for entry in find(dataset, checkpoint, method) if entry.source.startswith(source)]
        for dataset in datasets
    ]
    assert all(len(one) == 1 for one in found), found
    return [value for [value] in found]


@pytest.mark.parametrize(
    'method, checkpoint, mean',
    [
        ('lora', ORIG, 89.84),
        ('lora', CLIP, 90.21),
        ('vpt_shallow', ORIG, 82.72),
        ('vpt_shallow', CLIP, 88.04),
        ('vpt_deep', ORIG, 88.24),
        ('vpt_deep', CLIP, 89.03),
        ('side_tuning', ORIG, 79.32),
        ('side_tuning', CLIP, 87.39),
    ],
)
def test_modelscope_s_cards_have_the_means_they_print(method, checkpoint, mean):
    found = values(method, checkpoint, ('cifar100', *FGVC), 'ModelScope card')
    assert sum(found) / 6 == pytest.approx(mean, abs=0.0051)
    assert values(method, checkpoint, ('cards_mean6',), 'ModelScope card') == [mean]


def test_tables():
    assert values('vpt_deep', ORIG, FGVC, 'VPT') == [88.5, 84.2, 99.0, 90.2, 83.6]
    assert values('ssf', AUGREG, FGVC, 'SSF') == [89.5, 85.7, 99.6, 89.6, 89.2]
    assert values('fact_tk', ORIG, ('vtab_mean19', 'vtab_mean3'), 'FacT') == [73.2, 75.6]
    assert values('repadapter', ORIG, ('vtab_mean19', 'vtab_mean3'), 'OSU study') == [73.6, 75.8]
    assert Counter(entry.dataset for entry in references()) == {
        'cifar100': 8 + 7,
        **dict.fromkeys(FGVC, 8 + 11),
        'vtab_mean19': 30,
        'vtab_mean3': 30,
        'cards_mean6': 8,
    }


def test_a_number_of_another_checkpoint_is_never_given():
    assert [entry.value for entry in find('cifar100', AUGREG, 'ssf')] == [93.99]
    assert [entry.value for entry in find('cifar100', ORIG, 'ssf')] == [92.67]
    # measured in another code
    assert find('stanford_dogs', AUGREG, 'gps') == find('stanford_dogs', ORIG, 'gps') == []
    assert find('vtab_mean19', ORIG, 'sct') == [] and [
        entry.value for entry in find('vtab_mean19', 'not stated', 'sct')
    ] == [73.6]
    assert find('cub200', 'vit_base_patch16_224_in21k', 'linear') == []  # timm's alias says too little


def test_both_vtab_means_are_always_there():
    means = {
        mean: {
            (entry.checkpoint, entry.method, entry.source) for entry in references() if entry.dataset == mean
        }
        for mean in ('vtab_mean19', 'vtab_mean3')
    }
    assert means['vtab_mean19'] == means['vtab_mean3']


def test_every_entry_says_where_it_is_from():
    recipes = {path.stem for path in (ROOT / 'configs/_base_/recipes').glob('*.py')}
    for entry in references():
        assert entry.recipe in recipes | set(UNKNOWN), entry
        assert entry.checkpoint in (ORIG, AUGREG, CLIP, 'not stated') and entry.split, entry
        assert (
            'arXiv:' in entry.source
            or 'ModelScope card damo/' in entry.source
            or entry.method == 'adaptformer'
        ), entry
        assert entry.recipe == 'not published' or 'ModelScope' not in entry.source, entry


GOOD = 'dataset: d, checkpoint: c, method: m, value: 80, source: s, recipe: r, split: train / test'


def written(tmp_path, text):
    path = tmp_path / 'references.yaml'
    path.write_text(text)
    return path


def test_what_is_read(tmp_path):
    path = written(
        tmp_path, f'shared: [&s {{note: n}}]\nreferences:\n- {{{GOOD}}}\n- {{<<: *s, {GOOD}, source: t}}\n'
    )
    assert references(path) == (
        Reference('d', 'c', 'm', 80, 's', 'r', 'train / test'),
        Reference('d', 'c', 'm', 80, 't', 'r', 'train / test', 'n'),
    )


@pytest.mark.parametrize(
    'text, message',
    [
        ('references: [', r'cannot be read: .*YAML'),
        ('- {}', 'cannot be read'),
        ('references: 5', 'cannot be read.*a list `references`'),
        ('other: []', r"cannot be read: KeyError\('references'\)"),
        ('references: [80.0]', 'entry 1 of .* is 80.0; it must be a mapping with dataset, checkpoint'),
        (f'references: [{{{GOOD}, vaule: 3}}]', "key in entry 1 of .* 'vaule'. Did you mean 'value'"),
        (f'references: [{{{GOOD}}}, {{dataset: d}}]', 'entry 2 of .* has checkpoint None; it must be a text'),
        (f'references: [{{{GOOD.replace("80", "0.8e3")}}}]', "value '0.8e3'|value 800"),
        (
            f'references: [{{{GOOD.replace("80", "true")}}}]',
            'value True; it must be a number above 0 and up to 100',
        ),
        (f'references: [{{{GOOD}, note: 3}}]', 'has note 3; it must be a text'),
        (f'references: [{{{GOOD}}}, {{{GOOD}}}]', 'entry 2 of .* repeats d, c, m, s'),
    ],
)
def test_a_malformed_file_is_refused(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        references(written(tmp_path, text))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(DataError, match='FileNotFoundError'):
        references(tmp_path / 'none.yaml')
