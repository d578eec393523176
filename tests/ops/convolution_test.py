from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from jax import lax

from seg_jax.ops import convolution
from seg_jax.ops.convolution import convolve

ZERO = ((0, 0), (0, 0))
# (rows, columns), kernel [rows, columns, C / groups, D], strides, padding, rates, groups
GEOMETRIES = {
  'plain': ((9, 8), (3, 3, 4, 5), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
  'pointwise': ((5, 6), (1, 1, 4, 3), (1, 1), ZERO, (1, 1), 1),
  'pointwise_strided': ((7, 6), (1, 1, 4, 3), (2, 3), ZERO, (1, 1), 1),
  'pointwise_same': ((7, 6), (1, 1, 4, 3), (2, 2), 'SAME', (1, 1), 1),
  'pointwise_padded': ((4, 5), (1, 1, 4, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
  'pointwise_dilated': ((4, 5), (1, 1, 4, 3), (1, 1), ZERO, (3, 3), 1),
  'strided': ((9, 8), (3, 3, 4, 5), (2, 2), ((1, 1), (1, 1)), (1, 1), 1),
  'strided_same': ((9, 8), (3, 3, 4, 5), (2, 2), 'SAME', (1, 1), 1),
  'valid': ((9, 8), (5, 3, 4, 5), (2, 1), 'VALID', (1, 1), 1),
  'dilated': ((9, 8), (3, 3, 4, 5), (1, 1), ((2, 2), (2, 2)), (2, 2), 1),
  'dilated_same': ((9, 8), (3, 3, 4, 5), (1, 1), 'SAME', (2, 3), 1),
  'wider_than_the_map': ((5, 4), (3, 3, 4, 5), (1, 1), ((6, 6), (6, 6)), (6, 6), 1),
  'larger_than_the_map': ((3, 5), (7, 7, 4, 5), (1, 1), 'SAME', (1, 1), 1),
  'wider_than_its_rows': ((3, 13), (3, 3, 4, 5), (1, 1), 'SAME', (4, 4), 1),
  'wider_strided': ((6, 7), (5, 5, 4, 5), (2, 3), ((8, 8), (8, 8)), (4, 4), 1),
  'wider_on_one_side': ((4, 5), (3, 3, 4, 5), (1, 1), ((9, 1), (0, 11)), (5, 5), 1),
  'no_pixel_in_reach': ((2, 2), (2, 2, 4, 5), (9, 9), ((8, 0), (8, 0)), (1, 1), 1),
  'pixels_between_windows': ((2, 2), (2, 2, 4, 5), (9, 9), ((9, 9), (3, 3)), (1, 1), 1),
  'depthwise': ((9, 8), (3, 3, 1, 6), (1, 1), ((1, 1), (1, 1)), (1, 1), 6),
  'depthwise_strided': ((9, 8), (3, 3, 1, 6), (2, 2), ((1, 1), (1, 1)), (1, 1), 6),
  'depthwise_strided_same': ((8, 9), (3, 3, 1, 6), (2, 2), 'SAME', (1, 1), 6),
  'depthwise_dilated': ((9, 8), (3, 3, 1, 6), (1, 1), ((3, 3), (3, 3)), (3, 3), 6),
  'depthwise_wider': ((5, 4), (3, 3, 1, 6), (1, 1), ((6, 6), (6, 6)), (6, 6), 6),
  'depthwise_any': ((9, 8), (2, 3, 1, 6), (1, 2), ((0, 2), (1, 0)), (3, 1), 6),
  'depthwise_multiplied': ((6, 5), (3, 3, 1, 12), (1, 1), ((1, 1), (1, 1)), (1, 1), 6),
  'groups': ((9, 8), (3, 3, 2, 6), (2, 1), ((1, 1), (1, 1)), (1, 1), 2),
  'groups_dilated': ((9, 8), (3, 3, 2, 6), (1, 1), 'SAME', (2, 2), 3),
  'groups_pointwise': ((5, 6), (1, 1, 2, 6), (1, 1), ZERO, (1, 1), 3),
}


def arrays(size, kernel_shape, groups):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, *size, kernel_shape[2] * groups))
  kernel = rng.normal(size=kernel_shape) / np.sqrt(np.prod(kernel_shape[:3]))
  return (jnp.asarray(a, jnp.float32) for a in (x, kernel))


def value_and_gradients(function, x, kernel):
  """The result, the gradients of x and kernel for a gradient of the result, and that gradient."""

  @jax.jit
  def run(x, kernel, cotangent):
    y, pullback = jax.vjp(function, x, kernel)
    return y, *pullback(cotangent)

  shape = jax.eval_shape(function, x, kernel).shape
  cotangent = np.random.default_rng(1).normal(size=shape).astype(np.float32)
  return *run(x, kernel, cotangent), cotangent


class ConvolveTest(parameterized.TestCase):
  @parameterized.parameters(*GEOMETRIES)
  def test_value_and_gradients_equal_xlas(self, name):
    size, kernel_shape, strides, padding, rates, groups = GEOMETRIES[name]
    x, kernel = arrays(size, kernel_shape, groups)

    def own(x, kernel):
      return convolve(x, kernel, strides, padding, rhs_dilation=rates, feature_group_count=groups)

    def plain(x, kernel):
      return lax.conv_general_dilated(
        x,
        kernel,
        strides,
        padding,
        rhs_dilation=rates,
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        feature_group_count=groups,
      )

    results = (value_and_gradients(function, x, kernel) for function in (own, plain))
    for got, expected in zip(*results, strict=True):
      np.testing.assert_allclose(got, expected, atol=1e-4)

  @parameterized.parameters(
    ('plain', 32), ('strided_same', 32), ('dilated', 32), ('groups', 32), ('plain', 1)
  )
  def test_gradients_part_by_part_equal_those_of_the_batch(self, name, parts):
    size, kernel_shape, strides, padding, rates, groups = GEOMETRIES[name]
    x, kernel = arrays(size, kernel_shape, groups)

    def own(x, kernel):
      return convolve(x, kernel, strides, padding, rhs_dilation=rates, feature_group_count=groups)

    expected = value_and_gradients(own, x, kernel)
    with mock.patch.multiple(convolution, _LARGE=0, _PARTS=parts):
      got = value_and_gradients(own, x, kernel)
      traced = str(jax.make_jaxpr(jax.grad(lambda kernel: own(x, kernel).sum()))(kernel))
    self.assertIn('platform_index', traced)
    for one, other in zip(got, expected, strict=True):
      np.testing.assert_allclose(one, other, atol=1e-4)

  # PyTorch pads both sides alike.
  @parameterized.parameters(
    *(
      name
      for name, (*_, padding, _, _) in GEOMETRIES.items()
      if not isinstance(padding, str) and all(a == b for a, b in padding)
    )
  )
  def test_value_and_gradients_equal_pytorchs(self, name):
    try:
      import torch
    except ImportError:
      self.skipTest('PyTorch is not installed')
    size, kernel_shape, strides, padding, rates, groups = GEOMETRIES[name]
    x, kernel = arrays(size, kernel_shape, groups)

    def own(x, kernel):
      return convolve(x, kernel, strides, padding, rhs_dilation=rates, feature_group_count=groups)

    y, dx, dkernel, cotangent = value_and_gradients(own, x, kernel)
    tx = torch.tensor(np.array(x).transpose(0, 3, 1, 2), requires_grad=True)
    tkernel = torch.tensor(np.array(kernel).transpose(3, 2, 0, 1), requires_grad=True)
    borders = [before for before, _ in padding]
    ty = torch.nn.functional.conv2d(tx, tkernel, None, strides, borders, rates, groups)
    ty.backward(torch.tensor(cotangent.transpose(0, 3, 1, 2)))
    np.testing.assert_allclose(y, ty.detach().permute(0, 2, 3, 1), atol=1e-4)
    np.testing.assert_allclose(dx, tx.grad.permute(0, 2, 3, 1), atol=1e-4)
    np.testing.assert_allclose(dkernel, tkernel.grad.permute(2, 3, 1, 0), atol=1e-4)

  def test_a_map_with_holes_is_xlas(self):
    """A dilated map, as in a transposed convolution."""
    x, kernel = arrays((5, 4), (3, 3, 2, 3), 1)
    how = {'lhs_dilation': (2, 2), 'rhs_dilation': (1, 1)}
    got = convolve(x, kernel, (1, 1), ((1, 1), (1, 1)), **how)
    how['dimension_numbers'] = ('NHWC', 'HWIO', 'NHWC')
    expected = lax.conv_general_dilated(x, kernel, (1, 1), ((1, 1), (1, 1)), **how)
    np.testing.assert_allclose(got, expected, atol=1e-5)

  @parameterized.parameters(((3, 3), 1, 2), ((3, 3), 6, 1), ((1, 1), 1, 2), ((3, 3), 2, 1))
  def test_flaxs_layer_takes_it(self, size, groups, stride):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 7, 8, 6)), jnp.float32)
    own, plain = (
      nn.Conv(6, size, stride, feature_group_count=groups, conv_general_dilated=function)
      for function in (convolve, None)
    )
    variables = jax.jit(plain.init)(jax.random.key(0), x)
    np.testing.assert_allclose(own.apply(variables, x), plain.apply(variables, x), atol=1e-5)

  @parameterized.parameters('plain', 'pointwise', 'depthwise', 'groups', 'wider_than_the_map')
  def test_bfloat16_stays_bfloat16(self, name):
    size, kernel_shape, strides, padding, rates, groups = GEOMETRIES[name]
    x, kernel = (a.astype(jnp.bfloat16) for a in arrays(size, kernel_shape, groups))
    y = jax.eval_shape(
      lambda x, kernel: convolve(
        x, kernel, strides, padding, rhs_dilation=rates, feature_group_count=groups
      ),
      x,
      kernel,
    )
    self.assertEqual(y.dtype, jnp.bfloat16)

  def test_no_pictures_have_gradients(self):
    x, kernel = np.zeros((0, 8, 8, 6), np.float32), np.ones((3, 3, 1, 6), np.float32)
    of_x, of_kernel = jax.grad(
      lambda x, kernel: convolve(x, kernel, (1, 1), 'SAME', feature_group_count=6).sum(), (0, 1)
    )(x, kernel)
    self.assertEqual(of_x.shape, x.shape)
    np.testing.assert_array_equal(of_kernel, 0 * kernel)

  def test_taps_that_read_padding_alone_are_left_out(self):
    """A 3x3 kernel of rate 6 on 5 x 4 pixels is its middle tap."""
    size, kernel_shape, strides, padding, rates, _ = GEOMETRIES['wider_than_the_map']
    x, kernel = arrays(size, kernel_shape, 1)
    got = convolve(x, kernel, strides, padding, rhs_dilation=rates)
    np.testing.assert_array_equal(got, x @ kernel[1, 1])
    jaxpr = str(
      jax.make_jaxpr(lambda *a: convolve(*a, strides, padding, rhs_dilation=rates))(x, kernel)
    )
    self.assertNotIn('conv_general_dilated', jaxpr)


if __name__ == '__main__':
  absltest.main()
