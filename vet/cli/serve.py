"""Serves tuned models over HTTP, with a page to try them. Many models share one frozen backbone."""

import argparse
import importlib.util
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from vet.cli.command import Options, Parser, add_backbone, add_import, import_plugins, run
from vet.cli.signals import imports
from vet.errors import UserError
from vet.serve.limits import Limits

if TYPE_CHECKING:
    from vet.serve.engine import Engine
    from vet.serve.metrics import Metrics
    from vet.serve.sources import Sources

NEEDED = ('fastapi', 'uvicorn', 'prometheus_client', 'python_multipart', 'fastapi_offline')
TOKEN = 'VET_SERVE_TOKEN'
HERE = ('127.0.0.1', 'localhost', '::1')
UNITS = {'K': 2**10, 'M': 2**20, 'G': 2**30}


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument(
        'models',
        nargs='+',
        metavar='MODEL',
        help='a model folder, a folder of model folders, an ONNX file of `vet export`, an id OWNER/NAME of a '
        'hub, or NAME=one of these',
    )
    parser.add_argument('--host', default='127.0.0.1', help='(default: %(default)s, this machine alone)')
    parser.add_argument('--port', type=int, default=8000, help='0 takes a free port (default: %(default)s)')
    parser.add_argument('--device', help='cpu, cuda, cuda:1, … (default: the best device of the machine)')
    add_backbone(parser)
    parser.add_argument(
        '--memory',
        metavar='SIZE',
        help='the most memory of models with their backbones, such as 512M or 4G (default: half of the free '
        'memory)',
    )
    parser.add_argument(
        '--max-batch', type=int, default=32, help='images of a forward (default: %(default)s)'
    )
    parser.add_argument(
        '--max-wait-ms',
        type=float,
        default=5.0,
        help='an image waits so long for others (default: %(default)s)',
    )
    parser.add_argument(
        '--max-queue', type=int, default=256, help='images that may wait; more get 429 (default: %(default)s)'
    )
    parser.add_argument('--max-images', type=int, default=64, help='of a request (default: %(default)s)')
    parser.add_argument(
        '--max-body', metavar='SIZE', default='32M', help='of a request (default: %(default)s)'
    )
    parser.add_argument(
        '--max-pixels', type=int, default=50_000_000, help='of an image (default: %(default)s)'
    )
    parser.add_argument(
        '--timeout', type=float, default=30.0, metavar='SECONDS', help='of a request (default: %(default)s)'
    )
    parser.add_argument(
        '--token-file',
        metavar='FILE',
        help=f'requests must send the token in this file (default: the variable {TOKEN}, or no token)',
    )
    parser.add_argument(
        '--allow-urls',
        metavar='HOST,…',
        type=_words,
        default=[],
        help='hosts of which requests may name images by URL (default: none)',
    )
    parser.add_argument(
        '--allow-origin',
        metavar='URL,…',
        type=_words,
        default=[],
        help='other pages that may read answers in a browser, by CORS (default: none)',
    )
    parser.add_argument(
        '--allow-host',
        metavar='NAME,…',
        type=_words,
        default=[],
        help='more names by which requests may call this server (default: on 127.0.0.1, only localhost)',
    )
    parser.add_argument(
        '--launcher',
        choices=list(LAUNCHERS),
        default='local',
        help='where networks compute: in this process, or in replicas on a Ray cluster',
    )
    parser.add_argument(
        '--replicas',
        type=int,
        metavar='N',
        help='the largest number of replicas on the cluster (default: one replica for each GPU, or for each '
        'machine if there is no GPU)',
    )
    parser.add_argument(
        '--resources',
        nargs='+',
        action=Options,
        metavar='KEY=VALUE',
        help='of a replica on the cluster, such as num_gpus=0.5 num_cpus=4',
    )
    add_import(parser)
    args = parser.parse_args()
    run(lambda: _serve(args), ends_by_signal=True)


