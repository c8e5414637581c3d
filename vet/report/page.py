"""The parts of a page of HTML: one file that loads nothing from anywhere and runs no script.

A text that a part gets is escaped. The page has landmarks, header cells of tables and names of figures for
screen readers. The page follows the dark mode of the reader, fits a phone, and can be printed.
"""

from collections.abc import Iterable, Sequence
from html import escape

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
      content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
:root {{ --text: #1c2127; --soft: #4a535e; --page: #fff; --line: #d5dae0; --block: #f5f6f8;
         --link: #0b57a8; }}
@media (prefers-color-scheme: dark) {{
:root {{ --text: #e8eaed; --soft: #b4bcc6; --page: #16191d; --line: #3b424b; --block: #22272d;
         --link: #8ab8f0; }} }}
body {{ font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page);
        max-width: 1180px; margin: 2rem auto; padding: 0 1.5rem; }}
a {{ color: var(--link); }}
h1, h2, h3 {{ line-height: 1.2; overflow-wrap: anywhere; }}
h2 {{ margin-top: 2.5rem; border-bottom: 1px solid var(--line); padding-bottom: .3rem; }}
ul {{ padding-left: 1.3rem; color: var(--soft); font-size: 13px; overflow-wrap: anywhere; }}
.wide {{ overflow-x: auto; margin: 1rem 0; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px; }}
th, td {{ padding: .25rem .8rem; text-align: right; border-bottom: 1px solid var(--line);
          white-space: nowrap; }}
th:first-child, td:first-child {{ text-align: left; padding-left: 0; }}
th[scope=row] {{ font-weight: normal; }}
thead th {{ border-bottom: 2px solid #8a929c; white-space: normal; vertical-align: bottom; }}
tr.published td {{ white-space: normal; }}
tr.published, td.none {{ color: var(--soft); font-size: 13px; font-style: italic; }}
figure {{ margin: 0; min-width: 0; }}
figcaption, .caption {{ color: var(--soft); font-size: 13px; }}
figcaption {{ overflow-wrap: anywhere; }}
.figures {{ display: flex; flex-wrap: wrap; gap: 1.2rem 2rem; margin: 1rem 0; }}
.images {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(128px, 1fr)); gap: 1.2rem;
           margin: 1rem 0; }}
.images img {{ width: 100%; height: 128px; object-fit: contain; background: var(--block); }}
svg {{ max-width: 100%; height: auto; background: #fff; }}
summary {{ cursor: pointer; font-weight: 600; }}
pre {{ white-space: pre-wrap; overflow-wrap: anywhere; background: var(--block); padding: .6rem; }}
@media (max-width: 600px) {{ body {{ padding: 0 .8rem; margin: 1rem auto; }} }}
@media print {{ body {{ max-width: none; margin: 0; }} .wide {{ overflow: visible; }}
                figure, tr {{ break-inside: avoid; }} h2, h3 {{ break-after: avoid; }} }}
</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def page(title: str, parts: Iterable[str]) -> str:
    return PAGE.format(title=escape(title), body='\n'.join(parts))


def element(tag: str, text: str, kind: str = '') -> str:
    """An element around a text. The text is escaped."""
    return f'<{tag} class="{kind}">{escape(text)}</{tag}>' if kind else f'<{tag}>{escape(text)}</{tag}>'


def table(rows: Iterable[Sequence[str]], name: str) -> str:
    """A table with a name for screen readers. The first row and the first column are headers."""
    header, *lines = rows
    head = ''.join(f'<th scope="col">{escape(text)}</th>' for text in header)
    body = ''
    for first, *others in lines:
        cells = ''.join(element('td', text) for text in others)
        body += f'<tr><th scope="row">{escape(first)}</th>{cells}</tr>'
    return (
        f'<div class="wide" role="region" tabindex="0" aria-label="{escape(name)}"><table>'
        f'<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def figures(drawn: Iterable[tuple[str, str]]) -> str:
    return f'<div class="figures">{"".join(figure(*each) for each in drawn)}</div>'


def figure(svg: str, caption: str) -> str:
    """A drawing with its caption, which is also its name for screen readers."""
    named = svg.replace('<svg', f'<svg role="img" aria-label="{escape(caption)}"', 1)
    return f'<figure>{named}{element("figcaption", caption)}</figure>'


def items(texts: Iterable[str]) -> str:
    return f'<ul>{"".join(element("li", text) for text in texts)}</ul>'
