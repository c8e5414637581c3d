"""What the package says of itself: its name on PyPI, its extras, its version."""

import re
import tomllib
from pathlib import Path

import yaml

import vet

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
INSTALL = re.compile(r'pip install (?:-\S+ )*["\'`]?([a-z][\w-]*)(?:\[(\w+)\])?')


def installs():
    """Each `pip install NAME[EXTRA]` that vet or a document tells a user."""
    for path in [*ROOT.glob('vet/**/*.py'), *ROOT.glob('docs/*.md'), ROOT / 'README.md']:
        for found in INSTALL.finditer(path.read_text()):
            yield path.relative_to(ROOT), *found.groups()


def test_what_a_user_is_told_to_install_is_this_package_and_an_extra_that_exists():
    told = list(installs())
    assert len(told) >= 4
    wrong = [
        line
        for line in told
        if line[1] != PROJECT['name'] or line[2] not in (None, *PROJECT['optional-dependencies'])
    ]
    assert wrong == []


def test_the_urls_are_of_this_package():
    """The release workflow publishes on PyPI, so the package's page there has the package's name."""
    steps = yaml.safe_load((ROOT / '.github/workflows/release.yml').read_text())['jobs']['publish']['steps']
    assert any('pypi-publish' in step['uses'] for step in steps)
    page = f'https://pypi.org/project/{PROJECT["name"]}/'
    assert PROJECT['urls'] == {'Releases': page, 'Release notes': f'{page}#history'}


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
    assert (citation['version'], citation['license']) == (vet.__version__, PROJECT['license'])


def test_workflows_call_targets_that_the_makefile_has():
    targets = set(re.findall(r'^([\w-]+):', (ROOT / 'Makefile').read_text(), re.MULTILINE))
    called = set()
    for path in (ROOT / '.github/workflows').glob('*.yml'):
        for job in yaml.safe_load(path.read_text())['jobs'].values():
            called |= set(
                re.findall(r'make ([\w-]+)', ' '.join(step.get('run', '') for step in job['steps']))
            )
    assert {'test', 'lint', 'test-all'} <= called <= targets


def test_every_target_is_in_the_help():
    text = (ROOT / 'Makefile').read_text()
    public = set(re.search(r'^\.PHONY: (.*)$', text, re.MULTILINE)[1].split())
    described = set(re.findall(r'^## ([\w-]+)', text, re.MULTILINE))
    assert public == described


def test_lint_checks_the_format():
    recipe = (ROOT / 'Makefile').read_text().partition('\nlint:')[2].partition('\n\n')[0]
    assert 'ruff check .' in recipe and 'ruff format --check .' in recipe and 'mypy' in recipe
    jobs = yaml.safe_load((ROOT / '.github/workflows/tests.yml').read_text())['jobs']
    assert {'run': 'make lint'} in jobs['lint']['steps']
