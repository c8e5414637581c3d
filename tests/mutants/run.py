"""Puts small faults into a copy of vet, one at a time, and looks which of them the tests of the fault's room
notice.

    python tests/mutants/run.py --count 200 --seed 0 --rooms core tuners

The sample is drawn by a hash of each mutation's own text, so it stays the same while other code changes. First
the tests of the rooms run once, and covering.py notes which tests run which line. Each mutant then runs in a
forked process, in a temporary copy of the tree, until the first of its line's tests fails. A mutant that uses
far more processor time than the tests need counts as killed. A test that fails on unchanged code too counts
for nothing, and is named at the end. equivalent.yaml lists the mutations that change no behaviour,
with the reason of each.
"""

import argparse
import importlib.util
import json
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.mutants.covering import READERS, Covering, Only, finish, start  # noqa: E402
from tests.mutants.mutations import Mutation, mutations  # noqa: E402

# Each room, and the tests that look at it.
ROOMS = {
    'core': [
        'tests/core',
        'tests/tuners',
        'tests/heads',
        'tests/objectives',
        'tests/library',
        'tests/backbones',
        'tests/test_unwritten_methods.py',
        'tests/contract/test_precision.py',
        'tests/engine/fast/test_frozen_in_bf16.py',
        'tests/engine/test_multitask.py',
    ],
    'tuners': ['tests/tuners', 'tests/core', 'tests/contract/test_precision.py'],
    'engine': [
        'tests/engine',
        'tests/test_builders.py',
        'tests/test_pipeline.py',
        'tests/cli/test_commands.py',
        'tests/cli/test_config.py',
    ],
    'datasets': ['tests/datasets', 'tests/test_builders.py', 'tests/engine/feed/test_batches.py'],
    'hub': [
        'tests/hub',
        'tests/library',
        'tests/test_pipeline.py',
        'tests/test_unwritten_methods.py',
        'tests/compat',
        'tests/cli',
    ],
}
EQUIVALENT = Path(__file__).with_name('equivalent.yaml')
PRELOADED = (
    'torch',
    'torchvision',
    'timm',
    'mmengine',
    'sklearn.metrics',
    'scipy',
    'torch.utils.tensorboard',
    'peft',
    'accelerate',
    'huggingface_hub',
    'pytest',
    'coverage',
)
KILLED, SURVIVED, TIMEOUT, EQUAL = 'killed', 'survived', 'timeout', 'equivalent'
CPU_SECONDS = 900  # of one process: a loop without an end
HANGS_SECONDS = 1800  # of the clock: a process that waits without an end


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--count', type=int, default=200, help='mutants in all, shared equally by the rooms')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--rooms', nargs='+', choices=ROOMS, default=list(ROOMS))
    parser.add_argument('--only', default='', help='mutate only files whose path holds this text')
    parser.add_argument(
        '--skip', type=int, default=0, help='leave out so many mutants of each room, which another call ran'
    )
    parser.add_argument(
        '--covering',
        type=Path,
        help="the file that an earlier call wrote beside --out: the rooms' tests need not run first",
    )
    parser.add_argument(
        '--again', type=Path, help='the --out of an earlier call: run only the mutants that survived there'
    )
    parser.add_argument('--out', type=Path, default=ROOT / 'build/mutants.json')
    args = parser.parse_args()

    equivalent = {key(entry): entry for entry in yaml.safe_load(EQUIVALENT.read_text())}
    everything = [mutation for room in args.rooms for mutation in of_room(room) if args.only in mutation.file]
    chosen = sample(everything, args.rooms, args.count, args.seed, args.skip)
    if args.again:
        before = json.loads(args.again.read_text())['mutants']
        survived = {key(mutant) for mutant in before if mutant['status'] == SURVIVED}
        chosen = [mutation for mutation in everything if key(vars(mutation)) in survived]
    record = dict(command=' '.join(sys.argv), seed=args.seed, count=len(chosen), **machine(), mutants=[])
    with tempfile.TemporaryDirectory(prefix='mutants-') as folder:
        tree = copy_tree(Path(folder) / 'tree')
        for name in PRELOADED:
            importlib.import_module(name)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        covering = Covering.load(args.covering) if args.covering else watched(args.rooms, tree)
        covering.save(args.out.with_suffix('.covering.json'))
        trusted: dict[str, bool] = {}
        for number, mutation in enumerate(chosen, 1):
            known = equivalent.get(key(vars(mutation)))
            outcome = (
                dict(status=EQUAL, why=known['why'])
                if known
                else outcome_of(mutation, tree, covering, trusted)
            )
            record['mutants'].append(
                dict(
                    file=mutation.file,
                    line=mutation.line,
                    scope=mutation.scope,
                    old=mutation.old,
                    new=mutation.new,
                )
                | outcome
            )
            record |= dict(
                rooms=counts(record['mutants']), failing=[test for test in trusted if not trusted[test]]
            )
            args.out.write_text(json.dumps(record, indent=1) + '\n')
            print(
                f'{number}/{len(chosen)} {outcome["status"]} {mutation.file} {mutation.scope} '
                f'{outcome.get("seconds", 0):.0f} s',
                f'{outcome.get("test", "")}\n    - {mutation.old}\n    + {mutation.new}',
                flush=True,
            )
    return summary(record, args.out)


