"""The report of a run in headless Chromium, on a phone and on a desk, in dark mode and in print."""

import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason='Chromium is not installed')]
FRAME = """<!DOCTYPE html><iframe id="page" src="{page}" style="width: {width}px; height: 2000px"></iframe>
<script>
onload = () => {{
  const page = document.getElementById('page').contentDocument;
  const broken = [...page.images].filter(image => !image.naturalWidth).length;
  document.body.innerHTML = `<p>wide=${{page.documentElement.scrollWidth}} images=${{page.images.length}}
    broken=${{broken}} tables=${{page.querySelectorAll('table').length}}</p>`;
}};
</script>"""


def chromium(folder, *arguments):
    options = ('--headless', '--no-sandbox', '--disable-gpu', f'--user-data-dir={folder / "profile"}')
    done = subprocess.run([CHROMIUM, *options, *map(str, arguments)], capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode()


@pytest.mark.parametrize('width', [360, 1200])
def test_nothing_is_wider_than_the_screen(trainer, tmp_path, width):
    page = (trainer.folder.path / 'report.html').as_uri()
    (tmp_path / 'frame.html').write_text(FRAME.format(page=page, width=width))
    dom = chromium(
        tmp_path, '--allow-file-access-from-files', '--dump-dom', (tmp_path / 'frame.html').as_uri()
    )
    found = {name: int(value) for name, value in re.findall(r'(\w+)=(\d+)', dom.partition('<p>')[2])}
    assert (
        0 < found['wide'] <= width and found['images'] >= 24 and not found['broken'] and found['tables'] >= 4
    )


@pytest.mark.parametrize('is_dark', [False, True])
def test_light_and_dark(trainer, tmp_path, is_dark):
    picture = tmp_path / 'page.png'
    chromium(
        tmp_path,
        f'--blink-settings=preferredColorScheme={0 if is_dark else 1}',
        '--window-size=800,900',
        f'--screenshot={picture}',
        (trainer.folder.path / 'report.html').as_uri(),
    )
    pixels = np.asarray(Image.open(picture).convert('L'))
    corner = pixels[:5, :5].mean()
    assert (corner < 60) == is_dark and abs(float(pixels.min()) - float(pixels.max())) > 150


def test_print(trainer, tmp_path):
    chromium(
        tmp_path, f'--print-to-pdf={tmp_path / "page.pdf"}', (trainer.folder.path / 'report.html').as_uri()
    )
    assert (tmp_path / 'page.pdf').read_bytes().startswith(b'%PDF')
