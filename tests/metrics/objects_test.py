"""Average precision beside pycocotools' own, from JSON with encoded masks."""

import contextlib
import io
import json
import math
import os
import unittest
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from seg_jax.metrics import objects
from seg_jax.ops import boxes as box_ops
from seg_jax.ops import object_masks

SAMPLES = Path(__file__).parents[2].parent / 'shared/data/coco_instances/annotations.json'


def perturbed(truth, rng):
  """Objects moved, some of another class, some twice, some missing; and a few of nothing."""
  rows = []
  for mask, category, _ in truth:
    for _ in range(rng.integers(0, 3)):
      dy, dx = rng.integers(-3, 4, 2)
      moved = np.roll(mask, (dy, dx), (0, 1))
      other = rng.choice([category, category, category, rng.choice([c for _, c, _ in truth])])
      rows.append((moved, int(other), round(float(rng.random()), 1)))  # equal scores, too
  height, width = truth[0][0].shape
  for _ in range(3):
    nothing = np.zeros((height, width), bool)
    y, x = rng.integers(0, height - 12), rng.integers(0, width - 12)
    nothing[y : y + 12, x : x + 12] = True
    rows.append((nothing, int(truth[0][1]), float(rng.random())))
  return rows


def box_of(mask):
  (y,), (x,) = np.nonzero(mask.any(1)), np.nonzero(mask.any(0))
  return [int(v) for v in (y[0], x[0], y[-1] + 1, x[-1] + 1)] if len(y) else [0, 0, 0, 0]


def by_pycocotools(pictures, kind):
  """The 12 figures, by way of its own format."""
  images, annotations, results = [], [], []
  for number, (truth, found) in enumerate(pictures, 1):
    height, width = truth[0][0].shape
    images.append({'id': number, 'height': height, 'width': width})
    for mask, category, crowd in truth:
      annotations.append(
        row(mask, number, category) | {'id': len(annotations) + 1, 'iscrowd': crowd}
      )
    for mask, category, score in found:
      results.append(row(mask, number, category) | {'score': score})
      results[-1].pop('bbox' if kind == 'segm' else 'segmentation')
  categories = sorted({a['category_id'] for a in annotations})
  truth = COCO()
  truth.dataset = {
    'info': {},
    'images': images,
    'annotations': annotations,
    'categories': [{'id': c, 'name': str(c)} for c in categories],
  }
  with contextlib.redirect_stdout(io.StringIO()):
    truth.createIndex()
    evaluator = COCOeval(truth, truth.loadRes(results), kind)
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
  return evaluator, categories


def row(mask, number, category):
  y0, x0, y1, x1 = box_of(mask)
  encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
  return {
    'image_id': number,
    'category_id': category,
    'segmentation': encoded,
    'bbox': [x0, y0, x1 - x0, y1 - y0],
    'area': int(mask.sum()),
  }


def counted(truth, found):
  """What the task makes of one picture."""
  masks, known = (np.stack([r[0] for r in rows]) for rows in (found, truth))
  boxes, known_boxes = (
    jnp.array([box_of(mask) for mask in some], jnp.float32) for some in (masks, known)
  )
  shared, areas, of_truth = object_masks.overlaps(masks, known)
  counts = {
    'scores': [r[2] for r in found],
    'classes': [r[1] for r in found],
    'truth_classes': [r[1] for r in truth],
    'is_crowd': [bool(r[2]) for r in truth],
    'mask_shared': shared,
    'mask_areas': areas,
    'truth_mask_areas': of_truth,
    'box_shared': box_ops.intersection(boxes, known_boxes),
    'box_areas': box_ops.area(boxes),
    'truth_box_areas': box_ops.area(known_boxes),
  }
  return {key: np.asarray(value) for key, value in counts.items()}


def generated(seed):
  """Scenes of rectangles of three classes that overlap, a crowd in each."""
  rng, pictures = np.random.default_rng(seed), []
  for _ in range(6):
    truth = []
    for k in range(rng.integers(2, 7)):
      mask = np.zeros((70, 110), bool)
      y, x, h, w = rng.integers((0, 0, 4, 4), (50, 80, 60, 60))
      mask[y : y + h, x : x + w] = True
      truth.append((mask, int(rng.integers(1, 4)), int(k == 0)))
    pictures.append((truth, perturbed(truth, rng)))
  return pictures


def samples():
  if not SAMPLES.exists():
    raise unittest.SkipTest(f'{SAMPLES} is not there')
  with contextlib.redirect_stdout(io.StringIO()):
    data = COCO(os.fspath(SAMPLES))
  rng, pictures = np.random.default_rng(5), []
  for number in data.getImgIds():
    rows = data.loadAnns(data.getAnnIds(number))
    truth = [(data.annToMask(r) > 0, r['category_id'], r['iscrowd']) for r in rows]
    if truth:
      pictures.append((truth, perturbed(truth, rng)))
  return pictures


class AveragePrecisionTest(parameterized.TestCase):
  @parameterized.parameters(0, 1, 2)
  def test_equals_pycocotools(self, seed):
    self.check(generated(seed))

  def test_equals_pycocotools_on_objects_of_coco(self):
    self.check(samples())

  def check(self, pictures):
    counts = [counted(*picture) for picture in pictures]
    for kind, theirs in (('box', 'bbox'), ('mask', 'segm')):
      evaluator, categories = by_pycocotools(pictures, theirs)
      classes = {c: f'class {c}' for c in categories}
      measures = objects.result(counts, [kind], classes)
      names = ('ap', 'ap50', 'ap75', 'ap_small', 'ap_medium', 'ap_large')
      expected = dict(zip(names, evaluator.stats, strict=False)) | {'ar': evaluator.stats[8]}
      self.assertBetween(expected['ap50'], 0.02, 0.95)
      for name, value in expected.items():
        ours = measures[f'{kind}_{name}']
        self.assertAlmostEqual(-1 if ours is None else ours, value, places=7, msg=f'{kind} {name}')
      known = [
        row[f'{kind}_ap'] for row in measures['per_class'].values() if row[f'{kind}_ap'] is not None
      ]
      self.assertAlmostEqual(np.mean(known), evaluator.stats[0], places=7)

  def test_nothing_to_be_found_is_no_score(self):
    empty = np.zeros(0)
    keys = ('scores', 'classes', 'truth_classes', 'truth_mask_areas', 'is_crowd', 'box_areas')
    picture = dict.fromkeys(keys, empty)
    measures = objects.result([picture], ['box'], {1: 'a'})
    self.assertIsNone(measures['box_ap'])
    self.assertEqual(
      json.loads(json.dumps(measures))['per_class'], {'a': {'box_ap': None, 'box_ap50': None}}
    )
    self.assertFalse(any(isinstance(v, float) and math.isnan(v) for v in measures.values()))


if __name__ == '__main__':
  absltest.main()
