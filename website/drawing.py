"""Where a method acts, as an SVG drawing of a ViT. The edits of the attached tuner say what is drawn.

Above: the network, from the image to the head. Below: one of its blocks.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vet.core.coverage import paths_of
from vet.core.edits import FlowEdit, Thaw
from vet.core.tuner import Tuner

KINDS = {  # as the edits are called -> what the legend says
    'thaw': 'thaw: these numbers of the network train',
    'reweight': 'reweight: a delta computes the weight',
    'before': 'before: a delta changes the input',
    'after': 'after: a delta changes the output',
}
BLOCK = re.compile(r'blocks\.(\d+)(?:\.(.+))?')
LETTERS = {'weight': 'W', 'bias': 'b'}


@dataclass(frozen=True)
class Box:
    """A part of the drawing. is_around: a frame around other boxes. bow: how far an `after` runs below."""

    left: int
    right: int
    top: int
    label: str = ''
    is_around: bool = False
    bow: int = 22

    @property
    def bottom(self) -> int:
        return self.top + (50 if self.is_around else 30)

    @property
    def middle(self) -> int:
        return (self.top + self.bottom) // 2


NETWORK = {
    '': Box(14, 566, 14, is_around=True, bow=12),
    'patch_embed': Box(74, 144, 24, 'patches'),
    'norm': Box(494, 554, 24, 'norm'),
    'head': Box(584, 644, 24, 'head'),
}
PARTS = {
    'norm1': Box(56, 106, 142, 'norm'),
    'attn.qkv': Box(134, 182, 142, 'qkv'),
    'attn.core': Box(194, 262, 142, 'attention'),
    'attn.proj': Box(274, 318, 142, 'proj'),
    'norm2': Box(372, 422, 142, 'norm'),
    'mlp.fc1': Box(450, 490, 142, 'fc1'),
    'mlp.act': Box(502, 546, 142, 'GELU'),
    'mlp.fc2': Box(558, 598, 142, 'fc2'),
    'attn': Box(124, 328, 132, is_around=True, bow=34),
    'mlp': Box(440, 608, 132, is_around=True, bow=34),
}
WHOLE = Box(30, 644, 132, bow=58, is_around=True)  # a block, whose frame is larger
CELLS = (158, 480)  # the blocks in the drawing of the network
NOTE = 586  # the middle of the sentence about blocks
SUMS = (346, 626)  # the places of both residual sums

Marks = Mapping[str, Mapping[str, set[str]]]  # path -> kind of edit -> which numbers train


def edits(tuner: Tuner) -> list[tuple[str, str, str]]:
    """(kind, path of a module, 'weight', 'bias' or '') of each edit of an attached tuner."""
    assert tuner.backbone is not None
    found = []
    for edit, path in zip(tuner._edits, paths_of(tuner._edits, tuner.backbone.network)):
        if isinstance(edit, Thaw):
            name = edit.name if edit.name in LETTERS else ''
            found.append(('thaw', path.removesuffix(f'.{edit.name}'), name))
        elif isinstance(edit, FlowEdit):
            found.append(('before' if edit.is_before else 'after', path, ''))
        else:
            found.append(('reweight', path, ''))
    return found


def drawing(tuner: Tuner, depth: int) -> str:
    """The drawing of a tuner that is attached to timm's ViT of `depth` blocks."""
    network: defaultdict[str, defaultdict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    blocks: dict[int, defaultdict[str, defaultdict[str, set[str]]]] = {}
    for kind, path, name in edits(tuner):
        found = BLOCK.fullmatch(path)
        if found:
            block = blocks.setdefault(int(found[1]), defaultdict(lambda: defaultdict(set)))
            block[found[2] or ''][kind].add(name)
        else:
            network[path.removesuffix('.proj')][kind].add(name)
    most = max((len(parts) for parts in blocks.values()), default=0)
    shown = next((i for i, parts in blocks.items() if len(parts) == most), 0)
    inside = blocks.get(shown, {})
    used = {kind for marks in (network, inside) for kinds in marks.values() for kind in kinds}
    parts = [
        *_network(network, set(blocks), depth, shown),
        *_block(inside),
        *_legend([kind for kind in KINDS if kind in used]),
    ]
    title = f'Where {type(tuner).__name__} acts in a ViT'
    return (
        f'<svg class="method" viewBox="0 0 690 268" role="img" aria-label="{title}"><title>{title}</title>'
        f'{"".join(parts)}</svg>'
    )


def _network(marks: Marks, edited: set[int], depth: int, shown: int) -> Iterable[str]:
    yield _line(48, 39, 584, 39)
    yield _text(30, 43, 'image')
    start, end = CELLS
    step = (end - start) / depth
    for i in range(depth):
        kind = 'some' if i in edited else ''
        left = f'{start + i * step + 2:.0f}'
        yield f'<rect class="box {kind}" x="{left}" y="24" width="{step - 4:.0f}" height="30" rx="3"/>'
    yield _text(NOTE, 70, f'{len(edited)} of {depth} blocks are edited')
    zoom = start + shown * step + 2
    yield f'<path class="zoom" d="M{zoom:.0f} 54 L30 108 M{zoom + step - 4:.0f} 54 L644 108"/>'
    for path in ('patch_embed', 'norm', 'head'):
        yield from _box(NETWORK[path], marks.get(path, {}))
    tokens = marks.get('cls_token', {}) or marks.get('pos_embed', {})
    if tokens:
        yield _text(109, 70, 'and tokens', 'thawed')
    yield from _flow(NETWORK[''], marks.get('', {}))


def _block(marks: Marks) -> Iterable[str]:
    yield '<rect class="around" x="30" y="108" width="614" height="96" rx="8"/>'
    yield _line(12, 157, 664, 157)
    yield f'<path class="line" d="M44 157 V120 H{SUMS[0]} V150 M{SUMS[0] + 14} 157 V120 H{SUMS[1]} V150"/>'
    for x in SUMS:
        yield f'<circle class="box" cx="{x}" cy="157" r="7"/>'
        yield f'<path class="line" d="M{x - 4} 157 h8 M{x} 153 v8"/>'
    for box in PARTS.values():
        if box.is_around:
            yield (
                f'<rect class="around" x="{box.left}" y="{box.top}" width="{box.right - box.left}" '
                'height="50" rx="6"/>'
            )
    for path, box in PARTS.items():
        if not box.is_around:
            yield from _box(box, marks.get(path, {}))
    for path in ('attn', 'mlp'):
        yield from _flow(PARTS[path], marks.get(path, {}))
    yield from _flow(WHOLE, marks.get('', {}))


def _box(box: Box, kinds: Mapping[str, set[str]]) -> Iterable[str]:
    filled = next((kind for kind in ('reweight', 'thaw') if kind in kinds), '')
    yield (
        f'<rect class="box {filled}" x="{box.left}" y="{box.top}" width="{box.right - box.left}" '
        'height="30" rx="4"/>'
    )
    yield _text((box.left + box.right) // 2, box.middle + 4, box.label)
    letters = ' '.join(LETTERS[name] for name in LETTERS if name in kinds.get('thaw', ()))
    if letters:
        yield _text((box.left + box.right) // 2, box.bottom + 10, letters, 'thawed')
    yield from _flow(box, kinds)


def _flow(box: Box, kinds: Mapping[str, set[str]]) -> Iterable[str]:
    """The deltas before and after a box."""
    y = box.middle
    if 'after' in kinds:
        low, middle = box.bottom + box.bow, (box.left + box.right) // 2
        left, right = box.left - 5, box.right + 5
        yield f'<path class="after line" d="M{left} {y} V{low} H{right} V{y + 3}"/>'
        yield f'<rect class="after" x="{middle - 14}" y="{low - 8}" width="28" height="16" rx="8"/>'
        yield _text(middle, low + 4, 'δ')
    if 'before' in kinds:
        yield f'<rect class="before" x="{box.left - 15}" y="{y - 8}" width="20" height="16" rx="8"/>'
        yield _text(box.left - 5, y + 4, 'δ')


def _legend(kinds: list[str]) -> Iterable[str]:
    if not kinds:
        yield _text(337, 256, 'Nothing in the network is edited. Only the head trains.')
    width = 660 // max(len(kinds), 1)
    for i, kind in enumerate(kinds):
        x = 14 + i * width
        yield f'<rect class="{kind} box" x="{x}" y="246" width="14" height="14" rx="4"/>'
        yield f'<text class="left" x="{x + 20}" y="257">{KINDS[kind]}</text>'


def _line(left: int, top: int, right: int, bottom: int) -> str:
    return f'<path class="line" d="M{left} {top} L{right} {bottom}"/>'


def _text(x: int, y: int, text: str, kind: str = '') -> str:
    return f'<text class="{kind}" x="{x}" y="{y}">{text}</text>'