def key(entry: dict) -> tuple[str, ...]:
    """What names a mutation: the file, the scope, and the lines before and after, whatever line they
    stand on.
    """
    return tuple(entry[name] for name in ('file', 'scope', 'old', 'new'))


def of_room(room: str) -> list[Mutation]:
    files = sorted((ROOT / 'vet' / room).rglob('*.py'))
    return [
        mutation
        for path in files
        for mutation in mutations(path.read_bytes(), path.relative_to(ROOT).as_posix())
    ]


def sample(
    everything: list[Mutation], rooms: list[str], count: int, seed: int, skip: int = 0
) -> list[Mutation]:
    """So many mutations, equally many of each room, in a mixed order."""
    chosen = []
    for i, room in enumerate(rooms):
        share = count // len(rooms) + (i < count % len(rooms))
        ordered = sorted((m for m in everything if m.room == room), key=lambda m: m.order(seed))
        chosen += [m for m in ordered[: skip + share + 50] if m.is_valid][skip : skip + share]
    return sorted(chosen, key=lambda m: m.order(seed))


def copy_tree(tree: Path) -> Path:
    """The working tree's files, without what git ignores."""
    listed = subprocess.run(
        ['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard'],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for name in filter(None, listed.split('\0')):
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)
    return tree


def tests_of(rooms: list[str], tree: Path) -> list[str]:
    files = []
    for place in (*(place for room in rooms for place in ROOMS[room]), *READERS):
        files += [path.relative_to(tree).as_posix() for path in files_with_tests(tree / place)]
    return list(dict.fromkeys(files))


def files_with_tests(place: Path) -> list[Path]:
    """The files with tests in a folder, or a file with tests itself."""
    found = sorted(place.rglob('test_*.py')) if place.is_dir() else [place]
    return [path for path in found if path.is_file()]


def watched(rooms: list[str], tree: Path) -> Covering:
    """Runs the tests of the rooms once, in as many processes as the machine has cores."""
    began, files, count = time.monotonic(), tests_of(rooms, tree), os.cpu_count() or 1
    folder = tree.parent / 'covering'
    folder.mkdir()
    children = []
    for i in range(count):
        scratch = tree.parent / f'scratch-{i}'
        scratch.mkdir()
        child = os.fork()
        if child == 0:
            in_child(files[i::count], tree, scratch, folder)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    covering = Covering.collect(tree, folder)
    print(
        f'{len(covering.seconds)} tests run lines of {len(covering.files)} files; '
        f'{time.monotonic() - began:.0f} s',
        flush=True,
    )
    return covering


def outcome_of(mutation: Mutation, tree: Path, covering: Covering, trusted: dict[str, bool]) -> dict:
    """What the tests say that run the mutated line: first those of files named alike, then all others. Without
    such a test, the mutant survives.

    trusted: of each test that ever failed, whether the test passes on unchanged code. Others do not count.
    """
    path, began, stem = tree / mutation.file, time.monotonic(), Path(mutation.file).stem
    original, status, failed = path.read_bytes(), 0, ''
    tests = covering.of(mutation.file, mutation.line, original)
    files = tests_of([mutation.room], tree)
    alike = [name for name in files if stem in Path(name).name]
    alike += [test for test in tests if test.split('::')[0] in alike]
    for part in filter(None, (alike, [test for test in tests if test not in alike])):
        is_sure = False
        while not is_sure:
            put(path, mutation.source)
            try:
                status, failed = run_tests(tree, [test for test in part if trusted.get(test, True)], covering)
            finally:
                put(path, original)
            is_test = '::' in failed
            if is_test and failed not in trusted:
                trusted[failed] = run_tests(tree, [failed], covering)[0] == 0
            is_sure = not is_test or trusted[failed]
        if status != 0:
            break
    return dict(
        status={0: SURVIVED, None: TIMEOUT}.get(status, KILLED),
        seconds=round(time.monotonic() - began, 1),
        tests=len(tests),
        test=failed,
    )


def put(path: Path, source: bytes) -> None:
    """Writes a module. Its bytecode goes, which Python would take for the new module's: both may be as
    long, and of one second.
    """
    path.write_bytes(source)
    Path(importlib.util.cache_from_source(str(path))).unlink(missing_ok=True)


