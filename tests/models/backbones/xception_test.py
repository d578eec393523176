import jax
import numpy as np
import pytest
from absl.testing import absltest

from seg_jax.models.backbones.xception import Xception
from tests.models.backbones.variables import (
  feature_shapes,
  images,
  num_parameters,
  random_like,
  shapes_of,
)


def separable(inputs, outputs):
  """Parameters of a separable 3x3 convolution, a norm behind each of its two."""
  return 9 * inputs + 2 * inputs + inputs * outputs + 2 * outputs


class XceptionTest(absltest.TestCase):
  def test_has_the_papers_layers(self):
    """Figure 4, block by block: the entry, middle and exit flow."""
    shapes = shapes_of(Xception())
    expected = 9 * 3 * 32 + 2 * 32 + 9 * 32 * 64 + 2 * 64
    for inputs, outputs in ((64, 128), (128, 256), (256, 728)):
      expected += separable(inputs, outputs) + 2 * separable(outputs, outputs)
      expected += inputs * outputs + 2 * outputs
    expected += 16 * 3 * separable(728, 728)
    expected += separable(728, 728) + separable(728, 1024) + separable(1024, 1024)
    expected += 728 * 1024 + 2 * 1024
    expected += separable(1024, 1536) + separable(1536, 1536) + separable(1536, 2048)
    self.assertEqual(num_parameters(shapes), expected)

  def test_features_are_those_before_a_stride(self):
    """DeepLab v3+ takes 256 channels at stride 4."""
    shapes = feature_shapes(Xception(output_stride=16), (65, 65))
    self.assertEqual(
      shapes,
      {
        2: (1, 33, 33, 128),
        4: (1, 17, 17, 256),
        8: (1, 9, 9, 728),
        16: (1, 5, 5, 1024),
        32: (1, 5, 5, 2048),
      },
    )

  def test_low_level_features_come_before_their_relu(self):
    model = Xception(width=1 / 16)
    variables = random_like(shapes_of(model))
    low = jax.jit(lambda v, x: model.apply(v, x)[4])(variables, images(1, 32, 32, 3))
    self.assertLess(float(low.min()), 0)

  @pytest.mark.slow
  def test_the_last_features_come_behind_theirs(self):
    model = Xception(width=1 / 16)
    variables = random_like(shapes_of(model))
    last = jax.jit(lambda v, x: model.apply(v, x)[32])(variables, images(1, 32, 32, 3))
    self.assertEqual(float(last.min()), 0)
    self.assertGreater(float(np.max(last)), 0)


if __name__ == '__main__':
  absltest.main()
