"""Fixtures of the dataset tests: the real data, a local web server, and pictures whose colour is their id."""

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

REAL_DATA = Path(__file__).parents[3] / 'shared' / 'data'


@pytest.fixture
def real_data():
    """The folder of real datasets beside the checkout."""
    if not REAL_DATA.is_dir():
        pytest.skip(f'no real data in {REAL_DATA}')
    return REAL_DATA


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def web(tmp_path):
    """(folder, address): a web server on the loopback, and the folder it serves."""
    folder = tmp_path / 'web'
    folder.mkdir()
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(QuietHandler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.01}, daemon=True)
    thread.start()
    yield folder, f'http://127.0.0.1:{server.server_port}'
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def paint():
    """paint(path, id) writes a picture of a few pixels whose gray value is four times its id (0 … 63)."""

    def write(path, number):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (8, 6), (number * 4, number * 4, number * 4)).save(path, quality=95)

    return write


@pytest.fixture
def ids_of():
    """The ids of all pictures of a dataset, with their labels, read through its items."""

    def read(dataset):
        items = [dataset[index] for index in range(len(dataset))]
        return [(round(image.getpixel((3, 3))[0] / 4), label) for image, label in items]

    return read
