"""The site builds without a warning, and a page of the site asks no foreign host for anything."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import vet
from vet.registry import BACKBONES, TUNERS

ROOT = Path(__file__).parents[1]
LOADED = {'src', 'srcset', 'data', 'poster'}  # attributes whose address a browser loads
OF_LINK = {'stylesheet', 'icon', 'preload', 'prefetch', 'preconnect', 'modulepreload', 'manifest'}


class Addresses(HTMLParser):
    """The addresses that a browser loads to show a page, and those to which a reader can go."""

    def __init__(self):
        super().__init__()
        self.loaded, self.linked = [], []

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.loaded += [found[key] for key in LOADED & set(found)]
        if tag == 'link' and OF_LINK & set(found.get('rel', '').split()):
            self.loaded.append(found['href'])
        if tag in ('a', 'area') and 'href' in found:
            self.linked.append(found['href'])


def addresses(text):
    found = Addresses()
    found.feed(text)
    return found


def is_foreign(address):
    return bool(re.match(r'(https?:)?//', address or ''))


def of_css(text):
    return re.findall(r"""(?:url\(|@import)\s*["']?([^"')\s]+)""", text)


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp('site') / 'site'
    done = subprocess.run(
        [sys.executable, '-m', 'mkdocs', 'build', '--strict', '--site-dir', str(out)],
        cwd=ROOT,
        env=dict(os.environ, NO_MKDOCS_2_WARNING='1'),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.slow
def test_the_site_loads_nothing_from_a_foreign_host(site):
    pages = sorted(site.rglob('*.html'))
    assert len(pages) > 55
    for page in pages:
        found = addresses(page.read_text())
        assert found.loaded and [address for address in found.loaded if is_foreign(address)] == [], page.name
    for sheet in site.rglob('*.css'):
        assert [address for address in of_css(sheet.read_text()) if is_foreign(address)] == [], sheet.name


@pytest.mark.slow
def test_the_search_is_local_and_finds_a_public_name(site):
    index = (site / 'search/search_index.json').read_text()
    assert 'register_tuner' in index and 'vet serve' in index


def test_a_foreign_address_is_found():
    page = '<script src="https://a.example/x.js"></script><a href="https://b.example">b</a><link rel=icon href=//c.example/i>'
    found = addresses(page)
    assert [address for address in found.loaded if is_foreign(address)] == [
        'https://a.example/x.js',
        '//c.example/i',
    ]
    assert found.linked == ['https://b.example']
    assert of_css('@import "https://a.example/a.css"; b { background: url(b.png) }') == [
        'https://a.example/a.css',
        'b.png',
    ]


def test_every_public_function_is_on_the_page_of_python_or_is_a_method():
    from website import reference

    page = reference.python()
    rest = {name for name in vet.__all__ if f'### `vet.{name}`' not in page}
    plugins = set(vet.TUNERS.names()) | {name for name in rest if name.isupper()}
    assert rest <= plugins


def test_every_equation_is_mathml_of_a_method():
    from website import methods

    assert len(methods.EQUATIONS) > 30 and set(methods.EQUATIONS) <= set(methods.own())
    for latex in methods.EQUATIONS.values():
        made = methods.math(latex)
        assert '<math' in made and not re.search(r'\\[a-z]|>\s*[{}]\s*<', made), latex


def test_the_drawing_shows_the_edits_that_the_tuner_made():
    from website.drawing import drawing, edits

    vit = BACKBONES.build(
        dict(
            type='timm',
            name='vit_tiny_patch16_224',
            pretrained=False,
            kwargs=dict(img_size=32, embed_dim=96, depth=2, num_heads=2),
        )
    )
    for entry, kinds, words in (
        (dict(type='LoRA', at='attn.proj'), {'reweight'}, '2 of 2 blocks'),
        (dict(type='Partial'), {'thaw'}, '1 of 2 blocks'),
        (dict(type='VPT'), {'before', 'after'}, '2 of 2 blocks'),
        (dict(type='LinearProbe'), set(), 'Only the head trains'),
    ):
        tuner = TUNERS.build(entry)
        tuner.attach(vit)
        shown = drawing(tuner, 2)
        assert {kind for kind, _, _ in edits(tuner)} == kinds and words in shown
        assert set(re.findall(r'class="(thaw|reweight|before|after)', shown)) == kinds
        assert set(re.findall(r'class="box (thaw|reweight)', shown)) == kinds & {'thaw', 'reweight'}
        tuner.detach()


def test_the_chooser_shows_the_best_of_the_result_file():
    from website import chooser

    runs = chooser.results()['runs']
    small = {name: run for name, run in runs.items() if run['parameters'] <= 30_000 and 'wider' not in name}
    first = max(small.values(), key=lambda run: run['accuracy'])
    assert f'({100 * first["accuracy"]:.0f} %)' in chooser.best(small).partition(',')[0]


def test_a_docstring_becomes_paragraphs_and_a_list():
    from website import reference

    text = reference.prose('y = a*b.\n\nrank: one value,\n    or a list.\nat: places.\nIt returns y_N.')
    assert (
        text
        == 'y = a\\*b.\n\n\n- **rank**: one value,\n    or a list.\n- **at**: places.\n\nIt returns y\\_N.'
    )
