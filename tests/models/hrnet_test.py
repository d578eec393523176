import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from seg_jax.errors import UserError
from seg_jax.models.backbones import build_backbone
from seg_jax.models.hrnet import HRNet


def small(**fields):
  defaults = {'num_classes': 3, 'backbone_width': 0.25, 'modules': (1, 1, 1), 'units': 1}
  return HRNet(**defaults | {'norm': 'none'} | fields)


def images(*shape):
  return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def shapes_of(model):
  return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))['params']


def num_parameters(tree):
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def random_like(shapes):
  """Kernels and biases that keep the size of what goes through them."""
  rng = np.random.default_rng(1)

  def draw(leaf):
    scale = math.sqrt(1 / math.prod(leaf.shape[:-1])) if len(leaf.shape) > 1 else 0.1
    return jnp.asarray(scale * rng.normal(size=leaf.shape), jnp.float32)

  return jax.tree.map(draw, shapes)


def stretched(x, size):
  """Bilinear, with pixels as squares and the border repeated, one line after the other."""
  for axis, new in zip((1, 2), size, strict=True):
    old = x.shape[axis]
    places = (np.arange(new) + 0.5) * old / new - 0.5
    x = np.apply_along_axis(lambda line, at=places: np.interp(at, range(len(line)), line), axis, x)
  return x


def head(kind, features, params):
  """The paper's heads (figure 4) over the backbone's features, in NumPy."""

  def pixelwise(x, name):
    return x @ params[name]['kernel'][0, 0] + params[name]['bias']

  x = features[4]
  if kind == 'v2':
    x = np.concatenate([stretched(features[s], x.shape[1:3]) for s in (4, 8, 16, 32)], -1)
    x = np.maximum(pixelwise(x, 'mix_conv'), 0)
  return pixelwise(x, 'classifier')


class HRNetTest(parameterized.TestCase):
  def test_w48_has_the_papers_parameters(self):
    """HRNetV2-W48 has 65.9 M on Cityscapes, of which the head, by hand, has half a million."""
    model = HRNet(num_classes=19, backbone='hrnet_w48', head='v2')
    params = shapes_of(model)
    channels = 48 + 96 + 192 + 384
    by_hand = channels * channels + 2 * channels + 19 * (channels + 1)
    self.assertEqual(num_parameters({k: v for k, v in params.items() if k != 'backbone'}), by_hand)
    self.assertEqual(round(num_parameters(params) / 1e6, 1), 65.9)

  @parameterized.parameters('v1', 'v2')
  def test_the_head_equals_numpy(self, kind):
    model, x, size = small(head=kind), images(2, 71, 90, 3), (71, 90)
    params = random_like(shapes_of(model))
    backbone = build_backbone(
      'hrnet_w18', norm='none', width=4, modules=model.modules, units=model.units
    )

    @jax.jit
    def run(params, x):
      features = backbone.apply({'params': params['backbone']}, x)
      return features, model.apply({'params': params}, x)['logits']

    features, logits = run(params, x)
    params, features = jax.tree.map(lambda a: np.asarray(a, np.float64), (params, features))
    self.assertGreater(min(np.abs(y).max() for y in features.values()), 0.01)
    expected = stretched(head(kind, features, params), size)
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())

  @parameterized.parameters('v1', 'v2')
  @pytest.mark.slow
  def test_every_branch_reaches_the_logits(self, kind):
    """V1 by the last exchange alone, whose coarser results nothing reads."""
    model, x = small(head=kind), images(1, 64, 96, 3)
    params = random_like(shapes_of(model))
    gradient = jax.jit(jax.grad(lambda p: (model.apply({'params': p}, x)['logits'] ** 2).sum()))
    largest = jax.tree.map(lambda g: float(jnp.abs(g).max()), gradient(params))
    unread = 0
    for path, value in jax.tree_util.tree_leaves_with_path(largest):
      names = [key.key for key in path]
      coarser = 'stage4_0' in names and names[-2].startswith(('fuse1_', 'fuse2_', 'fuse3_'))
      if kind == 'v1' and coarser:
        unread += 1
        self.assertEqual(value, 0, names)
      else:
        self.assertGreater(value, 0, names)
    # Three convolutions to branch 1, four to branch 2 and six to branch 3, with biases.
    self.assertEqual(unread, 2 * (3 + 4 + 6) if kind == 'v1' else 0)

  @parameterized.product(kind=('v1', 'v2'), size=((33, 47), (64, 65), (7, 130)))
  def test_any_size_comes_back(self, kind, size):
    model, x = small(head=kind, norm='batch'), jnp.zeros((1, *size, 4))
    out, _ = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x), x)
    self.assertEqual((out['logits'].shape, out['logits'].dtype), ((1, *size, 3), jnp.float32))

  @parameterized.parameters(True, False)
  def test_a_frozen_backbones_statistics_stay(self, frozen):
    """Those of the head move."""
    model = small(norm='batch', frozen_backbone_norm=frozen)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))

    def trained(variables):
      _, state = model.apply(variables, jnp.zeros((2, 64, 64, 3)), True, mutable=['batch_stats'])
      return variables['batch_stats'], state['batch_stats']

    closed, (before, _) = jax.make_jaxpr(trained, return_shape=True)(shapes)
    # What is not computed is the very variable that came in.
    count = len(jax.tree.leaves(before))
    pairs = zip(closed.jaxpr.outvars[:count], closed.jaxpr.outvars[count:], strict=True)
    paths = [path[0].key for path, _ in jax.tree_util.tree_leaves_with_path(before)]
    moved = {path for path, (a, b) in zip(paths, pairs, strict=True) if a is not b}
    self.assertEqual(moved, {'mix_norm'} if frozen else {'mix_norm', 'backbone'})

  @parameterized.parameters(
    ({'head': 'v3'}, "model.head is 'v3'"),
    ({'backbone': 'resnet50'}, "model.backbone is 'resnet50'"),
    ({'backbone': 'hrnet_w19'}, 'did you mean'),
    ({'output_stride': 8}, 'model.output_stride is 8; expected 32'),
    ({'modules': (0, 1, 1)}, 'model.modules'),
    ({'norm': 'bach'}, 'model.norm'),
  )
  def test_what_cannot_be_built_is_the_users_error(self, fields, message):
    with self.assertRaisesRegex(UserError, message):
      shapes_of(small(**fields))


if __name__ == '__main__':
  absltest.main()
