import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from seg_jax.errors import UserError
from seg_jax.models.backbones import alexnet
from seg_jax.models.backbones.alexnet import AlexNet
from seg_jax.models.norms import make_norm
from tests.models.backbones.variables import (
  feature_shapes,
  images,
  num_parameters,
  random_like,
  shapes_of,
)


class Trunk(nn.Module):
  width: int = 64

  @nn.compact
  def __call__(self, x):
    return alexnet.features(x, self.width, nn.Conv, make_norm('none', False, jnp.float32))


class TwoColumnsTest(absltest.TestCase):
  def test_has_the_papers_layers(self):
    """Section 3.5: the kernels' sizes and numbers; layers 2, 4 and 5 see their own half alone."""
    shapes = jax.eval_shape(Trunk().init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))['params']
    kernels = {name: layer['kernel'].shape for name, layer in shapes.items()}
    self.assertEqual(
      kernels,
      {
        'conv1': (11, 11, 3, 96),
        'conv2': (5, 5, 48, 256),
        'conv3': (3, 3, 256, 384),
        'conv4': (3, 3, 192, 384),
        'conv5': (3, 3, 192, 256),
      },
    )
    # By hand: 34,944 + 307,456 + 885,120 + 663,936 + 442,624, biases included.
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    self.assertEqual(count, 2_334_080)

  def test_stride_32_and_a_window_of_195_pixels_13_and_a_half_off_its_cell(self):
    """11, then 3 at stride 4, 5 and 3 at 8, 3 three times and 3 at 16: 195 pixels."""
    model, cells = Trunk(width=4), 9
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    # Without biases and with positive kernels, a lone pixel shows wherever it is seen.
    ones = jax.tree_util.tree_map_with_path(
      lambda path, x: jnp.full(x.shape, 0.1 * (path[-1].key == 'kernel')), shapes
    )
    cell = 4
    middle = 32 * cell + 15.5 - 13.5
    first, last = int(middle - 97), int(middle + 97)
    rows = np.array([first - 1, first, last, last + 1])
    x = jnp.zeros((4, 32 * cells, 32, 3)).at[jnp.arange(4), rows, 16].set(1.0)
    y = jax.jit(model.apply)(ones, x)
    self.assertEqual(y.shape, (4, cells, 1, 16))
    self.assertEqual((y[:, cell, 0, 0] > 0).tolist(), [False, True, True, False])


class AlexNetTest(parameterized.TestCase):
  def test_has_torchvisions_layers(self):
    """By hand: 23,296 + 307,392 + 663,936 + 884,992 + 590,080, biases included."""
    shapes = shapes_of(AlexNet(norm='none'))
    kernels = {name: layer['kernel'].shape for name, layer in shapes['params'].items()}
    self.assertEqual(
      kernels,
      {
        'conv1': (11, 11, 3, 64),
        'conv2': (5, 5, 64, 192),
        'conv3': (3, 3, 192, 384),
        'conv4': (3, 3, 384, 256),
        'conv5': (3, 3, 256, 256),
      },
    )
    self.assertEqual(num_parameters(shapes), 2_469_696)

  def test_valid_padding_gives_the_classifiers_sizes(self):
    """55, 27, 13 and 6, as the paper's for 224 x 224 pixels; 63 are the fewest."""
    model = AlexNet(padding='valid')
    rows = {stride: shape[1] for stride, shape in feature_shapes(model, (224, 224)).items()}
    self.assertEqual(rows, {4: 55, 8: 27, 16: 13, 32: 6})
    self.assertEqual(feature_shapes(model, (63, 63))[32], (1, 1, 1, 256))
    with self.assertRaisesRegex(ValueError, 'no window fits'):
      feature_shapes(model, (62, 62))

  def test_valid_padding_is_pytorchs(self):
    """torchvision's layers, written out."""
    try:
      import torch
      from torch.nn import functional
    except ImportError:
      self.skipTest('PyTorch is not installed')
    model = AlexNet(width=4, padding='valid', norm='none')
    variables, x = random_like(shapes_of(model, (86, 75))), images(2, 86, 75, 3)
    features = jax.jit(model.apply)(variables, x)

    def conv(y, number, stride, padding):
      layer = jax.tree.map(np.array, variables['params'][f'conv{number}'])
      kernel = torch.from_numpy(np.ascontiguousarray(layer['kernel'].transpose(3, 2, 0, 1)))
      bias = torch.from_numpy(layer['bias'])
      return functional.conv2d(y, kernel, bias, stride, padding).relu()

    expected = {4: conv(torch.from_numpy(np.array(x).transpose(0, 3, 1, 2)), 1, 4, 2)}
    expected[8] = functional.max_pool2d(expected[4], 3, 2)
    expected[16] = functional.max_pool2d(conv(expected[8], 2, 1, 2), 3, 2)
    y = expected[16]
    for number in (3, 4, 5):
      y = conv(y, number, 1, 1)
    expected[32] = functional.max_pool2d(y, 3, 2)
    for stride, y in expected.items():
      np.testing.assert_allclose(features[stride], y.permute(0, 2, 3, 1), rtol=1e-4, atol=1e-4)

  def test_an_unknown_padding_is_the_users_error(self):
    with self.assertRaisesRegex(UserError, "model.padding is 'same'"):
      shapes_of(AlexNet(padding='same'))


if __name__ == '__main__':
  absltest.main()
