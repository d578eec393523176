"""Panoptic FPN (Kirillov, Girshick, He and Dollar, CVPR 2019, https://arxiv.org/abs/1901.02446).

Mask R-CNN finds the things; a second branch on the same pyramid says of each pixel which stuff is
there, or that there is some thing. `seg_jax.ops.panoptic` merges the two.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from seg_jax.models.fpn import STRIDES
from seg_jax.models.layers import make_conv
from seg_jax.models.mask_rcnn import MaskRCNN, Objects, limits_of
from seg_jax.models.norms import make_norm
from seg_jax.ops.resizing import resize_bilinear


class PanopticFPN(MaskRCNN, kw_only=True):
  """Objects and stuff in pictures of any height and width."""

  num_stuff: int  # classes of stuff
  semantic_width: int = 128  # channels of the semantic branch
  semantic_norm: str = 'group'

  @nn.compact
  def __call__(
    self,
    images: Float[Array, 'N H W C'],
    train: bool = False,
    objects: Objects | None = None,
    sizes: Float[Array, 'N 2'] | None = None,
  ) -> dict[str, jax.Array]:
    """What `MaskRCNN` gives, and `logits` float32 [N, H, W, 1 + num_stuff].

    Their class 0 is any thing, k the k-th of the dataset's stuff.

    Raises:
      UserError: an unknown backbone or norm.
    """
    height, width = images.shape[1:3]
    maps = self.pyramid(images, train)
    fields = (1 + self.num_stuff, self.semantic_width, self.semantic_norm, self.dtype)
    logits = SemanticBranch(*fields, name='semantic')(maps, train)[:, :height, :width]
    return self.detect(maps, limits_of(images, sizes), train, objects) | {'logits': logits}


class SemanticBranch(nn.Module):
  """Semantic segmentation from a feature pyramid (section 3, figure 3)."""

  num_classes: int
  width: int = 128
  norm: str = 'group'
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self, maps: dict[int, Float[Array, 'N _ _ _']], train: bool = False
  ) -> Float[Array, 'N H W num_classes']:
    """Logits, float32, four times as large as the map of stride 4, from those of `STRIDES`."""
    conv, norm = make_conv(self.dtype), make_norm(self.norm, train, self.dtype)
    bias, size, total = self.norm == 'none', maps[4].shape[1:3], 0
    for k, stride in enumerate(STRIDES):
      x = maps[stride]
      for i in range(max(k, 1)):
        x = conv(self.width, 3, bias=bias, name=f'conv{stride}_{i}')(x)
        x = nn.relu(norm(name=f'norm{stride}_{i}')(x))
        # A backbone at a smaller output stride is there sooner.
        x = resize_bilinear(x, [min(2 * n, m) for n, m in zip(x.shape[1:3], size, strict=True)])
      total += x
    logits = conv(self.num_classes, 1, bias=True, name='classifier')(total).astype(jnp.float32)
    return resize_bilinear(logits, [4 * n for n in size])
