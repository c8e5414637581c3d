"""python tools/benchmark.py: see `vet/cli/benchmark.py`."""

from vet.cli.vet import command

if __name__ == '__main__':
    command('benchmark')
