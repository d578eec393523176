import jax
import numpy as np
from absl.testing import absltest, parameterized

from seg_jax.errors import UserError
from seg_jax.models.backbones.resnet import ResNet
from tests.models.backbones.variables import (
  feature_shapes,
  images,
  num_parameters,
  random_like,
  shapes_of,
)


def convolutions(shapes):
  """The (rows, columns, inputs, outputs) of each kernel, by the layer's name."""
  leaves = jax.tree_util.tree_leaves_with_path(shapes['params'])
  return {
    '/'.join(key.key for key in path[:-1]): leaf.shape
    for path, leaf in leaves
    if path[-1].key == 'kernel'
  }


class ResNetTest(parameterized.TestCase):
  @parameterized.parameters(
    # torchvision's classifiers, less 1000 x (channels + 1) of the fully connected layer.
    (18, 11_689_512 - 513_000),
    (34, 21_797_672 - 513_000),
    (50, 25_557_032 - 2_049_000),
    (101, 44_549_160 - 2_049_000),
    (152, 60_192_808 - 2_049_000),
  )
  def test_has_torchvisions_parameters(self, depth, expected):
    self.assertEqual(num_parameters(shapes_of(ResNet(depth))), expected)

  @parameterized.parameters((18, (64, 64, 128, 256, 512)), (50, (64, 256, 512, 1024, 2048)))
  def test_has_the_papers_channels(self, depth, channels):
    """Table 1."""
    shapes = feature_shapes(ResNet(depth), (64, 64))
    strides = (2, 4, 8, 16, 32)
    expected = {s: (1, 64 // s, 64 // s, c) for s, c in zip(strides, channels, strict=True)}
    self.assertEqual(shapes, expected)

  def test_a_shortcut_is_projected_where_its_shape_changes(self):
    for depth, first_stage in ((18, False), (50, True)):
      names = convolutions(shapes_of(ResNet(depth)))
      projected = {name for name in names if 'shortcut' in name}
      stages = (1, 2, 3, 4) if first_stage else (2, 3, 4)
      self.assertEqual(projected, {f'layer{stage}_0/shortcut_conv' for stage in stages})

  def test_going_deeper_copies_stage_4(self):
    """DeepLab v3, section 3.2: three units each, to a stride of 256."""
    model = ResNet(50, extra_stages=3, output_stride=256)
    kernels = convolutions(shapes_of(model))
    for stage in (5, 6, 7):
      for unit in (1, 2):
        for i in (1, 2, 3):
          name = f'conv{i}'
          self.assertEqual(kernels[f'layer{stage}_{unit}/{name}'], kernels[f'layer4_{unit}/{name}'])
      self.assertIn(f'layer{stage}_0/shortcut_conv', kernels)
    self.assertEqual(
      {stride: shape[1:] for stride, shape in feature_shapes(model, (257, 257)).items()},
      {
        2: (129, 129, 64),
        4: (65, 65, 256),
        8: (33, 33, 512),
        16: (17, 17, 1024),
        32: (9, 9, 2048),
        64: (5, 5, 2048),
        128: (3, 3, 2048),
        256: (2, 2, 2048),
      },
    )

  @parameterized.parameters(False, True)
  def test_multi_grid_preactivation_and_further_stages_are_dense_too(self, preactivation):
    fields = {'width': 4, 'extra_stages': 1, 'multi_grid': (1, 2), 'preactivation': preactivation}
    coarse, dense = (ResNet(18, stride, **fields) for stride in (64, 16))
    variables, x = random_like(shapes_of(coarse)), images(1, 139, 65, 3)
    expected, got = (jax.jit(model.apply)(variables, x) for model in (coarse, dense))
    self.assertEqual(list(expected), [2, 4, 8, 16, 32, 64])
    for stride, y in expected.items():
      step = max(1, stride // 16)
      atol = 1e-4 * float(np.abs(y).max())
      np.testing.assert_allclose(got[stride][:, ::step, ::step], y, rtol=0, atol=atol)

  def test_multi_grid_dilates_stage_4_and_no_other(self):
    plain, grid = ResNet(18, width=4), ResNet(18, width=4, multi_grid=(1, 2))
    variables, x = random_like(shapes_of(plain)), images(1, 97, 97, 3)
    expected, got = (jax.jit(model.apply)(variables, x) for model in (plain, grid))
    for stride in (2, 4, 8, 16):
      np.testing.assert_allclose(got[stride], expected[stride], rtol=1e-4, atol=1e-4)
    self.assertGreater(float(np.abs(got[32] - expected[32]).max()), 1e-2)

  def test_preactivated_units_end_with_their_sum(self):
    """He et al. 2016, figure 1b: as many norms as convolutions in a unit, and one per feature map
    behind; the stem's convolution has none, nor has a projection."""
    shapes = shapes_of(ResNet(50, preactivation=True))
    kernels = convolutions(shapes)
    norms = {
      '/'.join(key.key for key in path[:-1])
      for path, _ in jax.tree_util.tree_leaves_with_path(shapes['batch_stats'])
    }
    expected = {name.replace('conv', 'norm') for name in kernels if 'shortcut' not in name}
    maps = {f'norm_{stride}' for stride in (4, 8, 16, 32)}
    self.assertEqual(norms, expected - {'norm1'} | maps)

  def test_an_unknown_depth_is_the_users_error(self):
    with self.assertRaisesRegex(UserError, 'depth 20'):
      shapes_of(ResNet(20))


if __name__ == '__main__':
  absltest.main()
