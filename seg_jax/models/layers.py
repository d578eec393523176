"""The convolutions that backbones and systems are made of."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from seg_jax.ops.convolution import convolve

# Linen's, with gradients that are quick on a CPU, too.
Conv = functools.partial(nn.Conv, conv_general_dilated=convolve)


def conv_before_norm(norm: str, dtype: jnp.dtype, **options) -> Callable[..., nn.Module]:
  """A constructor of `Conv`, with its `options`, for a norm of that kind and a ReLU behind.

  Kernels begin as He et al. 2015 draw them; there is a bias where there is no norm.
  """
  return functools.partial(
    Conv,
    use_bias=norm == 'none',
    kernel_init=nn.initializers.he_normal(),
    dtype=dtype,
    **options,
  )


def make_conv(dtype: jnp.dtype, padding: str = 'symmetric') -> Callable[..., nn.Module]:
  """A constructor `conv(features, size, stride=1, rate=1, groups=1, bias=False, name=...)`.

  `padding` is 'symmetric', `rate * (size - 1) / 2` on every side as in PyTorch's models, or 'same',
  TensorFlow's, which pads one more behind than before where a stride asks for it. Without strides
  they are equal.
  """
  return functools.partial(_conv, dtype=dtype, padding=padding)


def _conv(features, size, stride=1, rate=1, groups=1, bias=False, *, dtype, padding, name=None):
  border = rate * (size - 1) // 2
  return Conv(
    features,
    (size, size),
    strides=stride,
    padding='SAME' if padding == 'same' else ((border, border), (border, border)),
    kernel_dilation=rate,
    feature_group_count=groups,
    use_bias=bias,
    kernel_init=nn.initializers.he_normal(),
    dtype=dtype,
    name=name,
  )
