import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from seg_jax.models.backbones import alexnet
from seg_jax.models.norms import make_norm


class Trunk(nn.Module):
  width: int = 64

  @nn.compact
  def __call__(self, x):
    return alexnet.features(x, self.width, nn.Conv, make_norm('none', False, jnp.float32))


class AlexNetTest(absltest.TestCase):
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

  def test_groups_are_those_of_grouped_convolution(self):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(1, 7, 6, 6)), jnp.float32)
    own, plain = (
      nn.Conv(4, (3, 3), feature_group_count=2, conv_general_dilated=function)
      for function in (alexnet._group_by_group, None)
    )
    variables = jax.jit(plain.init)(jax.random.key(0), x)
    np.testing.assert_allclose(own.apply(variables, x), plain.apply(variables, x), atol=1e-5)

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


if __name__ == '__main__':
  absltest.main()
