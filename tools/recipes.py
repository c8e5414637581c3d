"""python tools/recipes.py: see `vet/cli/recipes.py`."""

from vet.cli.vet import command

if __name__ == '__main__':
    command('recipes')
