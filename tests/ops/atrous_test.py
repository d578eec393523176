import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from jax import lax

from seg_jax.ops.atrous import atrous_plan, shift_and_stitch

# Layers as (kind, size, stride); the last row of a picture that is read lies at `window` - 1.
NETS = {
  'pooling_windows_of_3': (('conv', 3, 1), ('pool', 3, 3), ('conv', 3, 1)),
  'total_stride_4': (
    ('conv', 3, 1),
    ('pool', 2, 2),
    ('conv', 3, 1),
    ('pool', 2, 2),
    ('conv', 2, 1),
  ),
  'overlapping_strides': (('conv', 5, 2), ('pool', 3, 2), ('conv', 3, 1)),
}


def parameters(layers):
  rng, channels, kernels = np.random.default_rng(0), 3, []
  for kind, size, _ in layers:
    kernel = rng.normal(size=(size, size, channels, 4)) / np.sqrt(size * size * channels)
    kernels.append(jnp.asarray(kernel, jnp.float32) if kind == 'conv' else None)
    channels = 4
  return kernels


def apply(layers, plan, kernels, x):
  """The net without padding, each layer with the plan's stride and rate."""
  for (kind, size, _), (stride, rate), kernel in zip(layers, plan, kernels, strict=True):
    if kind == 'conv':
      x = lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        'VALID',
        rhs_dilation=(rate, rate),
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      )
      x = jnp.tanh(x)
    else:
      window, strides, rates = (1, size, size, 1), (1, stride, stride, 1), (1, rate, rate, 1)
      x = lax.reduce_window(x, -jnp.inf, lax.max, window, strides, 'VALID', window_dilation=rates)
  return x


def window_and_stride(layers):
  window, total = 1, 1
  for _, size, stride in layers:
    window += (size - 1) * total
    total *= stride
  return window, total


class ShiftAndStitchTest(parameterized.TestCase):
  @parameterized.product(net=tuple(NETS), batch_size=(None, 3))
  def test_equals_atrous_and_the_sliding_window(self, net, batch_size):
    layers, kernels = NETS[net], parameters(NETS[net])
    window, total = window_and_stride(layers)
    strides = [stride for _, _, stride in layers]
    rows, columns = window + 8, window + 5
    image = np.random.default_rng(1).normal(size=(2, rows, columns, 3)).astype(np.float32)

    @jax.jit
    def strided(x):
      return apply(layers, [(stride, 1) for stride in strides], kernels, x)

    stitched = shift_and_stitch(strided, jnp.asarray(image), total, batch_size)
    stitched = np.asarray(stitched)[:, : rows - window + 1, : columns - window + 1]
    self.assertEqual(stitched.shape, (2, 9, 6, 4))

    atrous = apply(layers, atrous_plan(strides, 1), kernels, jnp.asarray(image))
    np.testing.assert_allclose(stitched, atrous, atol=1e-4)

    crops = [image[:, i : i + window, j : j + window] for i in range(9) for j in range(6)]
    sliding = strided(jnp.asarray(np.concatenate(crops))).reshape(9, 6, 2, 4)
    np.testing.assert_allclose(stitched, sliding.transpose(2, 0, 1, 3), atol=1e-4)

  @parameterized.parameters(1, 2, 4)
  def test_every_output_stride_is_the_dense_map_with_steps(self, output_stride):
    layers, kernels = NETS['total_stride_4'], parameters(NETS['total_stride_4'])
    strides = [stride for _, _, stride in layers]
    image = jnp.asarray(np.random.default_rng(2).normal(size=(1, 27, 24, 3)), jnp.float32)
    dense = apply(layers, atrous_plan(strides, 1), kernels, image)
    coarse = apply(layers, atrous_plan(strides, output_stride), kernels, image)
    np.testing.assert_allclose(coarse, dense[:, ::output_stride, ::output_stride], atol=1e-4)

  def test_the_border_is_as_documented(self):
    image = jnp.asarray(np.arange(1, 36).reshape(1, 5, 7, 1), jnp.float32)
    every_third = shift_and_stitch(lambda x: x[:, ::3, ::3], image, 3)  # ceil(H / 3) of them
    np.testing.assert_array_equal(every_third, image)
    blocks = shift_and_stitch(lambda x: x[:, 0:4:2, 0:6:2] + x[:, 1:5:2, 1:7:2], image, 2)
    below = jnp.pad(image, ((0, 0), (0, 1), (0, 1), (0, 0)))
    np.testing.assert_array_equal(blocks, (below[:, :-1, :-1] + below[:, 1:, 1:])[:, :4, :6])

  def test_stride_one_is_the_function(self):
    image = jnp.ones((1, 4, 5, 2))
    doubled = shift_and_stitch(lambda x: 2 * x, image, 1)
    np.testing.assert_array_equal(doubled, 2 * image)


class AtrousPlanTest(parameterized.TestCase):
  @parameterized.parameters(
    # ResNet: conv1, its pooling, then the strides of four blocks (in the first layer of each).
    ((2, 2, 1, 2, 2, 2), 16, [(2, 1), (2, 1), (1, 1), (2, 1), (2, 1), (1, 1)]),
    ((2, 2, 1, 2, 2, 2), 8, [(2, 1), (2, 1), (1, 1), (2, 1), (1, 1), (1, 2)]),
    ((2, 1, 2, 1, 2, 1), 2, [(2, 1), (1, 1), (1, 1), (1, 2), (1, 2), (1, 4)]),
    ((2, 1, 3, 1), 1, [(1, 1), (1, 2), (1, 2), (1, 6)]),
    ((2, 2), 4, [(2, 1), (2, 1)]),
    ((), 1, []),
  )
  def test_by_hand(self, strides, output_stride, expected):
    self.assertEqual(atrous_plan(strides, output_stride), expected)

  @parameterized.parameters(((2, 2, 2), 16), ((2, 3, 2), 4), ((3, 2), 2), ((2, 2), 0))
  def test_a_stride_that_is_never_reached_is_an_error(self, strides, output_stride):
    with self.assertRaisesRegex(ValueError, f'output stride {output_stride} is none of'):
      atrous_plan(strides, output_stride)


if __name__ == '__main__':
  absltest.main()
