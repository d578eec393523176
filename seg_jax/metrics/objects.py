"""Average precision of objects, as COCO measures it (Lin et al. 2014; cocodataset.org, evaluate).

The matching and the curves are pycocotools' own. It is given the pixels that detections and objects
share, which the device has counted, so no mask is encoded, kept or decoded: a picture leaves a
number for each pair of a detection and an object.
"""

import contextlib
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from pycocotools.cocoeval import COCOeval

KINDS = ('box', 'mask')


def result(
  pictures: Sequence[Mapping[str, np.ndarray]],
  kinds: Sequence[str],
  classes: Mapping[int, str],
) -> dict:
  """The measures of some pictures, in [0, 1]; None where there is no object to be found.

  Args:
    pictures: of each, of its D detections `scores` and `classes` [D], of its M objects
      `truth_classes`, `is_crowd` and, which says how large one is, `truth_mask_areas` [M]; for each
      of `kinds` KIND_areas [D], truth_KIND_areas [M] and what they share, KIND_shared [D, M].
    classes: the names of the things.

  Returns:
    For each of `kinds` KIND_ap, the mean over classes and over IoUs from 0.5 to 0.95, KIND_ap50 and
    KIND_ap75; KIND_ap_small, _medium and _large, of objects of up to 32² and 96² pixels and above;
    KIND_ar, the recall; and below `per_class` the KIND_ap and KIND_ap50 of each.
  """
  measures, per_class = {}, {name: {} for name in classes.values()}
  for kind in kinds:
    evaluator = _Evaluator(pictures, kind, list(classes))
    # [IoU, recall, class, area, detections], of all detections.
    of_area = evaluator.eval['precision'][..., -1]
    precision = of_area[..., 0]
    measures |= {
      f'{kind}_ap': _mean(precision),
      f'{kind}_ap50': _mean(precision[0]),
      f'{kind}_ap75': _mean(precision[5]),
      f'{kind}_ap_small': _mean(of_area[..., 1]),
      f'{kind}_ap_medium': _mean(of_area[..., 2]),
      f'{kind}_ap_large': _mean(of_area[..., 3]),
      f'{kind}_ar': _mean(evaluator.eval['recall'][:, :, 0, -1]),
    }
    for k, name in enumerate(classes.values()):
      per_class[name] |= {
        f'{kind}_ap': _mean(precision[:, :, k]),
        f'{kind}_ap50': _mean(precision[0, :, k]),
      }
  return measures | {'per_class': per_class}


def table(result: Mapping, kinds: Sequence[str]) -> str:
  """The AP of every class and their mean, in percent, for the terminal."""

  def cell(value):
    return f'{"-":>10}' if value is None else f'{100 * value:>10.2f}'

  columns = [f'{kind}_{name}' for kind in kinds for name in ('ap', 'ap50')]
  width = max(5, *map(len, result['per_class']))
  rule = '-' * (width + 10 * len(columns))
  lines = [' ' * width + ''.join(f'{column.replace("_", " "):>10}' for column in columns), rule]
  for name, row in result['per_class'].items():
    lines.append(f'{name:<{width}}' + ''.join(cell(row[column]) for column in columns))
  lines += [rule, f'{"mean":<{width}}' + ''.join(cell(result[column]) for column in columns)]
  return '\n'.join([*lines, f'{result["num_images"]} images'])


def _mean(values):
  known = values[values > -1]  # -1: there is nothing to be found
  return float(known.mean()) if len(known) else None


class _Evaluator(COCOeval):
  """pycocotools', with `pictures` in place of its own objects, and overlaps that are known."""

  def __init__(self, pictures, kind, classes):
    super().__init__(iouType='bbox' if kind == 'box' else 'segm')
    self._pictures, self._kind = pictures, kind
    self.params.imgIds, self.params.catIds = list(range(len(pictures))), classes
    # COCO judges the best hundred of each class; so does this, unless there may be more.
    self.params.maxDets = [max([100, *(len(picture['scores']) for picture in pictures)])]
    with contextlib.redirect_stdout(io.StringIO()):
      self.evaluate()
      self.accumulate()

  def _prepare(self):
    self._gts, self._dts = defaultdict(list), defaultdict(list)
    for number, picture in enumerate(self._pictures):
      of_truth = zip(
        picture['truth_classes'].tolist(),
        picture['truth_mask_areas'].tolist(),
        picture['is_crowd'].tolist(),
        strict=True,
      )
      for k, (category, area, crowd) in enumerate(of_truth):
        row = {'id': k + 1, 'row': k, 'area': area, 'iscrowd': int(crowd), 'ignore': int(crowd)}
        self._gts[number, category].append(row)
      found = zip(
        picture['classes'].tolist(),
        picture[f'{self._kind}_areas'].tolist(),
        picture['scores'].tolist(),
        strict=True,
      )
      for k, (category, area, score) in enumerate(found):
        row = {'id': k + 1, 'row': k, 'area': area, 'score': score}
        self._dts[number, category].append(row)
    self.evalImgs, self.eval = defaultdict(list), {}

  def computeIoU(self, number, category):
    objects, found = self._gts[number, category], self._dts[number, category]
    if not (objects and found):
      return []
    order = np.argsort([-row['score'] for row in found], kind='mergesort')
    rows = [found[k]['row'] for k in order[: self.params.maxDets[-1]]]
    return self._iou(self._pictures[number])[np.ix_(rows, [row['row'] for row in objects])]

  def _iou(self, picture):
    """[D, M], in 64 bits; with a crowd the share of the detection that lies in it."""
    shared, areas, of_truth = (
      picture[key.format(self._kind)].astype(np.float64)
      for key in ('{}_shared', '{}_areas', 'truth_{}_areas')
    )
    union = areas[:, None] + np.where(picture['is_crowd'], 0, of_truth - shared)
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
