"""Measures `vet serve` beside `pipeline`, with DeiT-Tiny and LoRA.

    python benchmarks/serve.py --data-root DIR

DIR holds flowers-102/jpg and weights/deit_tiny_patch16_224.safetensors. Networks compute in one thread on
each side. The jobs:

throughput: in each round, `pipeline` with two threads that decode, then the server with 32 clients and one
    model, then with 8 models. Batches have at most 32 images on each side. Then requests come at random
    moments, half as many as the server can answer.
others: in each round, 32 clients ask vet serve, LitServe and `vet serve --launcher ray`, one after the other:
    first one model, then 8 models. Bodies are JSON. Needs litserve, and the extra `ray`.
memory: folders of many models, a small --memory, and requests for some of the models, each once.
hostile: requests of which 5 % are hostile. Each other answer is compared with `pipeline`'s.

Writes results/serve.json.
"""

import argparse
import asyncio
import base64
import io
import json
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import version
from itertools import cycle, islice
from pathlib import Path
from struct import pack
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image

from vet import build_trainer, pipeline
from vet.benchmark import record
from vet.environment import describe
from vet.serve.engine import IDLE

sys.path[:0] = [str(Path(__file__).parent)]
from predict import CONFIG, WEIGHTS  # noqa: E402
from serve_client import Asked, Found, answers_of, closed_loop, form, open_loop, post  # noqa: E402

RESULTS = Path(__file__).parent / 'results' / 'serve.json'
CLIENTS = 32
BATCH = 32
MODELS = 8
CAP = 64  # MiB for the models and the backbone
HOSTILE = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--data-root', type=Path, required=True)
    parser.add_argument('--jobs', nargs='+', choices=JOBS, default=list(JOBS))
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--images', type=int, default=256, help='of a round')
    parser.add_argument('--folders', type=int, default=1000, help='of the job memory')
    parser.add_argument('--asked', type=int, default=999, help='models that are asked in the job memory')
    parser.add_argument('--requests', type=int, default=10_000, help='of the job hostile')
    record.add_output(parser, RESULTS)
    args = parser.parse_args()
    path = record.output(args)
    os.environ['OMP_NUM_THREADS'] = '1'
    torch.set_num_threads(1)
    found = json.loads(path.read_text()) if path.exists() else {}
    for name in args.jobs:
        environment = describe(torch.device('cpu'))
        with tempfile.TemporaryDirectory() as folder:
            result = JOBS[name](args, Path(folder))
        found[name] = dict(environment=environment, load=os.getloadavg(), **result)
        record.write(path, found)
        print(name, json.dumps({key: value for key, value in result.items() if key != 'rounds'}, indent=1))


