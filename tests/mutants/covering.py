"""Says which tests run a line of vet, so that a mutant meets only tests that can notice the mutant. run.py
imports this file.

`watch` runs tests once under coverage.py. Each line of vet keeps the names of the tests that ran the line, in
the process of the test and in the processes that the test started. A fixture that several tests share has a
name of its own; all tests that use the fixture count.
"""

import ast
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from hashlib import sha256
from itertools import accumulate
from pathlib import Path
from typing import Any

import coverage
import pytest

NAMED = 'VET_COVERED_BY'  # the variable that tells processes of a test the test's name
MOST_SECONDS = 60  # of the tests of one mutant, alike or other
# These tests read signatures, fields and class bodies of every file, and need not run a function of the file.
READERS = (
    'tests/cli/test_config.py',
    'tests/cli/test_list.py',
    'tests/test_config.py',
    'tests/tuners/test_defaults.py',
)


class Watch:
    """A plugin of pytest: tells coverage.py which test or shared fixture runs, and measures each test."""

    def __init__(self, measured: coverage.Coverage):
        self.measured = measured
        self.test = ''
        self.seconds: dict[str, float] = defaultdict(float)
        self.fixtures: dict[str, list[str]] = {}

    def now(self, name: str) -> None:
        os.environ[NAMED] = name
        self.measured.switch_context(name)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.test = item.nodeid
        found = item._fixtureinfo.name2fixturedefs.values()
        self.fixtures[self.test] = [shared(definitions[-1]) for definitions in found]
        self.now(self.test)
        before = processor_seconds()
        try:
            return (yield)
        finally:
            self.seconds[self.test] += processor_seconds() - before

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef) -> Iterator[None]:
        before = os.environ.get(NAMED, '')
        self.now(shared(fixturedef) or before)
        try:
            return (yield)
        finally:
            self.now(before)


def processor_seconds() -> float:
    """Of this process and its ended children. On a busy machine too, the tests of a mutant are the same."""
    return sum(os.times()[:4])


def shared(fixture: pytest.FixtureDef) -> str:
    """The name of a fixture that several tests share, or ''."""
    return '' if fixture.scope == 'function' else f'fixture {fixture.baseid}::{fixture.argname}'


def start(tree: Path, folder: Path) -> Watch:
    """Watches this process and the processes that it starts, before vet is imported. `folder` takes the
    data.
    """
    settings = folder / 'coveragerc'
    settings.write_text(
        f'[run]\nsource = {tree / "vet"}\ndata_file = {folder / "data"}\nparallel = true\nsigterm = true\n'
        f'context = ${{{NAMED}-}}\ndisable_warnings = no-data-collected,module-not-imported,module-not-measured\n'
    )
    os.environ['COVERAGE_PROCESS_START'] = str(settings)
    measured = coverage.Coverage(
        data_file=str(folder / 'data'), data_suffix=True, source=[str(tree / 'vet')], config_file=False
    )
    measured.start()
    return Watch(measured)


def finish(watch: Watch, folder: Path) -> None:
    watch.measured.stop()
    watch.measured.save()
    name = f'tests-{os.getpid()}.json'
    (folder / name).write_text(json.dumps(dict(seconds=watch.seconds, fixtures=watch.fixtures)))


