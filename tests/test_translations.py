"""The Chinese pages have the headings and the code of the English pages. Both READMEs open in the same way."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAIRS = [('README.md', 'README.zh-CN.md'), ('docs/index.md', 'docs/zh.md')]


def blocks(text):
    return re.findall(r'^(?:<!-- needs: [^>]* -->\n)?```.*?^```$', text, re.MULTILINE | re.DOTALL)


def without_blocks(text):
    return re.sub(r'^```.*?^```$', '', text, flags=re.MULTILINE | re.DOTALL)


def levels(text):
    """How deep each heading lies."""
    return [len(mark) for mark in re.findall(r'^(#+) ', without_blocks(text), re.MULTILINE)]


@pytest.mark.parametrize('english, chinese', PAIRS, ids=lambda page: page)
def test_headings_and_code_are_the_same(english, chinese):
    one, two = ((ROOT / page).read_text() for page in (english, chinese))
    assert blocks(one) == blocks(two) and len(blocks(one)) > 5
    assert levels(one) == levels(two)
    headings = re.findall(r'^#+ (.*)$', without_blocks(two), re.MULTILINE)
    assert [title for title in headings if not re.search(r'[\u4e00-\u9fff]', title)] == []


@pytest.mark.parametrize('page', PAIRS[0])
def test_readme_opens_with_a_picture_and_three_commands_and_has_no_early_table(page):
    opening, *sections = (ROOT / page).read_text().split('\n## ')
    [commands] = re.findall(r'```sh\n(.*?)```', opening, re.DOTALL)
    assert opening.split('\n\n')[1].startswith('![') and len(commands.splitlines()) == 3
    before, _, _ = (ROOT / page).read_text().partition('\n|')
    assert before.count('\n') > 2 * 50  # lines of a screen