def run_tests(tree: Path, tests: list[str], covering: Covering) -> tuple[int | None, str]:
    """(exit code, the first test that failed) of these tests, and of new tests of these files, in a forked
    process. The exit code is None
    where a limit was reached, and 0 where none of these tests exists any more.
    """
    tests = [test for test in tests if (tree / test.split('::')[0]).is_file()]
    scratch = tree.parent / 'scratch'
    scratch.mkdir()
    child = os.fork()
    if child == 0:
        in_child(tests, tree, scratch, covering)
    status = wait(child, time.monotonic() + HANGS_SECONDS)
    kill_group(child)
    failed = (scratch / 'failed').read_text() if (scratch / 'failed').exists() else ''
    shutil.rmtree(scratch, ignore_errors=True)
    if status == pytest.ExitCode.USAGE_ERROR:
        raise RuntimeError(f'pytest cannot run {tests}')
    if status == pytest.ExitCode.NO_TESTS_COLLECTED:
        status = 0
    return None if status == -signal.SIGXCPU else status, failed


class Failed:
    """Tells pytest to write the name of a test that fails."""

    def __init__(self, path: Path):
        self.path = path

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.path.write_text(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.path.write_text(report.nodeid)


def in_child(tests: list[str], tree: Path, scratch: Path, use: Covering | Path) -> None:
    """Runs pytest on the copy: until a test fails; or all tests, whose lines go into the folder `use`.

    This process never returns.
    """
    code = 99
    try:
        os.setsid()
        output = os.open(scratch / 'log', os.O_CREAT | os.O_WRONLY, 0o600)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(tree)
        (scratch / 'tmp').mkdir()
        tempfile.tempdir = None
        os.environ |= dict(PYTHONPATH=str(tree), TMPDIR=str(scratch / 'tmp'), OMP_NUM_THREADS='1')
        sys.path[:] = [
            str(tree),
            *(path for path in sys.path if Path(path).resolve() not in (ROOT, Path(__file__).parent)),
        ]
        if not tests:
            os._exit(0)
        for name in [name for name in sys.modules if name.split('.')[0] in ('vet', 'tests')]:
            del sys.modules[name]
        files = list(dict.fromkeys(test.split('::')[0] for test in tests))
        options = ['-n', '0', '-p', 'no:cacheprovider', '--tb=no', f'--basetemp={scratch / "pytest"}']
        if isinstance(use, Path):
            watch = start(tree, use)
            code = pytest.main([*options, *files], plugins=[watch])
            finish(watch, use)
        else:
            resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 10))
            code = pytest.main(
                ['-x', *options, *files], plugins=[Failed(scratch / 'failed'), Only(tests, use)]
            )
    finally:
        sys.stdout.flush()
        os._exit(int(code))


def wait(child: int, deadline: float) -> int | None:
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            kill_group(child)
            os.waitpid(child, 0)
            return None
        time.sleep(0.05)


def kill_group(child: int) -> None:
    """Ends the processes that a test left behind."""
    try:
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:
        pass


def machine() -> dict:
    def git(*args: str) -> str:
        return subprocess.run(['git', *args], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    import torch

    cpu = [
        line.partition(':')[2].strip()
        for line in Path('/proc/cpuinfo').read_text().splitlines()
        if line.startswith('model name')
    ]
    return dict(
        commit=git('rev-parse', 'HEAD'),
        git_changes=bool(git('status', '--porcelain')),
        python=platform.python_version(),
        torch=torch.__version__,
        cpu=cpu[0] if cpu else platform.processor(),
        cores=os.cpu_count(),
    )


def counts(mutants: list[dict]) -> dict[str, dict[str, int]]:
    """Numbers by room; killed counts those that hang too."""
    rooms: dict[str, Counter] = {}
    for mutant in mutants:
        room = rooms.setdefault(mutant['file'].split('/')[1], Counter())
        room['tried'] += 1
        room[KILLED if mutant['status'] == TIMEOUT else mutant['status']] += 1
    return {
        name: {what: rooms[name][what] for what in ('tried', KILLED, SURVIVED, EQUAL)}
        for name in sorted(rooms)
    }


def rate(record: dict) -> float:
    """Killed of those that change behaviour."""
    killed = sum(room[KILLED] for room in record['rooms'].values())
    return killed / max(1, killed + sum(room[SURVIVED] for room in record['rooms'].values()))


def summary(record: dict, out: Path) -> int:
    print(f'\n{"room":10}{"tried":>8}{"killed":>8}{"survived":>10}{"equivalent":>12}')
    for name, room in record['rooms'].items():
        print(f'{name:10}{room["tried"]:8}{room[KILLED]:8}{room[SURVIVED]:10}{room[EQUAL]:12}')
    print(f'killed: {rate(record):.1%} of those that are not equivalent; {out}')
    for test in record['failing']:
        print(f'fails on unchanged code: {test}')
    return 0 if rate(record) >= 0.95 and not record['failing'] else 1


if __name__ == '__main__':
    sys.exit(main())
