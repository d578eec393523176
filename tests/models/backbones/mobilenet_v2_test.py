import jax
import numpy as np
from absl.testing import absltest, parameterized

from seg_jax.errors import UserError
from seg_jax.models.backbones.mobilenet_v2 import MobileNetV2, round_channels
from tests.models.backbones.variables import (
  feature_shapes,
  images,
  num_parameters,
  random_like,
  shapes_of,
)


def run(variables, x, *strides, **fields):
  """The features at `strides`; nothing else is computed."""
  model = MobileNetV2(width=0.25, **fields)

  def features(variables, x):
    every = model.apply(variables, x)
    return [every[stride] for stride in strides]

  return jax.jit(features)(variables, x)


class MobileNetV2Test(parameterized.TestCase):
  def test_has_the_papers_layers(self):
    """Table 2, up to the last bottleneck: 3,504,872 parameters in torchvision's classifier, less
    its convolution to 1280 channels with norm, and its fully connected layer."""
    shapes = shapes_of(MobileNetV2())
    expected = 3_504_872 - (320 * 1280 + 2 * 1280) - (1280 * 1000 + 1000)
    self.assertEqual(num_parameters(shapes), expected)
    channels = {
      stride: shape[3] for stride, shape in feature_shapes(MobileNetV2(), (64, 64)).items()
    }
    self.assertEqual(channels, {2: 16, 4: 24, 8: 32, 16: 96, 32: 320})
    self.assertLen([name for name in shapes['params'] if name.startswith('block')], 17)

  @parameterized.parameters(
    # Stem and blocks of torchvision's mobilenet_v2(width_mult=...), by its rule of rounding.
    (0.5, (16, 8, 16, 16, 32, 48, 80, 160)),
    (0.75, (24, 16, 24, 24, 48, 72, 120, 240)),
    (1.4, (48, 24, 32, 48, 88, 136, 224, 448)),
  )
  def test_widths_are_the_published(self, width, expected):
    self.assertEqual(
      tuple(round_channels(c * width) for c in (32, 16, 24, 32, 64, 96, 160, 320)), expected
    )

  def test_a_block_that_strides_has_no_shortcut_where_its_stride_is_taken_away(self):
    """At a quarter of the width the blocks behind strides 2 and 4 keep the number of channels."""
    variables, x = random_like(shapes_of(MobileNetV2(width=0.25))), images(1, 33, 38, 3)
    (coarse,), (dense,) = run(variables, x, 8), run(variables, x, 8, output_stride=4)
    atol = 1e-4 * float(np.abs(coarse).max())
    np.testing.assert_allclose(dense[:, ::2, ::2], coarse, rtol=0, atol=atol)

  def test_same_padding_begins_a_pixel_later_where_sizes_are_even(self):
    """TensorFlow's windows of an even map are symmetric ones of the map without its first row."""
    variables, x = random_like(shapes_of(MobileNetV2(width=0.25))), images(1, 32, 32, 3)
    (same,), (shifted,), (symmetric,) = (
      run(variables, x, 2, padding='same'),
      run(variables, x[:, 1:, 1:], 2),
      run(variables, x, 2),
    )
    inside = np.s_[:, 2:, 2:]
    np.testing.assert_allclose(same[inside], shifted[inside], atol=1e-4)
    self.assertGreater(float(np.abs(same - symmetric)[inside].max()), 0.1)

  def test_same_padding_is_dense_too_where_every_map_is_odd(self):
    variables, x = random_like(shapes_of(MobileNetV2(width=0.25))), images(1, 65, 97, 3)
    (coarse,), (dense,) = (
      run(variables, x, 32, padding='same', output_stride=stride) for stride in (32, 8)
    )
    self.assertEqual(coarse.shape[1:3], (3, 4))
    atol = 1e-4 * float(np.abs(coarse).max())
    np.testing.assert_allclose(dense[:, ::4, ::4], coarse, rtol=0, atol=atol)

  def test_an_unknown_padding_is_the_users_error(self):
    with self.assertRaisesRegex(UserError, "model.padding is 'valid'"):
      shapes_of(MobileNetV2(padding='valid'))


if __name__ == '__main__':
  absltest.main()
