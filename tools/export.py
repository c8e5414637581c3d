"""python tools/export.py: see `vet/cli/export.py`."""

from vet.cli.export import main

if __name__ == '__main__':
    main()
