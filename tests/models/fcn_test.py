import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from seg_jax.errors import UserError
from seg_jax.models.fcn import FCN
from seg_jax.ops.resizing import bilinear_kernel, resize_bilinear

HEADS = ('heatmap', '32s', '16s', '8s')


def small(**fields):
  return FCN(**{'num_classes': 3, 'width': 4, 'fc_features': 8, 'norm': 'none'} | fields)


def images(*shape):
  return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def shapes_of(model):
  return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))['params']


def random_like(shapes):
  """Kernels and biases that keep the size of what goes through them; quicker than `init`."""
  rng = np.random.default_rng(1)

  def draw(leaf):
    scale = math.sqrt(2 / math.prod(leaf.shape[:-1])) if len(leaf.shape) > 1 else 0.1
    return jnp.asarray(scale * rng.normal(size=leaf.shape), jnp.float32)

  return jax.tree.map(draw, shapes)


def fresh(model, names):
  """These layers alone as `init` makes them; under `jit` the others are never computed."""
  x = jnp.zeros((1, 32, 32, 3))

  @jax.jit
  def init(key):
    params = model.init(key, x)['params']
    return {name: params[name] for name in names}

  return init(jax.random.key(0))


def num_parameters(tree):
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


class FCNTest(parameterized.TestCase):
  @parameterized.parameters(
    # Table 1 of 2015: 134 M and 57 M; layer by layer, VGG16's convolutions have 14,714,688, fc6
    # 7 * 7 * 512 * 4096 + 4096, fc7 4096 * 4096 + 4096; AlexNet's 2,334,080, fc6 6 * 6 * 256 * 4096
    # + 4096; score_fr 4096 * 21 + 21.
    ('vgg16', '32s', 134_260_544 + 86_037),
    ('vgg16', 'heatmap', 134_260_544 + 86_037),
    # score_pool4 reads 512 channels, score_pool3 256; an upsampling is 4 * 4 * 21 * 21.
    ('vgg16', '16s', 134_260_544 + 86_037 + 10_773 + 7_056),
    ('vgg16', '8s', 134_260_544 + 86_037 + 10_773 + 5_397 + 2 * 7_056),
    ('alexnet', '32s', 2_334_080 + 37_752_832 + 16_781_312 + 86_037),
  )
  def test_has_the_papers_parameters(self, backbone, head, expected):
    shapes = shapes_of(FCN(num_classes=21, backbone=backbone, head=head, norm='none'))
    self.assertEqual(num_parameters(shapes), expected)
    published = {'vgg16': 134, 'alexnet': 57}[backbone]
    self.assertEqual(round(expected / 1e6), published)

  @parameterized.parameters(('vgg16', 404, 0.0), ('alexnet', 355, 2.5))
  def test_a_score_sees_the_papers_window_around_its_cell(self, backbone, window, aside):
    """Table 1 of 2015: receptive fields of 404 and 355 pixels."""
    model, cells, cell = small(backbone=backbone, head='32s'), 15, 7
    # Without biases and with positive kernels, a lone pixel shows wherever it is seen.
    ones = jax.tree_util.tree_map_with_path(
      lambda path, x: jnp.full(x.shape, 0.1 * (path[-1].key == 'kernel')), shapes_of(model)
    )
    first = int(32 * cell + 15.5 + aside - (window - 1) / 2)
    rows = np.array([first - 1, first, first + window - 1, first + window])
    x = jnp.zeros((4, 32 * cells, 32, 3)).at[jnp.arange(4), rows, 16].set(1.0)
    scores = jax.jit(lambda x: model.apply({'params': ones}, x, False, method='scores'))(x)
    self.assertEqual(scores.shape, (4, cells, 1, 3))
    self.assertEqual((scores[:, cell, 0, 0] > 0).tolist(), [False, True, True, False])

  @parameterized.parameters(*HEADS)
  def test_a_marked_cell_comes_out_in_its_place(self, head):
    """With kernels that hand the middle pixel on, the net pools and interpolates, no more."""
    model = small(head=head)

    def identity(path, x):
      layer, leaf = (key.key for key in path)
      if leaf == 'bias' or layer.startswith('score_pool'):
        return jnp.zeros(x.shape)
      if layer.startswith('up'):
        return bilinear_kernel(2, 3)
      middle = x.shape[0] // 2
      return jnp.zeros(x.shape).at[middle, middle].set(1 / x.shape[2])

    params = jax.tree_util.tree_map_with_path(identity, shapes_of(model))
    mark = np.zeros((1, 96, 128, 3), np.float32)
    mark[:, 32:64, 64:96] = 1  # the second cell down, the third across
    logits = jax.jit(model.apply)({'params': params}, mark)['logits'][0, ..., 0]
    if head == 'heatmap':
      np.testing.assert_allclose(logits, mark[0, ..., 0], atol=1e-6)
      return
    weights = np.asarray(logits, np.float64) / np.asarray(logits, np.float64).sum()
    rows, columns = np.indices(weights.shape)
    self.assertAlmostEqual((weights * rows).sum(), 47.5, places=3)
    self.assertAlmostEqual((weights * columns).sum(), 79.5, places=3)
    self.assertLess(logits[mark[0, ..., 0] == 0].max(), logits[47, 79])

  def test_a_heatmap_is_32s_before_interpolation(self):
    coarse, heatmap = small(head='32s'), small(head='heatmap')
    x = images(1, 64, 96, 3)
    variables = {'params': random_like(shapes_of(coarse))}
    scores = jax.jit(lambda v, x: coarse.apply(v, x, False, method='scores'))(variables, x)
    logits = jax.jit(heatmap.apply)(variables, x)['logits']
    np.testing.assert_array_equal(logits, np.asarray(scores).repeat(32, 1).repeat(32, 2))

  @parameterized.parameters(('32s', '16s'), ('16s', '8s'))
  def test_a_finer_head_starts_with_the_scores_of_the_coarser(self, coarser, finer):
    """Section 4.2: the net starts with unmodified predictions; so do the borders."""
    coarse, fine = small(head=coarser), small(head=finer)
    x = images(1, 64, 96, 3)
    start = random_like(shapes_of(coarse))
    new = fresh(fine, shapes_of(fine).keys() - start.keys())
    scores, doubled = (
      jax.jit(lambda p, m=m: m.apply({'params': p}, x, False, method='scores'))(p)
      for p, m in ((start, coarse), (start | new, fine))
    )
    height, width = scores.shape[1:3]
    expected = resize_bilinear(scores, (2 * height, 2 * width))
    self.assertGreater(float(jnp.std(expected)), 1e-3)
    np.testing.assert_allclose(doubled, expected, atol=1e-5 * float(jnp.abs(expected).max()))

  @parameterized.parameters((HEADS, 'vgg16'), (HEADS[:2], 'alexnet'))
  def test_every_head_gives_any_size_back(self, heads, backbone):
    for head in heads:
      for size in ((33, 47), (96, 32), (7, 130)):
        model = small(head=head, backbone=backbone)
        x = jnp.zeros((1, *size, 3))
        out = jax.eval_shape(lambda x, m=model: m.init_with_output(jax.random.key(0), x)[0], x)
        self.assertEqual(out['logits'].shape, (1, *size, 3))

  def test_dropout_follows_its_key_in_training_only(self):
    model = small(head='32s')
    x = images(1, 32, 32, 3)
    variables = {'params': random_like(shapes_of(model))}

    @functools.partial(jax.jit, static_argnums=1)
    def scores(seed, train):
      rngs = {'dropout': jax.random.key(seed)}
      return model.apply(variables, x, train, rngs=rngs, method='scores')

    self.assertGreater(float(jnp.abs(scores(1, True) - scores(2, True)).max()), 0)
    np.testing.assert_array_equal(scores(1, True), scores(1, True))
    np.testing.assert_array_equal(scores(1, False), scores(2, False))

  @parameterized.parameters(
    ({'head': '8'}, 'model.head'),
    ({'backbone': 'vgg'}, "model.backbone is 'vgg'; did you mean 'vgg16'"),
    ({'norm': 'bach'}, 'model.norm'),
    ({'backbone': 'alexnet', 'head': '8s'}, "model.head is '8s'; expected '32s' or 'heatmap'"),
    ({'backbone': 'alexnet', 'head': '32s', 'width': 6}, 'model.width is 6; expected a multiple'),
  )
  def test_what_cannot_be_built_is_the_users_error(self, fields, message):
    with self.assertRaisesRegex(UserError, message):
      jax.eval_shape(small(**fields).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


if __name__ == '__main__':
  absltest.main()
