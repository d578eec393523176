import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from seg_jax.models.backbones import vgg
from seg_jax.models.backbones.vgg import VGG16
from tests.models.backbones.variables import feature_shapes, images, num_parameters, shapes_of


class VGG16Test(parameterized.TestCase):
  @parameterized.parameters(
    # Column D's convolutions have 14,714,688 parameters, 4,224 of them biases; a norm has a scale
    # and a bias for each channel, and the convolution before it none.
    ('none', 14_714_688),
    ('batch', 14_714_688 + 4_224),
  )
  def test_has_the_papers_convolutions(self, norm, expected):
    self.assertEqual(num_parameters(shapes_of(VGG16(norm=norm))), expected)

  def test_features_are_the_poolings(self):
    shapes = feature_shapes(VGG16(), (224, 224))
    channels = {2: 64, 4: 128, 8: 256, 16: 512, 32: 512}
    self.assertEqual(shapes, {s: (1, 224 // s, 224 // s, c) for s, c in channels.items()})

  @parameterized.product(size=((6, 8), (5, 7), (1, 2)), how=((2, 1), (1, 1), (1, 2), (1, 4)))
  def test_windows_at_the_border_pool_what_they_have(self, size, how):
    stride, rate = how
    x = np.asarray(images(2, *size, 3)) - 10
    rows, columns = (-(-n // stride) for n in size)
    expected = np.empty((2, rows, columns, 3), np.float32)
    for i, j in np.ndindex(rows, columns):
      top, left = i * stride, j * stride
      window = x[:, top : top + rate + 1 : rate, left : left + rate + 1 : rate]
      expected[:, i, j] = window.max((1, 2))
    np.testing.assert_array_equal(vgg._pool(jnp.asarray(x), stride, rate), expected)

  @parameterized.parameters((32, 4), (8, 16))
  def test_a_value_sees_212_pixels_with_the_middle_of_the_classifiers_cell_in_theirs(
    self, output_stride, row
  ):
    """Row 4 at output stride 32 and row 16 at 8 begin at the same pixel and see the same."""
    model = VGG16(width=4, norm='none', output_stride=output_stride)
    # Without biases and with positive kernels, a lone pixel shows wherever it is seen.
    ones = jax.tree_util.tree_map_with_path(
      lambda path, x: jnp.full(x.shape, 0.1 * (path[-1].key == 'kernel')), shapes_of(model)
    )
    first = int(32 * 4 + 15.5 - 211 / 2)
    rows = np.array([first - 1, first, first + 211, first + 212])
    x = jnp.zeros((4, 32 * 9, 32, 3)).at[jnp.arange(4), rows, 16].set(1.0)
    y = jax.jit(lambda v, x: model.apply(v, x)[32])(ones, x)
    self.assertEqual((y[:, row, 0, 0] > 0).tolist(), [False, True, True, False])


if __name__ == '__main__':
  absltest.main()
