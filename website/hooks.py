"""The pages that nobody writes: MkDocs calls these functions while `make docs` builds the site."""

import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT)]

from website import chooser, methods, notebooks, reference  # noqa: E402

# files at the top of the checkout, which are pages too
OF_TOP = {'CHANGELOG.md': 'changelog.md', 'CONTRIBUTING.md': 'contributing.md', 'SECURITY.md': 'reporting.md'}
BUDGET = '<!-- budget -->'  # where docs/choose.md has its tables


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The navigation lists each method below the page of all methods."""
    for section in config.nav or []:
        for entry in next(iter(section.values())):
            if isinstance(entry, dict) and 'Methods' in entry:
                entry['Methods'] = ['methods/index.md', *(f'methods/{name}.md' for name in methods.own())]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are made: from files at the top, from docstrings and from the commands."""
    pages = {page: links_of_site((ROOT / name).read_text(encoding='utf-8')) for name, page in OF_TOP.items()}
    pages |= reference.pages() | methods.pages() | notebooks.pages()
    for page, text in pages.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Links between a page and a file at the top become links between pages."""
    for name, page in OF_TOP.items():
        markdown = markdown.replace(f'](../{name})', f']({page})')
    if BUDGET in markdown:
        markdown = markdown.replace(BUDGET, chooser.budgets())
    return markdown


def links_of_site(text: str) -> str:
    """The text of a file at the top, with links that hold in the site."""
    return text.replace('](docs/', '](')
