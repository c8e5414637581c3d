"""Measures how far vet's outputs are from those of ModelScope, PEFT, timm, ONNX and torch.export.

    python benchmarks/ecosystem.py

Folders: the tests of tests/hub measure the largest difference of the logits of 3 images, in float32, on tiny
networks with random weights. Each test fails above its bound. This script runs these tests and keeps their
numbers. Exports: a vit_base_patch16_224 with random weights and LoRA of rank 10, written in each format and
read back. Writes results/ecosystem.json.
"""

import argparse
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from xml.etree import ElementTree

import timm
import torch
from safetensors.torch import save_file

from vet import build_trainer
from vet.benchmark import record
from vet.environment import describe
from vet.hub.export import export

RESULTS = Path(__file__).parent / 'results' / 'ecosystem.json'
MODELSCOPE = 'tests/hub/test_modelscope_folders.py'
PEFT = 'tests/hub/test_peft_folders.py'
TESTS = {
    'ModelScope, in': f'{MODELSCOPE}::test_each_kind_computes_what_modelscope_writes',
    'PEFT, in': f'{PEFT}::test_what_peft_wrote_gives_the_same_logits',
    'PEFT, out': f'{PEFT}::test_peft_reads_what_is_written',
}
EXPORTS = {'timm': 'model.safetensors', 'onnx': 'model.onnx', 'torch-export': 'model.pt2', 'peft': 'adapter'}


def measured_by(test: str) -> dict[str, float]:
    """The difference that each case of a test measured."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / 'report.xml'
        subprocess.run(
            [sys.executable, '-m', 'pytest', '-n', '0', f'--junitxml={report}', test],
            cwd=record.ROOT,
            check=True,
        )
        cases = ElementTree.parse(report).iter('testcase')
        return {
            case.attrib['name'].partition('[')[2].rstrip(']'): float(kept.attrib['value'])
            for case in cases
            for kept in case.iter('property')
        }


def exports(name: str) -> dict[str, dict[str, float]]:
    """Bytes and the largest difference of each format."""
    torch.manual_seed(0)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        save_file(timm.create_model(name, num_classes=0).state_dict(), home / 'weights.safetensors')
        backbone = dict(type='timm', name=name, checkpoint=str(home / 'weights.safetensors'), lora_length=10)
        trainer = build_trainer(
            model=dict(model=dict(backbone=backbone), dataset=dict(train=dict(type='Digits', split='train'))),
            work_dir=home / 'run',
            device='cpu',
        )
        with torch.no_grad():
            for parameter in trainer.model.trainable().values():
                parameter.add_(0.02 * torch.randn_like(parameter))
        trainer.save_pretrained(home / 'model')
        for to, file in EXPORTS.items():
            made = export(home / 'model', home / file, to)
            found[to] = dict(bytes=made.bytes, difference=made.difference)
            print(made, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--model', default='vit_base_patch16_224', help='of the exports (default: %(default)s)'
    )
    record.add_output(parser, RESULTS)
    args = parser.parse_args()
    path = record.output(args)
    environment = describe(torch.device('cpu'))
    environment['packages'] |= {name: metadata.version(name) for name in ('peft', 'onnxruntime')}
    differences = {side: measured_by(test) for side, test in TESTS.items()}
    record.write(
        path,
        dict(differences=differences, model=args.model, exports=exports(args.model), environment=environment),
    )


if __name__ == '__main__':
    main()
