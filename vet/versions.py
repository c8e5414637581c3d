"""Compares versions of vet. Imports nothing of vet except its version. Every room may import this file."""

from packaging.version import InvalidVersion, Version

import vet


def is_newer(version: object) -> bool:
    """Whether `version` is a newer version of vet than this version. False for a text that is no version."""
    try:
        return Version(str(version)) > Version(vet.__version__)
    except (InvalidVersion, ValueError):  # a number of thousands of digits is a ValueError
        return False
