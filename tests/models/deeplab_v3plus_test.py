import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from seg_jax.errors import UserError
from seg_jax.models.deeplab_v3plus import DeepLabV3Plus
from tests.models.backbones.variables import images, num_parameters, random_like, shapes_of
from tests.models.deeplab_v3_test import SMALL, aspp, layer, trained_on
from tests.models.fcn_resnet_test import assert_close, computed, conv, layers, stretched

SMALL = SMALL | {'low_features': 3}


def by_hand(channels, low_channels, separable):
  """The parameters of ASPP and decoder (sections 3.1 and 4.1) with 21 classes."""

  def normed(size, before, after):
    return size * size * before * after + 2 * after

  def layer3x3(before, after):
    if not separable:
      return normed(3, before, after)
    return 3 * 3 * before + 2 * before + normed(1, before, after)

  pyramid = normed(1, channels, 256) + 3 * layer3x3(channels, 256) + normed(1, channels, 256)
  pyramid += normed(1, 5 * 256, 256)
  decoder = normed(1, low_channels, 48) + layer3x3(256 + 48, 256) + layer3x3(256, 256)
  return pyramid + decoder + 256 * 21 + 21


class DeepLabV3PlusTest(parameterized.TestCase):
  @parameterized.parameters(
    ('xception65', 2048, 256, True), ('mobilenet_v2', 320, 24, True), ('resnet50', 2048, 256, False)
  )
  def test_has_the_papers_parameters(self, backbone, channels, low_channels, separable):
    model = DeepLabV3Plus(num_classes=21, backbone=backbone, separable=separable)
    params = shapes_of(model)['params']
    heads = {name: part for name, part in params.items() if name != 'backbone'}
    self.assertEqual(num_parameters({'params': heads}), by_hand(channels, low_channels, separable))

  @parameterized.parameters(True, False)
  def test_equals_numpy(self, separable):
    """Figure 2: ASPP, enlarged, beside the narrowed features of stride 4, refined."""
    model = DeepLabV3Plus(**SMALL, separable=separable, output_stride=8)
    x = images(2, 37, 52, 3)
    variables = random_like(shapes_of(model))
    features, outputs = computed(model, variables, x)
    parts = layers(variables)
    low = layer(features[4], parts, 'low')
    y = aspp(features[32], parts['aspp'], (2, 4, 6))
    self.assertEqual((low.shape[1:3], y.shape[1:3]), ((10, 13), (5, 7)))
    y = np.concatenate([stretched(y, (10, 13)), low], -1)
    y = layer(layer(y, parts, 'decoder1'), parts, 'decoder2')
    assert_close(outputs['logits'], stretched(conv(y, parts['score']), (37, 52)))

  @parameterized.parameters('resnet18', 'mobilenet_v2', 'xception65', 'vgg16', 'alexnet')
  def test_any_backbone_gives_any_size_back(self, backbone):
    model = DeepLabV3Plus(num_classes=3, backbone=backbone)
    x = jax.ShapeDtypeStruct((1, 65, 98, 4), jnp.float32)
    logits = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x)[0], x)['logits']
    self.assertEqual((logits.shape, logits.dtype), ((1, 65, 98, 3), jnp.float32))

  def test_a_single_picture_under_batch_norm_is_the_users_error(self):
    with self.assertRaisesRegex(UserError, "model.norm is 'batch'.* data.batch_size.* 'group'"):
      trained_on(DeepLabV3Plus(**SMALL), 1)
    trained_on(DeepLabV3Plus(**SMALL), 2)
    trained_on(DeepLabV3Plus(**SMALL, norm='group'), 1)

  @parameterized.parameters(
    ({'backbone': 'xception'}, "model.backbone is 'xception'; did you mean 'xception65'"),
    ({'output_stride': 12}, 'model.output_stride is 12'),
    ({'padding': 'same'}, "model.padding is 'same', but resnet18 has no padding"),
    ({'backbone': 'mobilenet_v2', 'padding': 'sam'}, "model.padding is 'sam'; did you mean 'same'"),
    ({'norm': 'bach'}, 'model.norm'),
  )
  def test_what_cannot_be_built_is_the_users_error(self, fields, message):
    with self.assertRaisesRegex(UserError, message):
      shapes_of(DeepLabV3Plus(**SMALL | fields))


if __name__ == '__main__':
  absltest.main()