def _serve(args: argparse.Namespace) -> None:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f'serving needs {missing[0]}: pip install "vision-efficient-tuning[serve]".')
    memory = (
        psutil.virtual_memory().available // 2 if args.memory is None else _bytes('--memory', args.memory)
    )
    if args.launcher == 'local' and (args.replicas is not None or args.resources is not None):
        raise UserError('--replicas and --resources are for --launcher ray.')
    if args.replicas is not None and args.replicas < 1:
        raise UserError(f'--replicas is {args.replicas}; allowed: 1 or more.')
    token = _token(args.token_file)
    import_plugins(args.imports)
    with imports():
        from vet.serve.app import build_app
        from vet.serve.logs import show_json
        from vet.serve.metrics import Metrics
        from vet.serve.server import Server, address, listen
        from vet.serve.sources import Sources, require_models
        from vet.serve.urls import AllowedHosts
    limits = _limits(args)
    metrics = Metrics()
    sources = Sources(args.models)
    require_models(sources)
    engine = LAUNCHERS[args.launcher](args, sources, memory, limits, metrics)
    is_checked = args.host in HERE or args.allow_host
    names = [*HERE, *args.allow_host] if is_checked else ['*']
    app = build_app(
        engine,
        limits,
        metrics,
        token,
        AllowedHosts(args.allow_urls),
        args.allow_origin,
        names,
        lambda: server.is_ready,
    )
    server = Server(app, limits)
    with listen(args.host, args.port) as listening:
        show_json(args.quiet)
        count = len(sources.names())
        print(f'{count} model{"s" * (count != 1)} at {address(listening)}', flush=True)
        server.serve_on(listening)


def _local(
    args: argparse.Namespace, sources: 'Sources', memory: int, limits: Limits, metrics: 'Metrics'
) -> 'Engine':
    from vet.serve.engine import LocalEngine
    from vet.serve.models import Models

    return LocalEngine(Models(sources, memory, limits, metrics, args.device, args.backbone), limits, metrics)


def _ray(
    args: argparse.Namespace, sources: 'Sources', memory: int, limits: Limits, metrics: 'Metrics'
) -> 'Engine':
    with imports():
        from vet.serve.ray_engine import RayEngine

    return RayEngine(
        sources,
        memory,
        limits,
        metrics,
        args.device,
        args.backbone,
        args.replicas,
        args.resources,
        partial(import_plugins, args.imports),
    )


LAUNCHERS: dict[str, Callable[..., 'Engine']] = dict(local=_local, ray=_ray)


def _limits(args: argparse.Namespace) -> Limits:
    for name in ('max_batch', 'max_queue', 'max_images', 'max_pixels'):
        if getattr(args, name) < 1:
            raise UserError(f'--{name.replace("_", "-")} is {getattr(args, name)}; allowed: 1 or more.')
    if not 0 <= args.max_wait_ms <= 10_000:
        raise UserError(f'--max-wait-ms is {args.max_wait_ms}; allowed: 0 to 10000.')
    if not 0.1 <= args.timeout <= 3600:
        raise UserError(f'--timeout is {args.timeout}; allowed: 0.1 to 3600 seconds.')
    body = _bytes('--max-body', args.max_body)
    return Limits(
        body=body,
        bodies=8 * body,
        pixels=args.max_pixels,
        images=args.max_images,
        queue=args.max_queue,
        seconds=args.timeout,
        batch=args.max_batch,
        wait=args.max_wait_ms / 1000,
    )


def _bytes(option: str, text: str) -> int:
    """The bytes of a size such as 512M."""
    number, unit = (text[:-1], text[-1].upper()) if text[-1:].upper() in UNITS else (text, '')
    if not number.isdigit() or int(number) < 1:
        raise UserError(f'{option} is {text!r}; allowed: a whole number with K, M or G, such as 512M.')
    return int(number) * UNITS.get(unit, 1)


def _words(text: str) -> list[str]:
    """The words of a text with commas between them."""
    return [word.strip() for word in text.split(',') if word.strip()]


def _token(path: str | None) -> str | None:
    """The token that requests must send. UserError for a text that no header can hold."""
    if path is None and not os.environ.get(TOKEN):
        return None
    try:
        token = (os.environ[TOKEN] if path is None else Path(path).read_text()).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f'--token-file is {path!r}, which cannot be read ({error}).') from error
    if not token or not all('!' <= letter <= '~' for letter in token):
        place = f'the variable {TOKEN}' if path is None else f'the file {path!r} of --token-file'
        raise UserError(
            f'{place} must hold one word, the token: letters a to z and A to Z, digits and signs of ASCII.'
        )
    return token
