"""Takes the pictures of the report and of the page of vet serve, for docs/. It trains the quickstart first.

python benchmarks/screenshots.py        # needs Chromium, chromedriver and the package selenium
"""

import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import chdir, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support import expected_conditions
from selenium.webdriver.support.ui import WebDriverWait

from vet import build_trainer
from vet.datasets.digits import Digits

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / 'docs/pictures'
WAIT = 120  # seconds


@contextmanager
def browser(width: int, height: int) -> Any:
    options = webdriver.ChromeOptions()
    for argument in (
        '--headless=new',
        '--no-sandbox',
        '--hide-scrollbars',
        f'--window-size={width},{height}',
    ):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options)
    try:
        yield driver
    finally:
        driver.quit()


@contextmanager
def server(folder: Path) -> Any:
    """The address of `vet serve FOLDER`, once the server is ready."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = str(free.getsockname()[1])
    process = subprocess.Popen([sys.executable, '-m', 'vet', 'serve', str(folder), '--port', port])
    address = f'http://127.0.0.1:{port}'
    try:
        end = time.monotonic() + WAIT
        while not is_ready(address):
            assert process.poll() is None and time.monotonic() < end, 'vet serve does not answer'
            time.sleep(0.5)
        yield address
    finally:
        process.terminate()
        process.wait()


def is_ready(address: str) -> bool:
    try:
        return urllib.request.urlopen(f'{address}/readyz').status == 200
    except OSError:
        return False


def save(driver: Any, name: str) -> None:
    """A PNG file with 128 colours, which is small."""
    file = PICTURES / f'{name}.png'
    driver.save_screenshot(str(file))
    Image.open(file).convert('RGB').quantize(128).save(file, optimize=True)


def main() -> None:
    with TemporaryDirectory() as folder, chdir(folder):  # so that the report shows a short path
        build_trainer(model=str(ROOT / 'configs/quickstart.py'), work_dir='quickstart', device='cpu').train()
        run = Path('quickstart').resolve()
        with browser(1000, 1100) as driver:
            driver.get((run / 'report.html').as_uri())
            save(driver, 'report')
        with server(run) as address, browser(900, 760) as driver:
            driver.get(address)
            image, _ = Digits(split='test', digits=[5, 6, 7, 8, 9])[0]
            image.save(run / 'digit.png')
            driver.find_element(By.ID, 'files').send_keys(str(run / 'digit.png'))
            is_answered = expected_conditions.presence_of_element_located((By.CSS_SELECTOR, '#results td'))
            WebDriverWait(driver, WAIT).until(is_answered)
            time.sleep(1)  # the bars grow
            save(driver, 'served')


if __name__ == '__main__':
    main()
