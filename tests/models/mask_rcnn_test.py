"""Mask R-CNN beside torchvision's, whose operators are written in NumPy where it lacks them."""

import functools
from unittest import SkipTest, mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from seg_jax import detection_losses
from seg_jax.models.mask_rcnn import MaskRCNN, Objects
from seg_jax.ops import object_masks
from seg_jax.weights import convert, load, names
from tests.ops.nms_test import one_after_the_other
from tests.ops.roi_align_test import interpolated
from tests.weights import reference

THINGS, PROPOSALS, DETECTIONS = 4, 40, 10
SIZES = ((64, 96), (90, 70), (65, 131))
VERSIONS = {
  'maskrcnn_resnet50_fpn': {},
  'maskrcnn_resnet50_fpn_v2': {'proposal_convs': 2, 'box_convs': 4, 'head_norm': 'batch'},
}


def small(**fields):
  """Few things of few channels."""
  sizes = {'backbone': 'resnet18', 'backbone_width': 0.125, 'width': 8, 'box_features': 16}
  sizes |= {'anchor_scales': (8, 16, 32, 64, 128), 'proposals': (30, 20), 'detections': 6}
  return MaskRCNN(num_things=THINGS, **sizes | {'box_samples': 16} | fields)


def ours(name):
  return MaskRCNN(
    num_things=THINGS,
    proposals=(PROPOSALS, PROPOSALS),
    detections=DETECTIONS,
    **VERSIONS[name],
  )


def by_numpy(torch):
  """torchvision's operators `nms` and `roi_align`."""

  def nms(boxes, scores, threshold):
    kept = one_after_the_other(
      boxes.numpy(), scores.numpy(), np.ones(len(boxes), bool), threshold, np.zeros(len(boxes))
    )
    places = torch.from_numpy(np.flatnonzero(kept))
    return places[scores[places].argsort(descending=True, stable=True)]

  def roi_align(maps, boxes, output_size, spatial_scale, sampling_ratio, aligned=False):
    assert not aligned
    planes, size = maps.permute(0, 2, 3, 1).numpy(), output_size[0]
    cells = np.zeros((len(boxes), size, size, planes.shape[-1]), np.float32)
    for k, (picture, *corners) in enumerate(boxes.tolist()):
      x0, y0, x1, y1 = (spatial_scale * v for v in corners)
      height, width = max(y1 - y0, 1), max(x1 - x0, 1)
      count = size * sampling_ratio
      rows, columns = (
        first + length / count * (np.arange(count) + 0.5)
        for first, length in ((y0, height), (x0, width))
      )
      values = np.array([[interpolated(planes[int(picture)], y, x) for x in columns] for y in rows])
      cells[k] = values.reshape(size, sampling_ratio, size, sampling_ratio, -1).mean((1, 3))
    return torch.from_numpy(cells).permute(0, 3, 1, 2)

  return nms, roi_align


@functools.cache
def theirs(name):
  """torchvision's model with drawn weights, and its state."""
  try:
    import torch

    torchvision = reference._torchvision()
  except ImportError as error:
    raise SkipTest(f'{error.name} is not installed') from error
  model = torchvision.models.get_model(
    name,
    weights=None,
    weights_backbone=None,
    num_classes=THINGS + 1,
    image_mean=(0, 0, 0),
    image_std=(1, 1, 1),
    rpn_pre_nms_top_n_test=PROPOSALS,
    rpn_post_nms_top_n_test=PROPOSALS,
    box_detections_per_img=DETECTIONS,
  ).eval()
  state = {key: reference.drawn(key, tuple(x.shape)) for key, x in model.state_dict().items()}
  for key in state:  # scores that differ, boxes that do not fly apart
    if 'bbox_pred' in key or 'cls_score' in key:
      state[key] *= np.float32(0.03)
  model.load_state_dict({key: torch.from_numpy(x) for key, x in state.items()})
  return model, state


def our_variables(name, state):
  model = ours(name)
  image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), image)
  shapes = {path: x.shape for path, x in load.flat(shapes).items()}
  table = names.tables({'name': 'mask_rcnn', 'backbone': 'resnet50'} | VERSIONS[name])[0]
  arrays = {key: x for key, x in state.items() if 'num_batches' not in key}
  converted, homeless = convert.from_torch(arrays, table, shapes)
  assert not homeless, homeless
  assert {path: x.shape for path, x in converted.items()} == shapes
  back, nameless = convert.to_torch(converted, table)
  assert not nameless, nameless
  for key, array in state.items():
    np.testing.assert_array_equal(back[key], array, err_msg=key)
  return reference.nested(converted)


