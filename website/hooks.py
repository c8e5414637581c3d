"""The pages that nobody writes: MkDocs calls these functions while `make docs` builds the site."""

import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT)]

from website import reference  # noqa: E402

# files at the top of the checkout, which are pages too
OF_TOP = {'CHANGELOG.md': 'changelog.md', 'CONTRIBUTING.md': 'contributing.md', 'SECURITY.md': 'reporting.md'}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are made: from files at the top, from docstrings and from the commands."""
    pages = {page: links_of_site((ROOT / name).read_text(encoding='utf-8')) for name, page in OF_TOP.items()}
    pages |= reference.pages()
    for page, text in pages.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Links between a page and a file at the top become links between pages."""
    for name, page in OF_TOP.items():
        markdown = markdown.replace(f'](../{name})', f']({page})')
    return markdown


def links_of_site(text: str) -> str:
    """The text of a file at the top, with links that hold in the site."""
    return text.replace('](docs/', '](')
