import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from seg_jax.models.conv_only import ConvOnly, multiply_adds, receptive_field


class ConvOnlyTest(parameterized.TestCase):
  @parameterized.parameters((3, 3), (2, 5), (4, 1))
  def test_a_pixel_sees_the_receptive_field(self, layers, kernel_size):
    model = ConvOnly(num_classes=2, width=3, layers=layers, kernel_size=kernel_size, norm='none')
    x = jnp.ones((1, 21, 23, 3))
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    ones = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes)  # no ReLU is ever off
    gradient = jax.jit(jax.grad(lambda x: model.apply(ones, x)['logits'][0, 10, 11, 0]))(x)
    rows, columns = np.nonzero(np.abs(gradient[0]).sum(-1))
    reach = (receptive_field(model) - 1) // 2
    self.assertEqual((rows.min(), rows.max()), (10 - reach, 10 + reach))
    self.assertEqual((columns.min(), columns.max()), (11 - reach, 11 + reach))

  @parameterized.parameters((3, 3), (2, 5))
  def test_its_cost_is_what_xla_counts(self, layers, kernel_size):
    """XLA leaves the padding's zeros out and counts biases and ReLUs: a few per cent."""
    model = ConvOnly(num_classes=5, width=8, layers=layers, kernel_size=kernel_size, norm='none')
    x = jnp.zeros((1, 96, 128, 3))
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    counted = jax.jit(model.apply).lower(shapes, x).cost_analysis()['flops']
    self.assertAlmostEqual(counted / (2 * multiply_adds(model, 96, 128)), 1.0, delta=0.05)

  def test_the_comparison_with_vgg16(self):
    """What the module says: 202 layers see as much as FCN's VGG16, at 16 times its cost."""
    deep = ConvOnly(num_classes=11, layers=202)
    self.assertEqual(receptive_field(deep), 405)
    cost = multiply_adds(deep, 360, 480)
    self.assertAlmostEqual(cost / 1e12, 1.3, delta=0.05)
    vgg16, narrow = 0, 3
    for level, (wide, layers) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))):
      for _ in range(layers):
        vgg16 += 384 * 480 // 4**level * 9 * narrow * wide
        narrow = wide
    vgg16 += 12 * 15 * (49 * 512 * 4096 + 4096 * 4096)
    self.assertEqual(cost // vgg16, 16)


if __name__ == '__main__':
  absltest.main()
