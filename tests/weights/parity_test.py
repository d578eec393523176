"""The same weights and pictures give torchvision's and timm's logits, or those stored of them."""

import functools
import tempfile
from pathlib import Path
from unittest import SkipTest, mock

import flax.linen as nn
import jax
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from seg_jax.weights import convert, files, load
from tests.weights import reference

QUICK = ('resnet18', 'mobilenet_v2')
SLOW = (
  'resnet50',
  'vgg16_bn',
  'alexnet',
  'fcn_resnet50',
  'deeplabv3_resnet50',
  'hrnet_w18',
  'xception65',
)
THOROUGH = ('resnet101', 'deeplabv3_resnet101')


@functools.cache
def stored() -> dict[str, np.ndarray]:
  with np.load(reference.VECTORS) as vectors:
    return dict(vectors)


def stored_logits(name, train):
  start = f'{name}/{"train" if train else "eval"}/'
  return [logits for key, logits in stored().items() if key.startswith(start)]


def our_logits(case, variables, train):
  """All outputs, without dropout."""
  apply = functools.partial(case.ours.apply, train=train, mutable=['batch_stats'])
  with mock.patch.object(nn.Dropout, '__call__', lambda dropout, x: x):
    outputs, _ = jax.jit(apply)(variables, reference.pictures(case))
  return [outputs['logits'], *outputs.get('aux_logits', ())]


def compare(test, actual, expected):
  test.assertLen(actual, len(expected))
  for ours, theirs in zip(actual, expected, strict=True):
    scale = np.abs(theirs).max()
    test.assertGreater(np.ptp(theirs), 0.01 * scale)  # there is something to see
    test.assertLess(np.abs(np.asarray(ours) - theirs).max(), 1e-3 * scale)


class ParityTest(parameterized.TestCase):
  @parameterized.product(name=QUICK, train=(False, True))
  def test_logits_equal_theirs(self, name, train):
    self.check(name, train)

  @parameterized.product(name=SLOW, train=(False, True))
  @pytest.mark.slow
  def test_logits_equal_theirs_of_larger_models_too(self, name, train):
    self.check(name, train)

  @parameterized.product(name=THOROUGH, train=(False, True))
  @pytest.mark.thorough
  def test_logits_equal_theirs_of_the_deepest_too(self, name, train):
    self.check(name, train)

  def check(self, name, train):
    case = reference.CASES[name]
    try:
      expected, sampled = reference.their_logits(case, reference.filled(case), train), np.asarray
    except SkipTest:
      expected, sampled = stored_logits(name, train), reference.sampled
    actual = our_logits(case, reference.drawn_variables(case), train)
    compare(self, [sampled(np.asarray(logits)) for logits in actual], expected)

  @parameterized.parameters(*QUICK)
  def test_what_is_stored_is_what_they_give(self, name):
    case = reference.CASES[name]
    model = reference.filled(case)
    for train in (False, True):
      expected = reference.their_logits(case, model, train)
      compare(self, stored_logits(name, train), [reference.sampled(x) for x in expected])


class RoundTripTest(parameterized.TestCase):
  @parameterized.parameters(*QUICK)
  def test_they_load_what_we_write_and_give_our_logits(self, name):
    self.check(name)

  @parameterized.parameters('vgg16_bn', 'fcn_resnet50', 'deeplabv3_resnet50')
  @pytest.mark.slow
  def test_they_load_larger_models_too(self, name):
    self.check(name)

  def check(self, name):
    case = reference.CASES[name]
    model = reference.build(case)
    import safetensors.torch

    variables = reference.drawn_variables(case)
    # Other values than any that were read.
    variables = jax.tree.map(lambda x: x * np.float32(0.9), variables)
    arrays, nameless = convert.to_torch(load.flat(jax.device_get(variables)), case.tables[0])
    self.assertEmpty(nameless)
    path = Path(self.enterContext(tempfile.TemporaryDirectory())) / 'ours.safetensors'
    files.write(path, arrays)
    model.load_state_dict(safetensors.torch.load_file(path), assign=True)
    compare(self, our_logits(case, variables, False), reference.their_logits(case, model, False))


if __name__ == '__main__':
  absltest.main()
