"""The settings are in pyproject.toml. This file puts the configs, suites and examples into the package.

The folders at the top of the checkout stay the only source. An installed vet has copies in vet/shipped_files,
in the same layout (see vet/shipped.py).
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

TOP = Path(__file__).parent
FOLDERS = ('configs', 'benchmarks/suites', 'examples')
SUFFIXES = ('.py', '.yaml', '.yml', '.json', '.md')


class BuildWithFiles(build_py):
    """Copies the folders when a wheel is built. An editable install reads the folders of the checkout."""

    def run(self):
        super().run()
        if not self.editable_mode:
            for source, copied in self.shipped().items():
                self.mkpath(str(Path(copied).parent))
                self.copy_file(source, copied)

    def shipped(self):
        """{file: its copy}"""
        files = [path for folder in FOLDERS for path in sorted((TOP / folder).rglob('*'))]
        return {
            str(path): str(Path(self.build_lib, 'vet/shipped_files', path.relative_to(TOP)))
            for path in files
            if path.suffix in SUFFIXES and '__pycache__' not in path.parts
        }

    def get_outputs(self, include_bytecode=True):
        return super().get_outputs(include_bytecode) + (
            [] if self.editable_mode else [*self.shipped().values()]
        )


setup(cmdclass=dict(build_py=BuildWithFiles))
