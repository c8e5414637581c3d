"""The Trainer of transformers takes a tuned network without further settings."""

import copy
import inspect
import io

import pytest
import torch

import vet
from tests.library.networks import images, labels, vit
from tests.own_nets import TRANSFORMERS

transformers = pytest.importorskip('transformers')
datasets = pytest.importorskip('datasets')


def test_the_signature_is_that_of_the_network():
    net = TRANSFORMERS['vit']()
    wanted = inspect.signature(net.forward)
    tuned = vet.tune(net, vet.LoRA(2))
    file = io.BytesIO()
    torch.save(tuned, file)
    file.seek(0)
    for each in (tuned, copy.deepcopy(tuned), torch.load(file, weights_only=False)):
        assert inspect.signature(each.forward) == wanted and type(each) is type(tuned)
        assert torch.equal(each.eval()(images()).logits, tuned.eval()(images()).logits)
    assert list(inspect.signature(vet.tune(vit(), vet.LoRA(2)).forward).parameters)[0] == 'x'


def test_a_plain_trainer_trains_evaluates_saves_and_resumes(tmp_path):
    torch.manual_seed(0)
    rows = dict(pixel_values=images(8), labels=labels(8), names=list('abcdefgh'))
    rows = datasets.Dataset.from_dict(rows).with_format('torch')
    settings = dict(
        output_dir=str(tmp_path), use_cpu=True, report_to='none', save_strategy='epoch', eval_strategy='epoch'
    )

    def trainer(epochs):
        arguments = transformers.TrainingArguments(**settings, num_train_epochs=epochs)
        tuned = vet.tune(TRANSFORMERS['vit'](), vet.LoRA(2))
        return transformers.Trainer(
            tuned,
            arguments,
            train_dataset=rows,
            eval_dataset=rows,
            compute_metrics=lambda found: dict(right=float((found[0].argmax(1) == found[1]).mean())),
        )

    first = trainer(1)
    first.train()
    found = first.evaluate()
    assert found['eval_loss'] > 0 and 0 <= found['eval_right'] <= 1
    assert len(first.predict(rows).predictions) == 8
    again = trainer(2)
    again.train(resume_from_checkpoint=True)
    assert again.state.epoch == 2
