"""The page of `vet check`: each finding with small pictures of the photos."""

from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from vet.check.findings import Finding
from vet.check.photos import Photos
from vet.report.page import element, items, page
from vet.report.thumbnail import captioned

SHOWN = 24  # findings of a kind
PICTURES = 4  # of a finding


def check_page(photos: Photos, found: Sequence[Finding]) -> str:
    """A page of HTML that loads nothing from anywhere. Faults come first."""
    by_kind: dict[str, list[Finding]] = defaultdict(list)
    for finding in sorted(found, key=lambda finding: (not finding.is_wrong, finding.kind)):
        by_kind[finding.kind].append(finding)
    labels = {photo.path: photo.label for photo in photos.photos}
    parts = [f'<header>{element("h1", "What vet check found")}{element("p", photos.says())}</header>']
    if not found:
        parts.append(element('p', 'Nothing unusual was found.'))
    for kind, findings in by_kind.items():
        about = [element('h2', f'{kind.capitalize()}: {len(findings):,}')]
        if len(findings) > SHOWN:
            about.append(element('p', f'The page shows {SHOWN}. --format json lists all.', 'caption'))
        for finding in findings[:SHOWN]:
            about += _shown(finding, labels)
        parts.append(f'<section>{"".join(about)}</section>')
    return page('vet check', parts)


def _shown(finding: Finding, labels: dict[str, str]) -> list[str]:
    """The sentence, the pictures of photos that can be read, and the names of other files."""
    can_be_read = finding.kind not in ('unreadable', 'left out')
    parts = [element('p', finding.text)]
    pictures = []
    for path in finding.paths[:PICTURES] if can_be_read else ():
        label = labels.get(path, '')
        lines = [line for line in (label, path[-120:]) if line]
        pictures.append(captioned(partial(str, path), lines, f'{label} {Path(path).name}'.strip()))
    if pictures:
        parts.append(f'<div class="images">{"".join(pictures)}</div>')
    others = finding.paths[len(pictures) :]
    if others and can_be_read:
        parts.append(element('p', f'and {len(others):,} more', 'caption'))
    elif others:
        parts.append(items(others[:SHOWN]))
    return parts
