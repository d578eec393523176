"""Folders with JSON annotations: COCO's real sample, and files written here in both forms."""

import base64
import io
import json
import pickle
import tempfile
from pathlib import Path

import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image
from pycocotools.coco import COCO

from configs.common import get_config
from seg_jax.data.datasets import folder
from seg_jax.errors import UserError

SHARED = Path(__file__).resolve().parents[4] / 'shared' / 'data'
SQUARE = [[2, 3, 6, 3, 6, 8, 2, 8]]  # columns 2 to 5, rows 3 to 7
CORNER = [[0, 0, 4, 0, 4, 5, 0, 5]]  # columns 0 to 3, rows 0 to 4


def drawn(*boxes, fill=0):
  """[10, 12], with boxes (value, first row, last row, first column, last column) one on another."""
  label = np.full((10, 12), fill, np.uint8)
  for value, top, bottom, left, right in boxes:
    label[top : bottom + 1, left : right + 1] = value
  return label


class JsonTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.config = get_config('folder').data
    self.config.dir = str(self.root)
    self.config.extras = ('instances',)

  def write(self, path, content):
    path = self.root / path
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == '.json':
      path.write_text(content if isinstance(content, str) else json.dumps(content))
    elif path.suffix == '.txt':
      path.write_text(content)
    else:
      Image.new('RGB', content).save(path)

  def open(self, split='train'):
    return folder.open_split(self.config, split, seed=0)

  def read(self, split='train'):
    """The records of a split by the stem of their name."""
    source = pickle.loads(pickle.dumps(self.open(split)))
    return {Path(name).stem: source[i] for i, name in enumerate(source.names)}

  def assert_user_error(self, *says, split='train'):
    with self.assertRaises(UserError) as caught:
      list(self.open(split))
    for part in says:
      self.assertIn(str(part), str(caught.exception))


def coco(names=('x',), categories=(('car', 7), ('dog', 3)), annotations=None, **changes):
  """Annotations of pictures of 10 x 12; by default a car, and a crowd of dogs upon it."""
  if annotations is None:
    annotations = [
      {'id': 1, 'image_id': 0, 'category_id': 7, 'segmentation': SQUARE, 'iscrowd': 0},
      {'id': 2, 'image_id': 0, 'category_id': 3, 'segmentation': CORNER, 'iscrowd': 1},
    ]
  return {
    'images': [
      {'id': i, 'file_name': f'{name}.jpg', 'height': 10, 'width': 12}
      for i, name in enumerate(names)
    ],
    'categories': [{'id': number, 'name': name} for name, number in categories],
    'annotations': annotations,
  } | changes


