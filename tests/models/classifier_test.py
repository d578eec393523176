import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from flax.errors import InvalidRngError

from seg_jax.errors import UserError
from seg_jax.models.classifier import HEADS, Classifier, adaptive_mean_pool
from tests.models.backbones.variables import images, num_parameters, shapes_of

# One of each family.
NAMES = tuple(name for name in HEADS if name not in ('resnet34', 'resnet101', 'resnet152'))


class ClassifierTest(parameterized.TestCase):
  @parameterized.parameters(
    # torchvision's documentation.
    ('resnet18', 'batch', 11_689_512),
    ('resnet34', 'batch', 21_797_672),
    ('resnet50', 'batch', 25_557_032),
    ('resnet101', 'batch', 44_549_160),
    ('resnet152', 'batch', 60_192_808),
    ('mobilenet_v2', 'batch', 3_504_872),
    ('alexnet', 'none', 61_100_840),
    ('vgg16', 'none', 138_357_544),
    # vgg16_bn, whose convolutions have 4,224 biases that the norms behind them take away again.
    ('vgg16', 'batch', 138_365_992 - 4_224),
  )
  def test_has_torchvisions_parameters(self, backbone, norm, expected):
    shapes = shapes_of(Classifier(backbone=backbone, norm=norm), (64, 64))
    self.assertEqual(num_parameters(shapes), expected)

  def test_xception_has_timms_parameters(self):
    """39.92 M in timm's table of results."""
    count = num_parameters(shapes_of(Classifier(backbone='xception65')))
    self.assertEqual(round(count / 1e6, 2), 39.92)

  @parameterized.parameters(*NAMES)
  def test_logits_are_float32_and_parameters_too(self, backbone):
    self.enterContext(jax.numpy_dtype_promotion('standard'))  # Flax's batch norm in bfloat16
    model = Classifier(num_classes=5, backbone=backbone, dtype=jnp.bfloat16)
    outputs, variables = jax.eval_shape(
      lambda x: model.init_with_output(jax.random.key(0), x), jnp.zeros((2, 97, 75, 3))
    )
    self.assertEqual((outputs['logits'].shape, outputs['logits'].dtype), ((2, 5), jnp.float32))
    self.assertEqual({x.dtype for x in jax.tree.leaves(variables)}, {jnp.dtype('float32')})
    self.assertIn('backbone', variables['params'])

  @parameterized.parameters(*NAMES)
  def test_training_drops_where_torchvision_does(self, backbone):
    model = Classifier(num_classes=5, backbone=backbone, norm='none')
    image = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    variables = shapes_of(model, (64, 64))
    jax.eval_shape(functools.partial(model.apply, train=False), variables, image)
    train = functools.partial(jax.eval_shape, functools.partial(model.apply, train=True))
    if backbone in ('alexnet', 'mobilenet_v2', 'vgg16'):
      with self.assertRaisesRegex(InvalidRngError, 'dropout'):
        train(variables, image)
    else:
      train(variables, image)

  def test_fc6_tells_the_places_of_its_map_apart(self):
    for backbone, shape in (('alexnet', (6, 6, 256, 4096)), ('vgg16', (7, 7, 512, 4096))):
      shapes = shapes_of(Classifier(backbone=backbone), (64, 64))
      self.assertEqual(shapes['params']['fc6']['kernel'].shape, shape)

  @parameterized.parameters(
    ({'backbone': 'resnet'}, "model.backbone is 'resnet'; did you mean 'resnet"),
    ({'backbone': 'hrnet_w18'}, "model.backbone is 'hrnet_w18'"),
    ({'backbone': 'resnet18', 'padding': 'same'}, "model.padding is 'same', but resnet18"),
    ({'backbone': 'mobilenet_v2', 'padding': 'vaild'}, "model.padding is 'vaild'"),
  )
  def test_what_cannot_be_built_is_the_users_error(self, fields, message):
    with self.assertRaisesRegex(UserError, message):
      shapes_of(Classifier(**fields))


class AdaptiveMeanPoolTest(parameterized.TestCase):
  @parameterized.product(size=((7, 7), (14, 21), (10, 13), (3, 8), (1, 6)), cells=(6, 7))
  def test_equals_pytorch(self, size, cells):
    try:
      import torch
    except ImportError:
      self.skipTest('PyTorch is not installed')
    x = images(2, *size, 3)
    expected = torch.nn.functional.adaptive_avg_pool2d(
      torch.from_numpy(np.array(x).transpose(0, 3, 1, 2)), cells
    )
    y = jax.jit(adaptive_mean_pool, static_argnums=1)(x, cells)
    np.testing.assert_allclose(y, expected.permute(0, 2, 3, 1), atol=1e-5)

  def test_cells_by_hand(self):
    """Five pixels in three cells: 0 and 1, 1 to 3, 3 and 4."""
    x = jnp.broadcast_to(
      jnp.asarray([0, 1, 10, 100, 1000], jnp.float32).reshape(1, 5, 1, 1), (1, 5, 3, 1)
    )
    y = adaptive_mean_pool(x, 3)
    np.testing.assert_allclose(y[0, :, 0, 0], [0.5, 37, 550], rtol=1e-6)
    np.testing.assert_allclose(y, jnp.broadcast_to(y[:, :, :1], y.shape), rtol=1e-6)


if __name__ == '__main__':
  absltest.main()
