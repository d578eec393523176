"""Panoptic FPN's semantic branch beside PyTorch's layers; its objects are Mask R-CNN's."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from seg_jax.models.mask_rcnn import MaskRCNN, Objects
from seg_jax.models.panoptic_fpn import PanopticFPN, SemanticBranch

try:
  import torch
  from torch.nn import functional
except ImportError:
  torch = None

THINGS, STUFF = 4, 3
FIELDS = {
  'num_things': THINGS,
  'backbone': 'resnet18',
  'backbone_width': 0.125,
  'width': 8,
  'box_features': 16,
  'anchor_scales': (8, 16, 32, 64, 128),
  'proposals': (30, 20),
  'detections': 6,
  'box_samples': 16,
}


def small(**fields):
  return PanopticFPN(**FIELDS, num_stuff=STUFF, semantic_width=32, **fields)


def nothing(size):
  """Pictures' objects, of which there are none, as shapes."""
  shapes = {
    'boxes': ((1, 2, 4), jnp.float32),
    'classes': ((1, 2), jnp.int32),
    'masks': ((1, 2, *size), jnp.bool_),
    'is_crowd': ((1, 2), jnp.bool_),
    'valid': ((1, 2), jnp.bool_),
  }
  return Objects(**{name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()})


def drawn(tree, seed=0):
  """Values that keep a map's size, and for norms and biases others than training begins with."""
  rng = np.random.default_rng(seed)
  leaves, structure = jax.tree.flatten(tree)
  inputs = [np.float32(np.prod(x.shape[:-1])) for x in leaves]
  leaves = [
    rng.standard_normal(x.shape, np.float32) / np.sqrt(n)
    for x, n in zip(leaves, inputs, strict=True)
  ]
  return jax.tree.unflatten(structure, leaves)


def by_torch(params, maps):
  """[N, H, W, C] of maps by stride, as section 3 describes it."""

  def conv(x, layer, padding):
    kernel = torch.from_numpy(np.array(layer['kernel'])).permute(3, 2, 0, 1)
    bias = torch.from_numpy(np.array(layer['bias'])) if 'bias' in layer else None
    return functional.conv2d(x, kernel, bias, padding=padding)

  def up(x, factor):
    return functional.interpolate(x, scale_factor=factor, mode='bilinear')

  total = 0
  for stride, times in ((4, 0), (8, 1), (16, 2), (32, 3)):
    x = torch.from_numpy(np.array(maps[stride])).permute(0, 3, 1, 2)
    for i in range(max(times, 1)):
      x = conv(x, params[f'conv{stride}_{i}'], 1)
      scale, shift = (
        torch.from_numpy(np.array(params[f'norm{stride}_{i}'][key])) for key in ('scale', 'bias')
      )
      x = functional.relu(functional.group_norm(x, x.shape[1] // 16, scale, shift))
      x = up(x, 2) if times else x
    total = total + x
  return up(conv(total, params['classifier'], 0), 4).permute(0, 2, 3, 1).numpy()


class PanopticFPNTest(parameterized.TestCase):
  @parameterized.parameters(((33, 161), 32), ((97, 64), 16))
  def test_any_size_comes_back(self, size, output_stride):
    model = small(output_stride=output_stride)
    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    found = jax.eval_shape(model.apply, variables, image)
    self.assertEqual(found['logits'].shape, (1, *size, 1 + STUFF))
    self.assertEqual(found['logits'].dtype, jnp.float32)
    self.assertEqual(found['masks'].shape, (1, 6, 28, 28))

    def learn(variables, image, objects):
      rngs = {'sampling': jax.random.key(1)}
      return model.apply(variables, image, True, objects, rngs=rngs, mutable='batch_stats')

    learned, _ = jax.eval_shape(learn, variables, image, nothing(size))
    self.assertEqual(learned['logits'].shape, (1, *size, 1 + STUFF))
    self.assertEqual(learned['mask_logits'].shape, (1, 4, 28, 28))

  def test_parameters_are_those_of_any_output_stride(self):
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    coarse, fine = (
      jax.eval_shape(small(output_stride=stride).init, jax.random.key(0), image)
      for stride in (32, 8)
    )
    self.assertEqual(coarse, fine)

  def test_bfloat16_gives_float32(self):
    self.enterContext(jax.numpy_dtype_promotion('standard'))  # Flax's norms
    model = small(dtype=jnp.bfloat16)
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    found, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
    self.assertEqual(found['logits'].dtype, jnp.float32)
    for leaf in jax.tree.leaves(variables):
      self.assertEqual(leaf.dtype, jnp.float32)

  def test_finds_what_mask_rcnn_finds(self):
    """And its logits are the branch's on the same pyramid, without what fills the picture up."""
    image = np.random.default_rng(0).standard_normal((1, 33, 70, 3), np.float32)
    model = small()
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    params = drawn(shapes['params'])
    stats = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes['batch_stats'])

    @jax.jit
    def all_three(params, image):
      others = {name: layer for name, layer in params.items() if name != 'semantic'}
      found, state = model.apply(
        {'params': params, 'batch_stats': stats},
        image,
        capture_intermediates=lambda module, _: module.name == 'fpn',
        mutable='intermediates',
      )
      (maps,) = state['intermediates']['fpn']['__call__']
      branch = SemanticBranch(1 + STUFF, 32).apply({'params': params['semantic']}, maps)
      alone = MaskRCNN(**FIELDS).apply({'params': others, 'batch_stats': stats}, image)
      return found, branch, alone

    found, branch, expected = all_three(params, image)
    self.assertGreater(int(expected['found'].sum()), 0)
    logits = found.pop('logits')
    self.assertEqual(found.keys(), expected.keys())
    for name, values in expected.items():
      np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-4, err_msg=name)
    self.assertEqual(branch.shape, (1, 64, 96, 1 + STUFF))
    np.testing.assert_allclose(logits, branch[:, :33, :70], rtol=1e-4, atol=1e-4)


class SemanticBranchTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    self.maps = {
      stride: rng.standard_normal((2, 64 // stride, 96 // stride, 8), np.float32)
      for stride in (4, 8, 16, 32, 64)
    }
    self.branch = SemanticBranch(1 + STUFF, 32)
    shapes = jax.eval_shape(self.branch.init, jax.random.key(0), self.maps)
    self.params = drawn(shapes['params'])

  def test_equals_pytorch(self):
    if torch is None:
      self.skipTest('torch is not installed')
    logits = jax.jit(self.branch.apply)({'params': self.params}, self.maps)
    expected = by_torch(self.params, self.maps)
    self.assertEqual(logits.shape, expected.shape)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())

  def test_everything_is_learned_from(self):
    def loss(params, maps):
      logits = self.branch.apply({'params': params}, maps)
      return -jnp.mean(jax.nn.log_softmax(logits)[..., 1])

    for gradient in jax.jit(jax.grad(loss, (0, 1)))(self.params, self.maps):
      for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        name = jax.tree_util.keystr(path)
        self.assertTrue(np.isfinite(leaf).all(), name)
        self.assertEqual(bool(np.any(leaf)), name != '[64]', name)  # it looks at the first four


if __name__ == '__main__':
  absltest.main()