class CocoTest(JsonTest):
  def write_one(self, **changes):
    self.write('images/x.jpg', (12, 10))
    self.write('splits/train.txt', 'x')
    self.write('annotations.json', coco(**changes))

  def test_the_real_sample_equals_pycocotools(self):
    root = SHARED / 'coco_instances'
    if not root.is_dir():
      self.skipTest(f'{root} is not there')
    self.config.dir = str(root)
    api = COCO(root / 'annotations.json')
    numbers = sorted(api.getCatIds())
    stems = set()
    for split in ('train', 'val'):
      source = self.open(split)
      self.assertEqual(source.info.class_names[0], 'background')
      self.assertEqual(
        source.info.class_names[1:], tuple(row['name'] for row in api.loadCats(numbers))
      )
      self.assertEqual(source.info.things, tuple(range(1, 81)))
      for name, record in zip(source.names, source, strict=True):
        stems.add(Path(name).stem)
        (image,) = (row for row in api.dataset['images'] if row['file_name'] == Path(name).name)
        label = np.zeros((image['height'], image['width']), np.uint8)
        rows = [row for row in api.dataset['annotations'] if row['image_id'] == image['id']]
        for k, row in enumerate(rows, 1):
          mask = api.annToMask(row).astype(bool)
          label[mask] = 1 + numbers.index(row['category_id'])
          ids = record['instances'].reshape(*label.shape, -1)
          np.testing.assert_array_equal((ids == k).any(-1), mask)
        np.testing.assert_array_equal(record['label'], label)
        self.assertEqual(record['is_crowd'].tolist(), [bool(row['iscrowd']) for row in rows])
        self.assertEqual(
          record['classes'].tolist(), [1 + numbers.index(row['category_id']) for row in rows]
        )
    self.assertLen(stems, 6)

  def test_later_objects_lie_on_top_and_classes_are_in_the_order_of_their_ids(self):
    self.write_one()
    source = self.open()
    self.assertEqual(source.info.class_names, ('background', 'dog', 'car'))
    self.assertEqual(source.info.things, (1, 2))
    record = self.read()['x']
    np.testing.assert_array_equal(record['label'], drawn((2, 3, 7, 2, 5), (1, 0, 4, 0, 3)))
    self.assertEqual(record['classes'].tolist(), [2, 1])
    self.assertEqual(record['is_crowd'].tolist(), [False, True])
    car = (record['instances'] == 1).any(-1)
    np.testing.assert_array_equal(car, drawn((1, 3, 7, 2, 5)))

  @parameterized.parameters(
    ('car\nbackground\ndog', ('car', 'background', 'dog'), 1, 0, 2, (0, 2)),
    ('dog, 9, 9, 9\ncar, 1, 2, 3', ('dog', 'car'), 255, 1, 0, (0, 1)),
  )
  def test_classes_txt_says_otherwise(self, classes, names, fill, car, dog, things):
    self.write_one()
    self.write('classes.txt', classes)
    source = self.open()
    self.assertEqual((source.info.class_names, source.info.things), (names, things))
    expected = drawn((car, 3, 7, 2, 5), (dog, 0, 4, 0, 3), fill=fill)
    np.testing.assert_array_equal(source[0]['label'], expected)

  def test_ignored_categories_are_no_class_and_no_object(self):
    self.write_one(categories=(('car', 7), ('ignore', 3)))
    self.assertEqual(self.open().info.class_names, ('background', 'car'))
    record = self.read()['x']
    np.testing.assert_array_equal(record['label'], drawn((1, 3, 7, 2, 5), (255, 0, 4, 0, 3)))
    self.assertEqual(record['classes'].tolist(), [1])

  def test_files_in_annotations_are_the_splits(self):
    for path in ('images/train/a b.jpg', 'images/val/ü.jpg'):
      self.write(path, (12, 10))
    self.write('annotations/instances_train.json', coco(['a b']))
    self.write('annotations/val.json', coco(['images/val/u\u0308'], annotations=[]))
    self.assertEqual(list(self.read('train')), ['a b'])
    (record,) = self.read('val').values()
    self.assertFalse(record['label'].any())
    self.assert_user_error("'test'", 'train, val', split='test')
    self.write('splits/train.txt', 'a b')
    self.assert_user_error(self.root / 'splits')

  def test_splits_share_their_categories_unless_classes_txt_joins_them(self):
    for path in ('images/train/a.jpg', 'images/val/b.jpg'):
      self.write(path, (12, 10))
    self.write('annotations/train.json', coco(['a']))
    self.write('annotations/val.json', coco(['b'], categories=(('car', 3), ('dog', 7))))
    self.assert_user_error(self.root / 'annotations/val.json', 'categories', 'train.json')
    self.write('classes.txt', 'background\ncar\ndog')
    (train,), (val,) = self.read('train').values(), self.read('val').values()
    np.testing.assert_array_equal(train['label'], drawn((1, 3, 7, 2, 5), (2, 0, 4, 0, 3)))
    np.testing.assert_array_equal(val['label'], drawn((2, 3, 7, 2, 5), (1, 0, 4, 0, 3)))

  def object_with(self, **changes):
    row = {'id': 5, 'image_id': 0, 'category_id': 7, 'segmentation': SQUARE}
    return [{key: value for key, value in (row | changes).items() if value is not None}]

  @parameterized.parameters(
    ({'category_id': 9}, 'category_id is 9', '3, 7'),
    ({'category_id': '7'}, "'category_id' is '7'", 'a whole number'),
    ({'image_id': 4}, 'image_id is 4'),
    ({'segmentation': None}, "'segmentation' is None", 'polygons'),
    ({'segmentation': []}, 'expected polygons'),
    ({'segmentation': [[1, 2, 3, 4]]}, '[1, 2, 3, 4]', 'three points'),
    ({'segmentation': [[1, 2, 3, 4, 5]]}, '[1, 2, 3, 4, 5]'),
    ({'segmentation': [[1, 2, 'x', 4, 5, 6]]}, "'x'"),
    ({'segmentation': {'counts': [5], 'size': [10, 12]}}, '5 pixels', '120'),
    ({'segmentation': {'counts': [120], 'size': [12, 10]}}, '[12, 10]'),
  )
  def test_a_bad_annotation_is_told_with_file_and_id(self, changes, *says):
    self.write_one(annotations=self.object_with(**changes))
    self.assert_user_error(f'{self.root / "annotations.json"}, annotation 5', *says)

  @parameterized.parameters(
    ({'images': [{'id': 0, 'file_name': 'y.jpg'}]}, "image 0 'y.jpg'", 'no such picture'),
    ({'images': [{'id': 0, 'file_name': 'x.jpg', 'height': 10}]}, "'width' is None"),
    (
      {'images': [{'id': 0, 'file_name': 'x.jpg', 'height': 10, 'width': 10**9}]},
      '10 x 1000000000 pixels',
    ),
    ({'images': [], 'annotations': []}, 'images/x.jpg', 'no entry'),
    ({'images': None}, "'images' is None", 'a list'),
    ({'categories': (('a', 1), ('b', 1))}, 'categories[1]', 'for the second time'),
    ({'categories': (('a', 1), ('a', 2))}, 'categories[1]', 'for the second time'),
    ({'categories': (), 'annotations': []}, "0 'categories'"),
    ({'annotations': [5]}, 'annotations[0]', "'id' is None"),
  )
  def test_a_bad_file_is_told(self, changes, *says):
    self.write_one(**changes)
    self.assert_user_error('annotations.json', *says)

  def test_a_picture_of_another_size_than_its_entry(self):
    self.write_one()
    self.write('images/x.jpg', (13, 10))
    self.assert_user_error('images/x.jpg', '10 x 13', '10 x 12')

  def test_no_json_and_no_annotations_at_all(self):
    self.write_one()
    self.write('annotations.json', '{"images": [')
    self.assert_user_error(self.root / 'annotations.json', 'expected JSON')
    (self.root / 'annotations.json').unlink()
    self.assert_user_error(self.root, 'masks/', 'annotations.json')

  def test_a_category_that_classes_txt_lacks_and_values_in_it(self):
    self.write_one()
    self.write('classes.txt', 'background\ncar')
    self.assert_user_error('annotation 2', "'dog' is not in classes.txt", 'background, ', 'car')
    self.write('classes.txt', 'background, 0\ncar, 5\ndog, 6')
    self.assert_user_error(self.root / 'classes.txt', 'no values')


