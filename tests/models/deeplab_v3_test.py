import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from seg_jax.errors import UserError
from seg_jax.models.deeplab_v3 import ASPP, DeepLabV3, scaled_rates
from seg_jax.models.layers import make_conv
from seg_jax.models.norms import make_norm
from tests.models.backbones.variables import images, num_parameters, random_like, shapes_of
from tests.models.fcn_resnet_test import (
  SMALL,
  assert_close,
  computed,
  conv,
  fcn_head,
  layers,
  norm_relu,
  stretched,
)

SMALL = SMALL | {'atrous_rates': (1, 2, 3), 'features': 4}


def layer(x, part, name, rate=1):
  if f'{name}_depthwise' in part:
    x = norm_relu(conv(x, part[f'{name}_depthwise'], rate), part[f'{name}_depthwise_norm'])
  return norm_relu(conv(x, part[f'{name}_conv'], rate), part[f'{name}_norm'])


def aspp(x, part, rates):
  """Figure 5, in NumPy."""
  branches = [layer(x, part, 'branch0')]
  branches += [layer(x, part, f'branch{i}', rate) for i, rate in enumerate(rates, 1)]
  mean = layer(x.mean((1, 2), keepdims=True), part, 'pool')
  branches.append(np.broadcast_to(mean, branches[0].shape))
  return layer(np.concatenate(branches, -1), part, 'project')


def trained_on(model, count):
  """Traces a training step's forward pass on `count` pictures; nothing is computed."""
  x = jnp.zeros((count, 33, 33, 3))
  variables = jax.eval_shape(model.init, jax.random.key(0), x)
  rngs = {'dropout': jax.random.key(0)}
  train = functools.partial(model.apply, train=True, mutable=['batch_stats'], rngs=rngs)
  return jax.eval_shape(train, variables, x)


def convolutions(model, size):
  """The rate and the rows of the output of each 3x3 convolution, by its path."""
  seen = {}

  def record(call, args, kwargs, context):
    y, module = call(*args, **kwargs), context.module
    called = isinstance(module, nn.Conv) and context.method_name == '__call__'
    if called and module.kernel_size == (3, 3):
      seen['/'.join(module.path)] = (module.kernel_dilation, y.shape[1])
    return y

  with nn.intercept_methods(record):
    shapes_of(model, (size, size))
  return seen


class ASPPTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.x = images(2, 9, 11, 6)

  def module(self, separable, dropout=0.5):
    conv, norm = make_conv(jnp.float32), make_norm('batch', False, jnp.float32)
    return ASPP(4, (2, 5, 12), dropout, separable, conv, norm)  # the last reaches over the map

  def variables(self, module):
    return random_like(
      jax.eval_shape(functools.partial(module.init, train=False), jax.random.key(0), self.x)
    )

  @parameterized.parameters(False, True)
  def test_equals_numpy_tap_by_tap(self, separable):
    module = self.module(separable)
    variables = self.variables(module)
    y = jax.jit(lambda v, x: module.apply(v, x, False))(variables, self.x)
    assert_close(y, aspp(np.asarray(self.x, np.float64), layers(variables), (2, 5, 12)))

  def test_every_branch_reaches_the_output(self):
    module = self.module(separable=False)
    variables = self.variables(module)

    @jax.jit
    @jax.grad
    def gradient(params):
      return (module.apply(variables | {'params': params}, self.x, False) ** 2).sum()

    for path, value in jax.tree_util.tree_leaves_with_path(gradient(variables['params'])):
      self.assertGreater(float(jnp.abs(value).max()), 0, jax.tree_util.keystr(path))

  def test_dropout_follows_its_key_in_training_only(self):
    module = self.module(separable=False)
    variables = self.variables(module)

    @functools.partial(jax.jit, static_argnums=1)
    def output(seed, train):
      return module.apply(variables, self.x, train, rngs={'dropout': jax.random.key(seed)})

    self.assertGreater(float(jnp.abs(output(1, True) - output(2, True)).max()), 0)
    np.testing.assert_array_equal(output(1, False), output(2, False))

  @parameterized.parameters(
    (16, (6, 12, 18)), (8, (12, 24, 36)), (4, (24, 48, 72)), (32, (3, 6, 9))
  )
  def test_rates_double_where_the_output_stride_halves(self, output_stride, expected):
    self.assertEqual(scaled_rates((6, 12, 18), output_stride), expected)

  def test_no_rate_is_less_than_one(self):
    self.assertEqual(scaled_rates((1, 2, 3), 32), (1, 1, 1))