class ParityTest(parameterized.TestCase):
  @parameterized.parameters(*VERSIONS)
  @pytest.mark.slow
  def test_all_stages_are_torchvisions(self, name):
    """Pyramid, proposals' scores and deltas, and what is found, on pictures of three sizes."""
    model, state = theirs(name)
    import torch

    nms, roi_align = by_numpy(torch)
    torchvision = reference._torchvision()
    self.enterContext(mock.patch.object(torchvision.ops.boxes, 'nms', nms))
    self.enterContext(mock.patch.object(torchvision.ops.poolers, 'roi_align', roi_align))
    variables = our_variables(name, state)
    for size in SIZES:
      with self.subTest(size=size):
        self.check(ours(name), variables, model, size)

  def check(self, ours, variables, model, size):
    import torch

    image = np.random.default_rng(0).standard_normal((*size, 3), np.float32)
    model.transform.min_size, model.transform.max_size = (min(size),), max(size)
    seen = {}
    hooks = [
      part.register_forward_hook(lambda _, __, output, key=key: seen.update({key: output}))
      for key, part in (('pyramid', model.backbone), ('first', model.rpn.head))
    ]
    with torch.no_grad():
      (found,) = model([torch.from_numpy(image).permute(2, 0, 1)])
    for hook in hooks:
      hook.remove()

    parts = ('fpn', 'proposal_scores', 'proposal_deltas')
    run = functools.partial(
      ours.apply, capture_intermediates=lambda module, _: module.name in parts, mutable=[]
    )
    result, state = jax.device_get(jax.jit(run)(variables, image[None]))
    (maps,), logits, deltas = (state['intermediates'][part]['__call__'] for part in parts)
    for actual, expected in zip(maps.values(), seen['pyramid'].values(), strict=True):
      self.close(actual[0], expected[0].permute(1, 2, 0))
    for actual, expected in zip(logits, seen['first'][0], strict=True):
      self.close(actual[0], expected[0].permute(1, 2, 0))
    for actual, expected in zip(deltas, seen['first'][1], strict=True):
      self.close(actual[0], expected[0].permute(1, 2, 0))
    count = len(found['scores'])
    self.assertGreater(count, 2)
    self.assertEqual(result['found'][0].sum(), count)
    self.close(result['scores'][0, :count], found['scores'])
    np.testing.assert_array_equal(result['classes'][0, :count], found['labels'])
    self.close(result['boxes'][0, :count], found['boxes'][:, [1, 0, 3, 2]])
    pasted = object_masks.paste(result['masks'][0], result['boxes'][0], size)
    # A box whose edge rounds to another pixel has its mask a pixel off.
    off = np.abs(np.asarray(pasted)[:count] - found['masks'][:, 0].numpy()).mean((1, 2))
    self.assertLess(np.median(off), 1e-3)

  def close(self, actual, expected):
    expected = np.asarray(expected)
    self.assertEqual(actual.shape, expected.shape)
    self.assertLess(np.abs(actual - expected).max(), 1e-3 * np.abs(expected).max())

  def test_what_is_published_has_a_place(self):
    """The names in the first model's file, from before torchvision renamed some."""
    shapes = jax.eval_shape(
      ours('maskrcnn_resnet50_fpn').init, jax.random.key(0), jnp.zeros((1, 64, 64, 3))
    )
    table = names.tables({'name': 'mask_rcnn', 'backbone': 'resnet50'})[2]
    converted, nameless = convert.to_torch(reference.without_values(shapes), table)
    self.assertEmpty(nameless)
    self.assertContainsSubset(
      [
        'backbone.body.layer4.2.bn3.running_var',
        'backbone.fpn.inner_blocks.0.weight',
        'backbone.fpn.layer_blocks.3.bias',
        'rpn.head.conv.weight',
        'rpn.head.bbox_pred.weight',
        'roi_heads.box_head.fc7.bias',
        'roi_heads.mask_head.mask_fcn1.weight',
        'roi_heads.mask_head.mask_fcn4.bias',
        'roi_heads.mask_predictor.conv5_mask.weight',
      ],
      list(converted),
    )


