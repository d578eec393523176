import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from experiments import study
from seg_jax.errors import UserError
from seg_jax.models.several_decoders import SeveralDecoders
from seg_jax.models.unet import UNet
from seg_jax.weights.load import flat

SMALL = {'num_classes': 5, 'width': 4, 'depth': 2}
BACKBONES = {'unet': {}, 'resnet18': {'backbone': 'resnet18', 'backbone_width': 1 / 16}}


def shapes(model, size=(20, 24)):
  x = jnp.zeros((1, *size, 3))
  return jax.eval_shape(lambda x: model.init(jax.random.key(0), x), x)


def num_parameters(tree):
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def cost(model, output, size=(64, 64)):
  """Multiply-adds of what has to be computed for one output, or for all."""

  def run(variables, x):
    outputs = model.apply(variables, x)
    return outputs[output] if output else outputs

  closed = jax.make_jaxpr(run)(shapes(model, size), jnp.zeros((1, *size, 3)))
  return study.multiply_adds(study.needed(closed.jaxpr))


class SeveralDecodersTest(parameterized.TestCase):
  @parameterized.product(name=list(BACKBONES), size=((33, 50), (64, 32)))
  def test_any_size_comes_back(self, name, size):
    model, x = SeveralDecoders(**SMALL, **BACKBONES[name]), jnp.zeros((2, *size, 3))
    outputs, _ = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x), x)
    self.assertEqual(outputs['logits'].shape, (2, *size, 5))
    self.assertEqual(outputs['depth'].shape, (2, *size))
    self.assertEqual({x.dtype for x in outputs.values()}, {jnp.dtype('float32')})

  def test_depth_is_above_zero(self):
    model = SeveralDecoders(**SMALL)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 33, 50, 3)), jnp.float32)
    outputs, _ = jax.jit(lambda x: model.init_with_output(jax.random.key(0), x))(images)
    self.assertGreater(float(outputs['depth'].min()), 0)
    self.assertLess(float(outputs['logits'].min()), 0)
    self.assertGreater(float(outputs['depth'].std()), 0.01)

  def test_has_the_parameters_of_one_path_down_and_two_up(self):
    """Counted layer by layer, without norm: 3x3 convolutions and 1x1 ones, all with bias."""
    widths = [3, 4, 8, 16]
    encoder = sum(
      (9 * narrow + 1) * wide + (9 * wide + 1) * wide for narrow, wide in itertools.pairwise(widths)
    )
    path = sum(
      (wide + 1) * narrow + (9 * 2 * narrow + 1) * narrow + (9 * narrow + 1) * narrow
      for narrow, wide in itertools.pairwise(widths[1:])
    )
    heads = (4 + 1) * 5 + (4 + 1) * 1
    tree = shapes(SeveralDecoders(**SMALL, norm='none', uncertainty=True))['params']
    self.assertEqual(num_parameters(tree), encoder + 2 * path + heads + 2)

  def test_the_encoder_has_the_layers_of_unet(self):
    """So a U-Net's run is one that the encoder may start from."""
    unet = flat(shapes(UNet(**SMALL)))
    mine = flat(shapes(SeveralDecoders(**SMALL)))
    theirs = {name: leaf.shape for name, leaf in unet.items() if '/up' not in name}
    del theirs['params/head/kernel'], theirs['params/head/bias']
    self.assertEqual(
      {name: leaf.shape for name, leaf in mine.items() if '_decoder/' not in name}, theirs
    )

  def test_one_decoder_costs_as_much_as_in_a_net_that_has_no_other(self):
    self.check_costs('unet')

  @pytest.mark.slow
  def test_and_so_it_does_on_a_resnet(self):
    self.check_costs('resnet18')

  def check_costs(self, name):
    """In multiply-adds of what is left when everything that nobody reads is taken out."""
    both = SeveralDecoders(**SMALL, **BACKBONES[name])
    costs = {}
    for decoder, output in (('semantic', 'logits'), ('depth', 'depth')):
      costs[decoder] = cost(both, output)
      self.assertEqual(costs[decoder], cost(both.clone(decoders=(decoder,)), None))
      self.assertLess(costs[decoder], cost(both, None))
    self.assertGreater(costs['semantic'], costs['depth'])  # by its head
    encoder = costs['semantic'] + costs['depth'] - cost(both, None)
    self.assertBetween(encoder, 1, min(costs.values()) - 1)

  def test_xla_leaves_the_other_decoder_out(self):
    both = SeveralDecoders(**SMALL)
    variables, x = shapes(both, (64, 64)), jnp.zeros((1, 64, 64, 3))

    def compiled(model, output):
      run = jax.jit(lambda variables, x: model.apply(variables, x)[output])
      return run.lower(shapes(model, (64, 64)), x).compile()

    flops = {
      decoders: compiled(both.clone(decoders=decoders), 'depth').cost_analysis()['flops']
      for decoders in (('semantic', 'depth'), ('depth',))
    }
    whole = jax.jit(both.apply).lower(variables, x).compile().cost_analysis()['flops']
    first, alone = flops.values()
    self.assertEqual(first, alone)
    self.assertLess(first, 0.8 * whole)

  @parameterized.parameters('logits', 'depth')
  def test_each_output_trains_the_encoder_every_skip_and_its_own_decoder_alone(self, output):
    self.check_training('unet', output)

  @parameterized.parameters('logits', 'depth')
  @pytest.mark.slow
  def test_and_so_it_does_those_of_a_resnet(self, output):
    self.check_training('resnet18', output)

  def check_training(self, name, output):
    model = SeveralDecoders(**SMALL, **BACKBONES[name], norm='group')
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 64, 64, 3)), jnp.float32)
    variables = jax.jit(lambda x: model.init(jax.random.key(0), x))(x)

    def loss(params):
      return jnp.sum(jnp.sin(3 * model.apply({'params': params}, x)[output]))

    gradients = flat(jax.jit(jax.grad(loss))(variables['params']))
    own, other = ('semantic', 'depth') if output == 'logits' else ('depth', 'semantic')
    for path, gradient in gradients.items():
      if path.startswith(f'{other}_decoder/'):
        np.testing.assert_array_equal(gradient, 0, path)
      else:
        self.assertGreater(float(jnp.abs(gradient).max()), 0, path)
    for stride in {'unet': (1, 2), 'resnet18': (2, 4, 8, 16)}[name]:
      kernel = gradients[f'{own}_decoder/up{stride}_conv1/kernel']
      skip = kernel[:, :, : kernel.shape[2] - SMALL['width'] * stride]
      self.assertGreater(float(jnp.abs(skip).max()), 0, f'skip {stride}')

  def test_log_variances_are_parameters_that_start_at_zero(self):
    model = SeveralDecoders(**SMALL, uncertainty=True)
    x = jnp.zeros((1, 16, 16, 3))
    variables = jax.jit(lambda x: model.init(jax.random.key(0), x))(x)
    params = dict(variables['params'])
    self.assertEqual((params['semantic_log_variance'], params['depth_log_variance']), (0, 0))
    params['depth_log_variance'] = jnp.float32(0.7)
    outputs = jax.jit(model.apply)({**variables, 'params': params}, x)
    self.assertEqual(outputs['log_variances'], {'semantic': 0, 'depth': jnp.float32(0.7)})
    without = jax.eval_shape(model.clone(uncertainty=False).apply, variables, x)
    self.assertNotIn('log_variances', without)

  @parameterized.parameters(
    ({'decoders': ('semantic', 'dept')}, "model.decoders has 'dept'; did you mean 'depth'"),
    ({'backbone': 'resnet19'}, "model.backbone is 'resnet19'; did you mean 'resnet1"),
    ({'backbone': 'une'}, "model.backbone is 'une'; did you mean 'unet'"),
    ({'backbone': 'vgg16', 'output_stride': 5}, 'model.output_stride is 5'),
  )
  def test_what_is_not_there_is_the_users_error(self, fields, message):
    with self.assertRaisesRegex(UserError, message):
      shapes(SeveralDecoders(**SMALL | fields))


if __name__ == '__main__':
  absltest.main()