class Covering:
    """The tests of each line. Lines of a file that changed since `watch` have the tests of the whole file."""

    def __init__(self, seconds: dict[str, float], files: dict[str, Any]):
        self.seconds = seconds
        self.files = files

    @classmethod
    def collect(cls, tree: Path, folder: Path) -> 'Covering':
        """Reads what `start` and `finish` left in the folder."""
        seconds: dict[str, float] = {}
        users: dict[str, list[str]] = defaultdict(list)
        for path in folder.glob('tests-*.json'):
            made = json.loads(path.read_text())
            seconds |= made['seconds']
            for test, fixtures in made['fixtures'].items():
                users[test].append(test)
                for fixture in filter(None, fixtures):
                    users[fixture].append(test)
        combined = coverage.Coverage(data_file=str(folder / 'all'), config_file=False)
        combined.combine([str(path) for path in folder.glob('data.*')], keep=True)
        data = combined.get_data()
        files: dict[str, Any] = {}
        for name in data.measured_files():
            path = Path(name)
            if not path.is_relative_to(tree):
                continue
            lines = {}
            for line, contexts in data.contexts_by_lineno(name).items():
                known = [users[context] for context in contexts if context in users]
                lines[str(line)] = sorted({test for tests in known for test in tests})
            files[path.relative_to(tree).as_posix()] = dict(sha256=digest(path.read_bytes()), lines=lines)
        return cls(seconds, files)

    def save(self, path: Path) -> None:
        tests = sorted(self.seconds)
        number = {test: i for i, test in enumerate(tests)}
        files = {
            name: dict(
                sha256=file['sha256'],
                lines={line: [number[test] for test in on] for line, on in file['lines'].items()},
            )
            for name, file in self.files.items()
        }
        path.write_text(json.dumps(dict(tests=tests, seconds=[self.seconds[t] for t in tests], files=files)))

    @classmethod
    def load(cls, path: Path) -> 'Covering':
        saved = json.loads(path.read_text())
        tests = saved['tests']
        for file in saved['files'].values():
            file['lines'] = {line: [tests[i] for i in on] for line, on in file['lines'].items()}
        return cls(dict(zip(tests, saved['seconds'])), saved['files'])

    def of(self, file: str, line: int, source: bytes) -> list[str]:
        """The tests that can notice a change of this line: those of files named alike, READERS, then the others.

        Of each kind, the slowest are left out if all take over MOST_SECONDS.

        Python runs a statement of a module or a class once, at the import, in whatever test imports the file
        first. So a signature or a decorator has the tests that run the function's body, and another such
        statement has the tests that run any line of the file. READERS and all tests of files named alike
        join both.
        """
        known = self.files.get(file, dict(sha256='', lines={}))
        lines, at_import = range(0), True
        if known['sha256'] == digest(source):
            lines, at_import = statement(source, line)
        wanted: Iterable[int | str] = lines or known['lines']
        others = {test for number in wanted for test in known['lines'].get(str(number), ())}
        alike = {test for test in self.seconds if Path(file).stem in Path(test.split('::')[0]).name}
        readers = {test for test in self.seconds if test.split('::')[0] in READERS}
        if not at_import:
            alike, readers = alike & others, readers & others
        readers -= alike
        others -= alike | readers
        return [test for kind in (alike, readers, others) for test in self._quickest(kind)]

    def _quickest(self, tests: set[str]) -> list[str]:
        ordered = sorted(tests, key=self.seconds.__getitem__)
        ends = accumulate(map(self.seconds.__getitem__, ordered))
        return [test for test, end in zip(ordered, ends) if end <= MOST_SECONDS or test == ordered[0]]


def digest(source: bytes) -> str:
    return sha256(source).hexdigest()


def statement(source: bytes, line: int) -> tuple[range, bool]:
    """(lines, whether the import runs the line) of the innermost statement at this line.

    The lines are those of the statement without the statement's body. For a signature or a decorator that the
    import runs, they are those of the function's body. For another statement that the import runs, there are
    none.
    """
    found, at_import = range(0), True

    def visit(node: ast.AST, is_in_function: bool) -> None:
        nonlocal found, at_import
        for child in ast.iter_child_nodes(node):
            is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            if isinstance(child, ast.stmt):
                decorators = getattr(child, 'decorator_list', [])
                first, end = min([child, *decorators], key=lambda part: part.lineno).lineno, child.end_lineno
                if first <= line <= end:
                    at_import = not is_in_function
                    body = getattr(child, 'body', None)
                    last = max(child.lineno, body[0].lineno - 1) if body else end
                    found = range(first, last + 1)
                    if at_import:
                        found = range(last + 1, end + 1) if is_function else range(0)
            visit(child, is_in_function or is_function)

    visit(ast.parse(source), False)
    return found, at_import


class Only:
    """A plugin of pytest: runs these tests, and tests that `watch` did not know."""

    def __init__(self, tests: list[str], covering: Covering):
        self.tests = set(tests)
        self.known = covering.seconds

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if item.nodeid in self.tests or item.nodeid not in self.known]
