"""python tools/recipes.py: see `vet/cli/recipes.py`."""

from vet.cli.recipes import main

if __name__ == '__main__':
    main()
