"""python tools/predict.py: see `vet/cli/predict.py`."""

from vet.cli.predict import main

if __name__ == '__main__':
    main()
