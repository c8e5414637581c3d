"""python tools/combine.py: see `vet/cli/combine.py`."""

from vet.cli.combine import main

if __name__ == '__main__':
    main()
