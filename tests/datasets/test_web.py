"""Servers of strangers: where they lead, how long they take, and how much they send."""

import io
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from vet.datasets import image as image_module
from vet.datasets import web as module
from vet.datasets.image import open_image
from vet.datasets.web import DownloadError, Redirects, fetch_file, read_url
from vet.errors import DataError

buffer = io.BytesIO()
Image.new('RGB', (2, 2), (255, 0, 0)).save(buffer, 'PNG')
PNG = buffer.getvalue()


class Handler(BaseHTTPRequestHandler):
    """Answers by the first word of the path, and drips until the client is gone."""

    def do_GET(self):
        what, _, rest = self.path[1:].partition('?')
        if what == 'to':
            self.send_response(302)
            self.send_header('Location', rest)
            self.end_headers()
        elif what == 'round':
            self.send_response(302)
            self.send_header('Location', '/round')
            self.end_headers()
        elif what == 'head':
            self.drip(b'HTTP/1.1 200 OK\r\n', b'X-Slow: 1\r\n')
        elif what == 'body':
            self.drip(b'HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n', b'x')
        elif what == 'endless':
            self.drip(b'HTTP/1.1 200 OK\r\n\r\n', bytes(2**16), 0)
        else:
            data = PNG[:-9] if what == 'cut' else PNG
            self.send_response(200)
            self.send_header('Content-Length', str(len(PNG)))
            self.end_headers()
            self.wfile.write(data)

    def drip(self, first, drop, seconds=0.05):
        try:
            self.wfile.write(first)
            while not self.server.over.wait(seconds):
                self.wfile.write(drop)
                self.wfile.flush()
        except OSError:
            self.close_connection = True
            self.server.gone.set()

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    made = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    made.over, made.gone = threading.Event(), threading.Event()
    thread = threading.Thread(target=made.serve_forever, kwargs={'poll_interval': 0.01}, daemon=True)
    thread.start()
    yield made
    made.over.set()
    made.shutdown()
    made.server_close()
    thread.join()


@pytest.fixture
def address(server):
    return f'http://127.0.0.1:{server.server_port}'


def test_another_http_address_is_followed(address):
    assert open_image(f'{address}/to?{address}/image').getpixel((0, 0)) == (255, 0, 0)
    assert open_image(f'{address}/a picture ä.png').size == (2, 2)


@pytest.mark.parametrize(
    'target',
    [
        'file:///etc/hostname',
        'ftp://127.0.0.1/a.png',
        'FILE:///etc/hostname',
        'data:text/plain,x',
        'gopher://127.0.0.1/',
        'jar:file:///a',
    ],
)
def test_another_scheme_is_refused(address, target):
    with pytest.raises(DataError, match='cannot read http.*(refused|not allowed)'):
        open_image(f'{address}/to?{target}')


def test_https_is_not_left_for_http():
    class Answer:
        pass

    from urllib.request import Request

    with pytest.raises(DownloadError, match='not from https to http'):
        Redirects().redirect_request(Request('https://a.org/x'), Answer(), 302, '', {}, 'http://a.org/x')


def test_a_server_that_leads_in_a_circle_is_left(address):
    with pytest.raises(DataError, match='redirect|infinite loop'):
        open_image(f'{address}/round')


@pytest.mark.parametrize('what', ['head', 'body'])
def test_a_server_that_drips_is_cut_off(server, address, what):
    """Each drop comes long before the server's own limit; only the time of all of them is too long."""
    with pytest.raises(DownloadError, match='took more than 0.4 s'):
        read_url(f'{address}/{what}', 10**9, 0.4)
    assert server.gone.wait(30)  # the connection was closed, not left to a thread


def test_the_limits_of_an_image_are_these(address, monkeypatch):
    monkeypatch.setattr(image_module, 'URL_LIMIT_SECONDS', 0.4)
    with pytest.raises(DataError, match='took more than'):
        open_image(f'{address}/body')


def test_more_bytes_than_allowed(address):
    with pytest.raises(DownloadError, match='more than 1000 bytes'):
        read_url(f'{address}/endless', 1000, 60)


def test_an_end_before_the_end(address, tmp_path):
    with pytest.raises(DownloadError, match='9 bytes before the end'):
        read_url(f'{address}/cut', 10**6, 60)
    with pytest.raises(DownloadError, match='9 bytes before the end of a.png'):
        fetch_file(f'{address}/cut', tmp_path / 'a.png', 60)
    assert not list(tmp_path.iterdir())
    fetch_file(f'{address}/whole', tmp_path / 'a.png', 60)
    assert (tmp_path / 'a.png').read_bytes() == PNG


def test_no_scheme_but_http_is_opened(tmp_path):
    for url in ('file:///etc/hostname', 'ftp://127.0.0.1/x', 'data:text/plain,x'):
        with pytest.raises(DownloadError, match='unknown url type'):
            read_url(url, 100, 5)


def test_a_proxy_of_the_environment_is_used_and_told(monkeypatch, address):
    for name in ('http_proxy', 'HTTP_PROXY', 'no_proxy', 'NO_PROXY'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('http_proxy', 'http://127.0.0.1:9')
    with pytest.raises(DownloadError, match='through the proxy that the environment sets'):
        read_url('http://images.invalid/a.png', 100, 5)
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    assert read_url(f'{address}/whole', 10**6, 30) == PNG
    assert module.opener([]).handle_open.keys() >= {'http', 'https', 'unknown'}
