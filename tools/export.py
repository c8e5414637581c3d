"""python tools/export.py: see `vet/cli/export.py`."""

from vet.cli.vet import command

if __name__ == '__main__':
    command('export')