class BoxesTest(parameterized.TestCase):
  @parameterized.parameters(8, 16, 32)
  def test_a_box_is_looked_at_where_it_is(self, output_stride):
    """In maps that hold the column of each of their cells, of a backbone of any stride."""
    maps = {}
    for stride in (4, 8, 16, 32):
      real = min(stride, output_stride)
      columns = real * np.arange(640 // real, dtype=np.float32)
      maps[stride] = np.broadcast_to(
        columns[None, None, :, None], (1, 640 // real, len(columns), 1)
      )
    boxes = np.float32([[[40, 20, 60, 40], [0, 60, 150, 200], [10, 90, 500, 600]]])
    cells = small()._look(maps, jnp.asarray(boxes), 7)
    middles = boxes[..., 1:2] + (boxes[..., 3:] - boxes[..., 1:2]) * (np.arange(7) + 0.5) / 7
    for row in range(7):
      np.testing.assert_allclose(cells[:, :, row, :, 0], middles, rtol=1e-4)

  def test_what_is_filled_up_behind_a_picture_changes_nothing(self):
    model, (height, width) = small(score_threshold=0.0), (50, 70)
    image = np.random.default_rng(0).standard_normal((1, height, width, 3), np.float32)
    variables = jax.jit(model.init)(jax.random.key(0), image)
    find = jax.jit(lambda image, sizes=None: model.apply(variables, image, sizes=sizes))
    alone = jax.device_get(find(image))
    padded = np.pad(image, ((0, 0), (0, 14), (0, 26), (0, 0)))  # as the model does for itself
    behind = find(padded, np.array([[height, width]]))
    self.assertGreater(alone['found'].sum(), 3)
    self.assertTrue((alone['boxes'][0, :, 2] == height).any())  # some are cut
    for name, array in alone.items():
      np.testing.assert_allclose(behind[name], array, rtol=1e-3, atol=1e-3, err_msg=name)


def scene():
  """Two pictures: squares of two classes, and a crowd; the second one has none."""
  image = np.random.default_rng(0).standard_normal((2, 64, 80, 3), np.float32) * np.float32(0.1)
  masks = np.zeros((2, 4, 64, 80), bool)
  boxes = np.zeros((2, 4, 4), np.float32)
  for k, (y0, x0, y1, x1) in enumerate([(4, 6, 30, 34), (32, 40, 60, 76), (10, 50, 11, 51)]):
    masks[0, k, y0:y1, x0:x1] = True
    boxes[0, k] = y0, x0, y1, x1
    image[0, y0:y1, x0:x1] += 1.0 + k
  flags = np.arange(4) < np.array([[3], [0]])
  classes = np.array([[1, 2, 1, 0], [0, 0, 0, 0]], np.int32)
  return image, Objects(boxes, classes, masks, np.zeros((2, 4), bool), flags)


class TrainingTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enterContext(jax.numpy_dtype_promotion('standard'))  # optax

  def terms(self, model):
    image, objects = scene()

    def losses(variables, image, objects):
      outputs, _ = model.apply(
        variables, image, True, objects, rngs={'sampling': jax.random.key(1)}, mutable='batch_stats'
      )
      return detection_losses.losses(outputs), outputs

    variables = jax.jit(model.init)(jax.random.key(0), image[:1])
    return variables, image, objects, losses

  def test_everything_is_learned_from(self):
    """Each term, and a gradient of every parameter."""
    variables, image, objects, losses = self.terms(small())

    def total(params):
      terms, outputs = losses(variables | {'params': params}, image, objects)
      return sum(terms.values()), (terms, outputs)

    (_, (terms, outputs)), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(
      variables['params']
    )
    self.assertEqual(set(terms), {'objectness', 'proposals', 'classes', 'boxes', 'masks'})
    for name, term in terms.items():
      self.assertTrue(np.isfinite(term) and term > 0, name)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
      self.assertTrue(np.isfinite(leaf).all() and np.any(leaf), jax.tree_util.keystr(path))
    # Objects' own boxes are among the proposals; a picture without any has none that is positive.
    self.assertGreaterEqual(outputs['box_positive'][0].sum(), 3)
    self.assertEqual(outputs['box_positive'][1].sum(), 0)
    self.assertGreater(outputs['box_negative'][1].sum(), 5)
    # The mask head sees positive boxes alone where there are some: these again and again.
    of = np.arange(4) % outputs['mask_positive'].sum(1)[0]
    targets = np.asarray(outputs['mask_targets'][0])
    self.assertTrue(targets.any((1, 2)).all())
    np.testing.assert_array_equal(targets, targets[of])

  def test_a_batch_without_objects_has_losses(self):
    variables, image, objects, losses = self.terms(small())
    nothing = objects._replace(valid=np.zeros_like(objects.valid))
    terms, _ = jax.jit(losses)(variables, image, nothing)
    for name, term in terms.items():
      self.assertEqual(bool(term == 0), name in ('proposals', 'boxes', 'masks'), name)

  def test_a_detector_alone(self):
    model = small(masks=False)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 33, 70, 3)))
    self.assertNotIn('mask_head', variables['params'])
    found = jax.eval_shape(model.apply, variables, jnp.zeros((2, 33, 70, 3)))
    self.assertEqual(found['boxes'].shape, (2, 6, 4))
    self.assertNotIn('masks', found)


if __name__ == '__main__':
  absltest.main()
