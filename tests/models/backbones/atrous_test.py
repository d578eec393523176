import functools

import jax
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from seg_jax.models.backbones import BACKBONES, build_backbone
from tests.models.backbones.variables import NARROW, images, random_like, shapes_of

QUICK = ('alexnet', 'mobilenet_v2', 'resnet18', 'resnet50', 'vgg16')
# HRNet keeps a branch of stride 4 instead, whatever the others' strides.
ATROUS = tuple(name for name in BACKBONES if not name.startswith('hrnet'))
SLOW = tuple(name for name in ATROUS if name not in QUICK)


@functools.cache
def features_of(name, output_stride):
  """Of a picture whose sizes no stride divides, with the same variables at any output stride."""
  model = build_backbone(name, output_stride, **NARROW[name])
  return jax.jit(model.apply)(random_like(shapes_of(model)), images(1, 75, 97, 3))


class AtrousTest(parameterized.TestCase):
  @parameterized.parameters(*QUICK)
  def test_features_at_output_stride_8_contain_those_at_32(self, name):
    self.check(name, 8)

  @parameterized.parameters(*SLOW)
  @pytest.mark.slow
  def test_those_of_the_others_do_too(self, name):
    self.check(name, 8)

  @parameterized.product(name=ATROUS, output_stride=(4, 16))
  @pytest.mark.slow
  def test_so_do_features_at_other_output_strides(self, name, output_stride):
    self.check(name, output_stride)

  def check(self, name, output_stride):
    coarse, dense = features_of(name, 32), features_of(name, output_stride)
    self.assertEqual(coarse.keys(), dense.keys())
    for stride, expected in coarse.items():
      step = max(1, stride // output_stride)
      got = dense[stride][:, ::step, ::step]
      self.assertEqual(got.shape, expected.shape)
      largest = float(np.abs(expected).max())
      self.assertGreater(float(np.std(expected, axis=(1, 2)).max()), 1e-3 * largest)
      np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4 * largest, err_msg=f'{stride}')


if __name__ == '__main__':
  absltest.main()
