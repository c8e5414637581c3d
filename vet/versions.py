"""Which version of vet wrote a file. Imports nothing of vet but its version; every room may import this
file.
"""

from packaging.version import InvalidVersion, Version

import vet


def is_newer(version: object) -> bool:
    """Whether `version` is a version of vet that is newer than this one. False for what is no version."""
    try:
        return Version(str(version)) > Version(vet.__version__)
    except (InvalidVersion, ValueError):  # a number of thousands of digits is a ValueError
        return False
