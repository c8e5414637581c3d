"""python tools/test.py: see `vet/cli/test.py`."""

from vet.cli.vet import command

if __name__ == '__main__':
    command('test')