class DeepLabV3Test(parameterized.TestCase):
  @parameterized.parameters(('resnet50', 42_004_074), ('resnet101', 60_996_202))
  def test_has_torchvisions_parameters(self, backbone, published):
    model = DeepLabV3(num_classes=21, backbone=backbone)
    self.assertEqual(num_parameters(shapes_of(model)), published)

  @parameterized.parameters((8, (2, 4, 6), 5), (16, (1, 2, 3), 3))
  def test_equals_numpy(self, output_stride, rates, rows):
    """ASPP with the rates of its output stride, the head, and the auxiliary head."""
    model, x = DeepLabV3(**SMALL, output_stride=output_stride), images(2, 37, 52, 3)
    variables = random_like(shapes_of(model))
    features, outputs = computed(model, variables, x)
    self.assertEqual(features[32].shape[1], rows)
    parts = layers(variables)
    scores = fcn_head(aspp(features[32], parts['aspp'], rates), parts['head'])
    assert_close(outputs['logits'], stretched(scores, (37, 52)))
    (auxiliary,) = outputs['aux_logits']
    assert_close(auxiliary, stretched(fcn_head(features[16], parts['aux']), (37, 52)))

  def test_the_cascades_scores_are_block_7s(self):
    model, x = DeepLabV3(**SMALL, head='cascade', output_stride=64), images(1, 70, 90, 3)
    variables = random_like(shapes_of(model))
    features, outputs = computed(model, variables, x, extra_stages=3)
    self.assertEqual(features[256].shape[1:3], (2, 2))
    scores = conv(features[256], layers(variables)['score'])
    assert_close(outputs['logits'], stretched(scores, (70, 90)))

  @parameterized.parameters(
    # Without atrous convolution each block but the first halves the map; with it, the blocks behind
    # `output_stride` keep its size and double the rate (figure 3).
    (256, (128, 64, 32, 16, 8, 4, 2), (1, 1, 1, 1, 1, 1, 1)),
    (16, (128, 64, 32, 32, 32, 32, 32), (1, 1, 1, 2, 4, 8, 16)),
    (8, (128, 64, 64, 64, 64, 64, 64), (1, 1, 2, 4, 8, 16, 32)),
  )
  def test_going_deeper_has_the_strides_and_rates_of_figure_3(self, output_stride, rows, rates):
    fields = {'backbone': 'resnet50', 'head': 'cascade', 'output_stride': output_stride}
    seen = convolutions(DeepLabV3(**SMALL | fields), 512)
    for block, (row, rate) in enumerate(zip(rows, rates, strict=True), start=1):
      before = rates[max(block - 2, 0)]  # the unit that would stride keeps it
      for unit, expected in enumerate((before, rate, rate)):
        self.assertEqual(seen[f'backbone/layer{block}_{unit}/conv2'], (expected, row))

  def test_a_multi_grid_multiplies_the_rates_of_block_4_and_later(self):
    fields = {'backbone': 'resnet50', 'head': 'cascade', 'output_stride': 16}
    seen = convolutions(DeepLabV3(**SMALL | fields, multi_grid=(1, 2, 4)), 64)
    for block, rates in {3: (1, 1, 1), 4: (1, 4, 8), 5: (2, 8, 16), 7: (8, 32, 64)}.items():
      got = tuple(seen[f'backbone/layer{block}_{unit}/conv2'][0] for unit in range(3))
      self.assertEqual(got, rates, block)

  @parameterized.parameters('resnet18', 'mobilenet_v2', 'xception65', 'vgg16', 'alexnet')
  def test_any_backbone_gives_any_size_back(self, backbone):
    model = DeepLabV3(num_classes=3, backbone=backbone)
    x = jax.ShapeDtypeStruct((1, 65, 98, 4), jnp.float32)
    out = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x)[0], x)
    for logits in (out['logits'], *out['aux_logits']):
      self.assertEqual((logits.shape, logits.dtype), ((1, 65, 98, 3), jnp.float32))

  def test_a_single_picture_under_batch_norm_is_the_users_error(self):
    """Its mean would become 0 in training, whatever it was; elsewhere it does not."""
    with self.assertRaisesRegex(UserError, "model.norm is 'batch'.* data.batch_size.* 'group'"):
      trained_on(DeepLabV3(**SMALL), 1)
    trained_on(DeepLabV3(**SMALL), 2)
    for fields in ({'norm': 'group'}, {'norm': 'frozen_batch'}, {'head': 'cascade'}):
      trained_on(DeepLabV3(**SMALL | fields), 1)

  def test_a_frozen_backbone_keeps_its_statistics_beside_a_group_normalised_head(self):
    shapes = shapes_of(DeepLabV3(**SMALL, norm='group', frozen_backbone_norm=True))
    self.assertEqual(set(shapes['batch_stats']), {'backbone'})
    self.assertIn('branch0_norm', shapes['params']['aspp'])

  @parameterized.parameters(
    ({'head': 'asp'}, "model.head is 'asp'; did you mean 'aspp'"),
    ({'backbone': 'resnet5'}, "model.backbone is 'resnet5'; did you mean"),
    ({'output_stride': 64}, r'model.output_stride is 64; expected one of \(4, 8, 16, 32\)'),
    ({'output_stride': 512, 'head': 'cascade'}, r'output_stride is 512; .* 64, 128, 256\)'),
    ({'head': 'cascade', 'backbone': 'mobilenet_v2'}, "expected 'aspp' with mobilenet_v2"),
    ({'backbone': 'xception65', 'multi_grid': (1, 2, 4)}, 'model.multi_grid .* xception65 has no'),
    ({'padding': 'same'}, "model.padding is 'same', but resnet18 has no padding"),
    ({'norm': 'bach'}, 'model.norm'),
  )
  def test_what_cannot_be_built_is_the_users_error(self, fields, message):
    with self.assertRaisesRegex(UserError, message):
      shapes_of(DeepLabV3(**SMALL | fields))


if __name__ == '__main__':
  absltest.main()