def throughput(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    models = folders(folder, args.data_root, MODELS)
    photos = read_photos(args.data_root, args.images)
    classify = pipeline(model=str(models[0]), device='cpu')
    names = [model.name for model in models]
    rounds = []
    with serving(folder / 'models') as (process, port):
        load(port, [Asked(form(name, photos[0])) for name in names], 1)
        load(port, [Asked(form(name, photo)) for name, photo in zip(cycle(names), photos[:64])], CLIENTS)
        for _ in range(args.rounds):
            began = time.perf_counter()
            assert len(classify(photos, batch_size=BATCH, workers=2)) == len(photos)
            of_pipeline = len(photos) / (time.perf_counter() - began)
            one = load(port, [Asked(form(names[0], photo)) for photo in photos], CLIENTS)
            mixed = load(
                port, [Asked(form(name, photo)) for name, photo in zip(cycle(names), photos)], CLIENTS
            )
            rounds.append(dict(pipeline=of_pipeline, one=rate(one), mixed=rate(mixed)))
            print(rounds[-1], flush=True)
        half = statistics.median(each['one'] for each in rounds) / 2
        steady = asyncio.run(open_loop(port, [Asked(form(names[0], photo)) for photo in photos], half))
        peak = process.memory_info().rss / 2**20
    assert not steady.wrong, steady.wrong[:3]
    milliseconds = 1000 * np.quantile(steady.times, [0.5, 0.99])
    return dict(
        rounds=rounds,
        images=len(photos),
        one_of_pipeline=ratio(rounds, 'one', 'pipeline'),
        mixed_of_one=ratio(rounds, 'mixed', 'one'),
        half_load=dict(rate=half, p50_ms=milliseconds[0], p99_ms=milliseconds[1], requests=len(photos)),
        memory_mib=peak,
    )


def others(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    models = folders(folder, args.data_root, MODELS)
    names = [model.name for model in models]
    bodies = [base64.b64encode(photo).decode() for photo in read_photos(args.data_root, args.images)]

    def asked(model: str, image: str) -> Asked:
        body = json.dumps(dict(model=model, images=[image])).encode()
        return Asked(post('/v1/predict', body, 'application/json'))

    of_one = [asked(names[0], image) for image in bodies]
    of_eight = [asked(name, image) for name, image in zip(cycle(names), bodies)]
    os.environ['RAY_worker_niceness'] = '0'  # otherwise a replica yields to the client of this benchmark
    rounds: list[dict[str, float]] = []
    with ExitStack() as servers:
        ports = dict(
            vet=servers.enter_context(serving(folder / 'models'))[1],
            litserve=servers.enter_context(litserve(folder / 'models')),
            ray=servers.enter_context(serving(folder / 'models', '--launcher', 'ray', '--replicas', '1'))[1],
        )
        for port in ports.values():
            load(port, of_eight[:64], CLIENTS)
        for _ in range(args.rounds):
            found = {}
            for name, port in ports.items():
                found[name] = rate(load(port, of_one, CLIENTS))
                found[f'{name}_mixed'] = rate(load(port, of_eight, CLIENTS))
            rounds.append(found)
            print(found, flush=True)
    return dict(
        rounds=rounds,
        images=len(bodies),
        litserve_of_vet=ratio(rounds, 'litserve', 'vet'),
        litserve_of_vet_mixed=ratio(rounds, 'litserve_mixed', 'vet_mixed'),
        ray_of_vet=ratio(rounds, 'ray', 'vet'),
        ray_of_vet_mixed=ratio(rounds, 'ray_mixed', 'vet_mixed'),
        versions={name: version(name) for name in ('litserve', 'ray')},
    )


def memory(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    [model] = folders(folder, args.data_root, 1)
    for number in range(1, args.folders):
        shutil.copytree(model, folder / 'models' / f'copy{number}')
    photo = read_photos(args.data_root, 1)[0]
    names = [f'copy{number}' for number in random.Random(0).sample(range(1, args.folders), args.asked)]
    sizes = []
    with serving(folder / 'models', '--memory', f'{CAP}M') as (process, port):
        before = process.memory_info().rss / 2**20
        first = load(port, [Asked(form(model.name, photo))] * 8, 1)
        with_backbone = process.memory_info().rss / 2**20
        for name in names:
            each = load(port, [Asked(form(name, photo))], 1)
            assert not (first.wrong or each.wrong), (first.wrong, each.wrong)
            sizes.append(process.memory_info().rss / 2**20)
        text = metrics(port)
    return dict(
        folders=args.folders,
        asked=args.asked,
        cap_mib=CAP,
        before_mib=before,
        with_one_model_mib=with_backbone,
        most_mib=max(sizes),
        every_20_mib=sizes[::20],
        loaded_at_the_end=value(text, 'vet_models_loaded'),
        own_count_mib=value(text, 'vet_models_bytes') / 2**20,
        stays_below=max(sizes) <= with_backbone + CAP,
    )


def hostile(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    models = folders(folder, args.data_root, 2)
    photos = read_photos(args.data_root, 16)
    expected = {model.name: pipeline(str(model), device='cpu')(photos, batch_size=1) for model in models}
    draw = random.Random(0)
    bad = hostile_bodies(photos[0], models[0].name)
    requests = []
    kinds = dict[str, int]()
    for _ in range(args.requests):
        if draw.random() < HOSTILE:
            kind = draw.choice(list(bad))
            kinds[kind] = kinds.get(kind, 0) + 1
            requests.append(bad[kind])
        else:
            number = draw.randrange(len(photos))
            model = draw.choice(models).name
            requests.append(Asked(form(model, photos[number]), check=is_right(expected[model][number])))
    with serving(folder / 'models', '--timeout', '10') as (process, port):
        load(port, requests[:300], CLIENTS)
        time.sleep(2 * IDLE)  # an idle server gives freed memory back
        before = process.memory_info().rss / 2**20
        found = load(port, requests, CLIENTS)
        most = process.memory_info().rss / 2**20
        time.sleep(2 * IDLE)
        after = process.memory_info().rss / 2**20
        load(port, [Asked(form(models[0].name, photos[0]), check=is_right(expected[models[0].name][0]))], 1)
        faults = metrics(port).count('status="500"')
    return dict(
        backbone='DeiT-Tiny',
        requests=len(requests),
        hostile=kinds,
        statuses=found.statuses,
        wrong=found.wrong[:20],
        count_wrong=len(found.wrong),
        faults=faults,
        before_mib=before,
        at_the_end_mib=most,
        after_mib=after,
        growth=after / before,
        seconds=found.seconds,
    )


JOBS = dict(throughput=throughput, others=others, memory=memory, hostile=hostile)


def hostile_bodies(photo: bytes, model: str) -> dict[str, Asked]:
    """Requests that a server must refuse, with the statuses that are a clear answer."""

    def asked(data: bytes, *allowed: int, seconds: float = 0.0) -> Asked:
        def check(status: int, body: bytes) -> str | None:
            is_clear = status in allowed and bool(json.loads(body)['error'])
            return None if is_clear else f'hostile: {status} {body[:100]!r}, allowed {allowed}'

        return Asked(data, seconds, check)

    def text(**body: object) -> bytes:
        return post('/v1/predict', json.dumps(body).encode(), 'application/json')

    wide = io.BytesIO()
    Image.new('L', (9000, 9000)).save(wide, 'PNG')
    image = base64.b64encode(photo).decode()
    return {
        'truncated': asked(form(model, photo[: len(photo) // 2]), 422),
        'no image': asked(form(model, b'\0' * 2000), 422),
        'pixel bomb': asked(form(model, bomb()), 422),
        'wide image': asked(form(model, wide.getvalue()), 422),
        'wrong types': asked(text(model=[1], images={'a': 1}), 422),
        'deep json': asked(post('/v1/predict', b'[' * 200_000, 'application/json'), 422),
        'wrong kind': asked(post('/v1/predict', photo, 'text/plain'), 415),
        'a path': asked(text(model=model, images=['/etc/passwd']), 422),
        'a url': asked(text(model=model, images=[dict(url='http://169.254.169.254/')]), 422),
        'unknown model': asked(text(model='../../x', images=[image]), 404),
        '100 MB': asked(form(model, b'\0' * 100_000_000), 413),
        'slow': asked(form(model, photo), 408, seconds=30.0),
    }


def bomb() -> bytes:
    """A PNG file of a few kB that says 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return pack('>I', len(data)) + kind + data + pack('>I', zlib.crc32(kind + data))

    head = chunk(b'IHDR', pack('>IIBBBBB', 60_000, 60_000, 8, 2, 0, 0, 0))
    return b'\x89PNG\r\n\x1a\n' + head + chunk(b'IDAT', zlib.compress(bytes(10**7))) + chunk(b'IEND', b'')


def is_right(expected: dict[str, Any]) -> Any:
    """Whether an answer is pipeline's, as near as batches of other sizes and models allow."""

    def check(status: int, body: bytes) -> str | None:
        if status != 200:
            return f'{status} {body[:100]!r}'
        [answer] = answers_of(body)
        same = answer['labels'] == expected['labels']
        near = np.abs(np.subtract(answer['scores'], expected['scores'])).max() if same else 1.0
        return None if near <= 1e-6 else f'not the answer of pipeline: {near}'

    return check


def folders(folder: Path, data_root: Path, count: int) -> list[Path]:
    """Model folders of DeiT-Tiny with LoRA, whose trained numbers are random."""
    made = []
    for number in range(count):
        trainer = build_trainer(
            model=str(CONFIG),
            work_dir=folder / f'work{number}',
            data_root=str(data_root),
            device='cpu',
            cfg_options={'model.backbone.checkpoint': str(data_root / WEIGHTS)},
        )
        torch.manual_seed(number)
        with torch.no_grad():
            for parameter in trainer.model.trainable().values():
                parameter.add_(0.05 * torch.randn_like(parameter))
        made.append(folder / 'models' / f'model{number}')
        trainer.save_pretrained(made[-1])
    return made


def read_photos(data_root: Path, count: int) -> list[bytes]:
    files = sorted((data_root / 'flowers-102' / 'jpg').glob('*.jpg'))
    return [file.read_bytes() for file in islice(cycle(files), count)]


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[tuple[psutil.Process, int]]:
    """A server in its own process, and its port."""
    command = [sys.executable, '-m', 'vet', 'serve', str(folder), '--port', '0', '--quiet', '--device', 'cpu']
    process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        yield psutil.Process(process.pid), int(line.strip().rpartition(':')[2])
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


@contextmanager
def litserve(folder: Path) -> Iterator[int]:
    """A server of LitServe in its own process, and its port."""
    with socket.create_server(('127.0.0.1', 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, str(Path(__file__).with_name('serve_litserve.py')), str(folder), str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with suppress(OSError), urllib.request.urlopen(f'http://127.0.0.1:{port}/health') as answer:
                if answer.status == 200:
                    break
            time.sleep(0.2)
        yield port
    finally:
        for each in [*psutil.Process(process.pid).children(recursive=True), process]:
            each.kill()


def load(port: int, requests: Sequence[Asked], clients: int) -> Found:
    return asyncio.run(closed_loop(port, requests, clients))


def rate(found: Found) -> float:
    assert not found.wrong, found.wrong[:3]
    return len(found.times) / found.seconds


def ratio(rounds: Sequence[dict[str, float]], one: str, other: str) -> float:
    """The median over rounds of the ratio within a round."""
    return statistics.median(each[one] / each[other] for each in rounds)


def metrics(port: int) -> str:
    with urllib.request.urlopen(f'http://127.0.0.1:{port}/metrics') as answer:
        return answer.read().decode()


def value(text: str, name: str) -> float:
    return float(next(line for line in text.splitlines() if line.startswith(f'{name} ')).split()[1])


if __name__ == '__main__':
    main()
