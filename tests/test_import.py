"""What importing costs: the package alone nothing, the list of tuners no library of models."""

CHECK = 'import sys; print([name for name in ("torch", "timm", "torchvision", "accelerate") if name in sys.modules])'


def test_the_package_imports_nothing_until_it_is_asked(python):
    assert python('-c', f'import vet; {CHECK}').stdout == '[]\n'


def test_listing_tuners_imports_torch_alone(python):
    done = python(
        '-c',
        f'import sys; sys.argv = ["vet", "list", "tuners"]; import vet.cli.vet; vet.cli.vet.main(); {CHECK}',
    )
    assert done.returncode == 0 and done.stdout.endswith("['torch']\n") and 'LoRA' in done.stdout


WITHOUT_UNIX = """
import sys
import psutil        # on Windows, psutil has other modules than here
for name in ('fcntl', 'resource', 'grp', 'pwd', 'termios'):
    sys.modules[name] = None            # importing it raises, as on Windows
import os
del os.preadv
from vet import build_trainer, pipeline
print(pipeline('vision-efficient-tuning', sys.argv[1], device='cpu')(sys.argv[2])['labels'])
"""


def test_inference_needs_nothing_of_unix(python, trainer, tmp_path):
    """On Windows vet is for inference."""
    from vet.datasets.image import open_image

    image = tmp_path / 'image.png'
    open_image(trainer.data['test'][0][0]).save(image)
    done = python('-c', WITHOUT_UNIX, trainer.folder.output, image)
    assert done.returncode == 0, done.stderr
    assert len(eval(done.stdout)) == 5


def test_a_submodule_never_stands_in_the_place_of_a_function(python):
    done = python(
        '-c',
        'import vet.pipelines, vet.builders, vet; print(callable(vet.pipeline), callable(vet.build_trainer))',
    )
    assert done.stdout == 'True True\n', done.stderr
    assert 'AttributeError' in python('-c', 'import vet; vet.nothing').stderr