def labelme(*shapes, **changes):
  return {'version': '5.5.0', 'shapes': list(shapes), 'imageHeight': 10, 'imageWidth': 12} | changes


def shape(label, kind, *points, **changes):
  return {'label': label, 'points': points, 'group_id': None, 'shape_type': kind} | changes


def png(mask):
  buffer = io.BytesIO()
  Image.fromarray(mask).save(buffer, 'PNG')
  return base64.b64encode(buffer.getvalue()).decode()


class LabelMeTest(JsonTest):
  def write_one(self, *shapes, size=(12, 10), **changes):
    self.write('images/x.jpg', size)
    self.write('images/x.json', labelme(*shapes, **changes))
    self.write('splits/train.txt', 'x')
    self.write('classes.txt', '__ignore__\n_background_\ncar\ndog')

  def label(self, *shapes, **changes):
    self.write_one(*shapes, **changes)
    return self.read()['x']['label']

  @parameterized.parameters(((1.5, 2.5), (6.2, 7)), ((6.2, 7), (1.5, 2.5)), ((1.5, 7), (6.2, 2.5)))
  def test_a_rectangle_holds_both_of_its_corners_from_whichever_it_was_drawn(self, *corners):
    label = self.label(shape('car', 'rectangle', *corners))
    np.testing.assert_array_equal(label, drawn((1, 2, 7, 1, 6)))

  @parameterized.parameters('polygon', None, '', 'oriented_rectangle')
  def test_a_polygon_holds_its_outline(self, kind):
    label = self.label(shape('car', kind, (2, 3), (6, 3), (6, 7), (2, 7)))
    np.testing.assert_array_equal(label, drawn((1, 3, 7, 2, 6)))

  def test_a_circle_is_its_centre_and_a_point_on_it(self):
    label = self.label(
      shape('dog', 'circle', (30, 25), (30, 10)), imageHeight=50, imageWidth=60, size=(60, 50)
    )
    y, x = np.mgrid[:50, :60]
    distance = np.hypot(y - 25, x - 30)
    self.assertTrue((label[distance < 14] == 2).all())
    self.assertFalse(label[distance > 16].any())

  @parameterized.parameters(np.uint8, bool)
  def test_a_mask_lies_between_its_points_and_may_leave_the_picture(self, dtype):
    patch = np.zeros((4, 3), bool)
    patch[1:, 1:] = True
    points = (1, 2), (3, 5)
    label = self.label(shape('car', 'mask', *points, mask=png(patch.astype(dtype))))
    np.testing.assert_array_equal(label, drawn((1, 3, 5, 2, 3)))
    points = (-2, 8), (0, 11)
    label = self.label(shape('car', 'mask', *points, mask=png(patch.astype(dtype))))
    np.testing.assert_array_equal(label, drawn((1, 9, 9, 0, 0)))

  def test_later_shapes_lie_on_top_groups_are_objects_and_what_is_ignored_is_not(self):
    shapes = [
      shape('car', 'rectangle', (0, 0), (3, 3), group_id=1),
      shape('dog', 'rectangle', (2, 2), (5, 5), group_id=1),
      shape('car', 'rectangle', (8, 8), (9, 9), group_id=1),
      shape('car', 'rectangle', (10, 0), (11, 1)),
      shape('car', 'rectangle', (10, 3), (11, 4)),
      shape('__ignore__', 'rectangle', (0, 8), (1, 9)),
      shape('_background_', 'rectangle', (0, 0), (0, 0)),
    ]
    self.write_one(*shapes)
    self.assertEqual(self.open().info.class_names, ('_background_', 'car', 'dog'))
    self.assertEqual(self.open().info.things, (1, 2))
    record = self.read()['x']
    boxes = [(1, 0, 3, 0, 3), (2, 2, 5, 2, 5), (1, 8, 9, 8, 9), (1, 0, 1, 10, 11)]
    boxes += [(1, 3, 4, 10, 11), (255, 8, 9, 0, 1), (0, 0, 0, 0, 0)]
    np.testing.assert_array_equal(record['label'], drawn(*boxes))
    self.assertEqual(record['classes'].tolist(), [1, 2, 1, 1])
    self.assertFalse(record['is_crowd'].any())
    first = (record['instances'] == 1).any(-1)
    np.testing.assert_array_equal(first, drawn((1, 0, 3, 0, 3), (1, 8, 9, 8, 9)))

  def test_json_files_may_lie_in_annotations_and_pictures_without_one_are_left_out(self):
    for name in ('a', 'b', 'c/d.e'):
      self.write(f'images/{name}.jpg', (12, 10))
    self.write('classes.txt', 'background\ncar')
    for name in ('a', 'c/d.e'):
      self.write(f'annotations/{name}.json', labelme(imageHeight=None, imageWidth=None))
    names = [*self.open('train').names, *self.open('val').names]
    self.assertEqual(sorted(names), ['images/a.jpg', 'images/c/d.e.jpg'])
    self.assertEqual(self.open()[0]['label'].shape, (10, 12))
    self.write('splits/train.txt', 'a\nb')
    self.assert_user_error('images/b.jpg', 'has no JSON file')
    self.write('annotations/z.json', labelme())
    self.assert_user_error(self.root / 'annotations/z.json', "no picture 'z'")
    (self.root / 'images/c').rename(self.root / 'images/d')
    for name in ('a', 'b'):
      (self.root / f'images/{name}.jpg').unlink()
    self.assert_user_error(self.root / 'annotations/a.json', 'LabelMe', 'same stem')

  def test_without_classes_txt_the_labels_are_told_with_their_counts(self):
    box = 'rectangle', (0, 0), (3, 3)
    self.write_one(shape('dog', *box), shape('car', *box), shape('dog', *box))
    (self.root / 'classes.txt').unlink()
    self.assert_user_error(
      self.root / 'classes.txt', "'dog' (2 shapes), 'car' (1 shapes)", '_background_'
    )

  @parameterized.parameters(
    (shape('cat', 'rectangle', (0, 0), (3, 3)), "'cat' is not in classes.txt", 'car, dog'),
    (shape('car', 'line', (0, 0), (3, 3)), "shape_type is 'line'", 'polygon, rectangle'),
    (shape('car', 'point', (0, 0)), "shape_type is 'point'"),
    (shape('car', 'polygon', (0, 0), (3, 3)), 'polygon of 2 points'),
    (shape('car', 'circle', (0, 0), (3, 3), (4, 4)), 'circle of 3 points', 'expected 2'),
    (shape('car', 'rectangle', (0, 0), (3, 'x')), 'two numbers'),
    (shape('car', 'rectangle', (0, 0), (3,)), 'two numbers'),
    (shape('car', 'rectangle', (0, 0), (1e9, 3)), '10 x 12 pixels', '1000000000.0'),
    (shape('car', 'rectangle', (0, 0), (float('nan'), 3)), '10 x 12 pixels'),
    (shape('car', 'mask', (0, 0), (3, 3)), "'mask' is None"),
    (shape('car', 'mask', (0, 0), (3, 3), mask='%%'), 'base64'),
    (shape('car', 'mask', (0, 0), (3, 3), mask='AAAA'), 'cannot be read'),
    (shape('car', 'mask', (0, 0), (3, 3), mask=png(np.ones((2, 2), bool))), '2 x 2'),
    ({'label': 'car', 'shape_type': 'polygon'}, "'points' is None"),
  )
  def test_a_bad_shape_is_told_with_file_and_number(self, bad, *says):
    self.write_one(shape('car', 'rectangle', (0, 0), (3, 3)), bad)
    self.assert_user_error(f"{self.root / 'images/x.json'}, shapes[1] '{bad['label']}'", *says)

  @parameterized.parameters(
    ({'shapes': None}, "'shapes' is None"),
    ({'shapes': [7]}, 'shapes[0]', "'label' is None"),
    ({'imageHeight': 11}, 'images/x.jpg', '10 x 12', '11 x 12'),
    ({'imageHeight': 0}, '0 x 12'),
    ({'imageHeight': '10'}, '10 x 12 pixels'),
  )
  def test_a_bad_file_is_told(self, changes, *says):
    self.write_one(**changes)
    self.assert_user_error('x.json', *says)


if __name__ == '__main__':
  absltest.main()
