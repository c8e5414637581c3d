"""python tools/combine.py: see `vet/cli/combine.py`."""

from vet.cli.vet import command

if __name__ == '__main__':
    command('combine')
