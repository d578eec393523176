"""Multi-scale convolutional net: Learning Hierarchical Features for Scene Labeling.

Farabet, Couprie, Najman and LeCun, PAMI 2013. One net, with the same weights, looks at every scale
of a Laplacian pyramid of the picture, each locally normalised (section 3, figure 1): three stages
of 7x7 convolutions with 16, 64 and 256 maps, the first two with tanh and 2x2 max pooling. Its field
of view is 46 x 46 pixels at each scale, 184 x 184 of the picture at the third. The coarser maps are
upsampled to the finest and concatenated, 768 features for each 4 x 4 pixels, and two layers, 1024
hidden units, classify them.

Departures: every map reads all maps of the layer before, where the paper leaves connections out,
and the first layer reads Y, U and V alike; the scores are interpolated to pixels, where the paper
labels superpixels, and the classifier is trained together with the features; YUV is of the picture
as it comes, colours already normalised. Norms are not the paper's. The scales do not share them, as
their statistics differ: with the averages of all, a trained net would see other features than in
training.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from seg_jax.models.layers import Conv
from seg_jax.models.norms import make_norm
from seg_jax.models.padding import pad_behind
from seg_jax.ops.pooling import max_pool, mean_pool
from seg_jax.ops.resizing import resize_bilinear

# Rows are R, G and B, columns Y, U and V (ITU-R BT.601).
YUV = ((0.299, -0.147, 0.615), (0.587, -0.289, -0.515), (0.114, 0.436, -0.1))


class MultiScale(nn.Module):
  """Logits for pictures of any height and width.

  The paper's: width 16, 3 scales, hidden 1024, no norm.
  """

  num_classes: int
  width: int = 16  # maps of the first stage; times 4 with each further one
  scales: int = 3  # in octaves
  hidden: int = 1024
  norm: str = 'batch'
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self, images: Float[Array, 'N H W C'], train: bool = False
  ) -> dict[str, Float[Array, 'N H W num_classes']]:
    """`{'logits': [N, H, W, num_classes]}`, float32; padding and cropping happen inside.

    Pictures of 3 channels are taken to be RGB; others are used as they are, without YUV.
    """
    height, width = images.shape[1:3]
    images = pad_behind(images, 4 * 2 ** (self.scales - 1))
    if images.shape[-1] == 3:
      images = jnp.einsum('nhwc,cd->nhwd', images, jnp.asarray(YUV), precision='highest')
    norm = make_norm(self.norm, train, self.dtype)
    use_bias = self.norm == 'none'
    stages = [
      Conv(self.width * 4**i, (7, 7), use_bias=use_bias, dtype=self.dtype, name=f'conv{i + 1}')
      for i in range(3)
    ]
    finest = tuple(n // 4 for n in images.shape[1:3])
    total = 0
    for scale, band in enumerate(laplacian_pyramid(images, self.scales), 1):
      x = local_norm(band).astype(self.dtype)
      for i, stage in enumerate(stages, 1):
        x = stage(x)
        if i < 3:
          x = max_pool(nn.tanh(norm(name=f'norm{i}_scale{scale}')(x)))
      # The classifier's first layer is linear, and so is upsampling: it may come first, where the
      # maps of the coarser scales are still small.
      x = Conv(
        self.hidden,
        (1, 1),
        use_bias=use_bias and scale == 1,
        dtype=self.dtype,
        name=f'hidden_scale{scale}',
      )(x)
      total += resize_bilinear(x, finest)
    x = nn.tanh(norm(name='norm_hidden')(total))
    logits = Conv(self.num_classes, (1, 1), dtype=self.dtype, name='score')(x)
    logits = resize_bilinear(logits.astype(jnp.float32), images.shape[1:3])
    return {'logits': logits[:, :height, :width]}


def laplacian_pyramid(x: Float[Array, 'N H W C'], scales: int) -> list[Float[Array, 'N h w C']]:
  """What each octave adds to the next coarser one, the finest first; the last is what remains.

  Burt and Adelson 1983, with bilinear resizing. H and W are multiples of 2**(scales - 1).
  """
  bands = []
  for _ in range(scales - 1):
    height, width = x.shape[1:3]
    coarse = resize_bilinear(x, (height // 2, width // 2))
    bands.append(x - resize_bilinear(coarse, (height, width)))
    x = coarse
  return [*bands, x]


def local_norm(
  x: Float[Array, 'N H W C'], size: int = 15, floor: float = 0.1
) -> Float[Array, 'N H W C']:
  """Each channel with zero mean and unit variance in the `size` x `size` pixels around each pixel.

  At the borders, of those that there are. Deviations below `floor` are not enlarged any further.
  """

  def mean(x):
    for window in ((size, 1), (1, size)):
      x = mean_pool(x, window, 1, (window[0] // 2, window[1] // 2), count_include_pad=False)
    return x

  x = x - mean(x)
  return x / jnp.sqrt(jnp.maximum(mean(x * x), floor**2))
