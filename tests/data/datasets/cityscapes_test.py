"""One real picture, shrunk to 256 x 128; groups, disparity and cameras are written here."""

import json
import tempfile
from pathlib import Path

import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from configs.common import get_config
from seg_jax.data import instances
from seg_jax.data.datasets import cityscapes
from seg_jax.errors import UserError

SHARED = Path(__file__).resolve().parents[4] / 'shared' / 'data' / 'cityscapes_mmseg_256x128'
# The owners' table, `labels.py` of cityscapesScripts: name, id, train id, is an object, colour.
OFFICIAL = (
  ('road', 7, 0, False, (128, 64, 128)),
  ('sidewalk', 8, 1, False, (244, 35, 232)),
  ('building', 11, 2, False, (70, 70, 70)),
  ('wall', 12, 3, False, (102, 102, 156)),
  ('fence', 13, 4, False, (190, 153, 153)),
  ('pole', 17, 5, False, (153, 153, 153)),
  ('traffic light', 19, 6, False, (250, 170, 30)),
  ('traffic sign', 20, 7, False, (220, 220, 0)),
  ('vegetation', 21, 8, False, (107, 142, 35)),
  ('terrain', 22, 9, False, (152, 251, 152)),
  ('sky', 23, 10, False, (70, 130, 180)),
  ('person', 24, 11, True, (220, 20, 60)),
  ('rider', 25, 12, True, (255, 0, 0)),
  ('car', 26, 13, True, (0, 0, 142)),
  ('truck', 27, 14, True, (0, 0, 70)),
  ('bus', 28, 15, True, (0, 60, 100)),
  ('train', 31, 16, True, (0, 80, 100)),
  ('motorcycle', 32, 17, True, (0, 0, 230)),
  ('bicycle', 33, 18, True, (119, 11, 32)),
)


class CityscapesTest(parameterized.TestCase):
  def open(self, root, split='val', *extras):
    config = get_config('cityscapes').data
    config.dir, config.extras = str(root), extras
    return cityscapes.open_split(config, split, seed=0)

  def assert_user_error(self, function, *says):
    with self.assertRaises(UserError) as caught:
      function()
    self.assertNotIn('\n', str(caught.exception))
    for part in says:
      self.assertIn(str(part), str(caught.exception))

  def test_classes_are_those_of_the_owners(self):
    names, values, train_ids, things, colours = zip(*OFFICIAL, strict=True)
    self.assertEqual(cityscapes.INFO.class_names, names)
    self.assertEqual(cityscapes.INFO.palette.tolist(), [list(colour) for colour in colours])
    self.assertEqual(cityscapes.INFO.things, tuple(np.flatnonzero(things)))
    meaning = dict(zip(values, train_ids, strict=True))
    for value in range(34):
      self.assertEqual(cityscapes.LABELS.classes[value], meaning.get(value, 255))
    self.assertEqual(cityscapes.INFO.num_images, {'train': 2975, 'val': 500})


class RealFilesTest(CityscapesTest):
  def setUp(self):
    super().setUp()
    if not SHARED.is_dir():
      self.skipTest(f'{SHARED} is not there')

  def read(self, kind):
    stem = SHARED / 'gtFine/val/frankfurt/frankfurt_000000_000294_gtFine'
    return np.asarray(Image.open(f'{stem}_{kind}.png'))

  def test_labels_are_the_owners_train_ids(self):
    """The picture's ids and train ids were shrunk one by one, so not alike at the boundaries."""
    source = self.open(SHARED)
    self.assertEqual(
      source.names, ['leftImg8bit/val/frankfurt/frankfurt_000000_000294_leftImg8bit.png']
    )
    record = source[0]
    np.testing.assert_array_equal(record['image'], np.asarray(Image.open(SHARED / source.names[0])))
    self.assertEqual(set(record), {'image', 'label'})
    ids, train_ids = self.read('labelIds'), self.read('labelTrainIds')
    around = np.lib.stride_tricks.sliding_window_view(np.pad(ids, 2, 'edge'), (5, 5))
    inside = np.ptp(around, axis=(2, 3)) == 0
    np.testing.assert_array_equal(record['label'][inside], train_ids[inside])
    self.assertGreater(inside.mean(), 0.6)
    self.assertGreater((record['label'] == train_ids).mean(), 0.997)
    self.assertContainsSubset((1, 7, 8, 11, 20, 21, 23, 24, 26), ids[inside])
    counts = np.bincount(record['label'].ravel(), minlength=256)
    self.assertEqual(counts[:19].tolist(), [(ids == value).sum() for _, value, *_ in OFFICIAL])
    self.assertEqual(counts[255], np.isin(ids, (1, 2, 3, 4)).sum())

  def test_objects_are_those_of_the_ids(self):
    objects = instances.padded(self.open(SHARED, 'val', 'instances')[0], 10)
    ids = self.read('instanceIds')
    for row, value in enumerate((24000, 24001, 24002, 24003, 26000, 26001, 26002)):
      np.testing.assert_array_equal(objects['masks'][row], ids == value)
      self.assertEqual(objects['classes'][row], {24: 11, 26: 13}[value // 1000])
    self.assertEqual(objects['instance_valid'].tolist(), [True] * 7 + [False] * 3)
    self.assertFalse(objects['is_crowd'].any())


class WrittenFilesTest(CityscapesTest):
  def setUp(self):
    super().setUp()
    self.root = Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.stem = 'aachen_000000_000019'
    self.write('leftImg8bit', np.zeros((2, 4, 3), np.uint8))
    self.write('gtFine', np.full((2, 4), 7, np.uint8), '_labelIds')

  def path(self, kind, ending='', suffix='.png'):
    return self.root / kind / 'train/aachen' / f'{self.stem}_{kind}{ending}{suffix}'

  def write(self, kind, array, ending=''):
    path = self.path(kind, ending)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)

  def write_camera(self, camera):
    path = self.path('camera', suffix='.json')
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(camera if isinstance(camera, str) else json.dumps(camera))

  def test_an_id_of_a_thing_alone_is_a_group_and_the_rest_are_no_objects(self):
    ids = [
      [26000, 26, 7, 33],  # a car, cars, road, bicycles
      [29001, 24012, 1, 30],  # a caravan is not evaluated; a person; the ego vehicle; trailers
    ]
    self.write('gtFine', np.array(ids, np.uint16), '_instanceIds')
    record = self.open(self.root, 'train', 'instances')[0]
    self.assertEqual(record['instances'].tolist(), [[4, 1, 0, 2], [0, 3, 0, 0]])
    self.assertEqual(record['classes'].tolist(), [13, 18, 11, 13])
    self.assertEqual(record['is_crowd'].tolist(), [True, True, False, False])

  def test_depth_is_baseline_times_focal_length_over_disparity(self):
    # A disparity of (p - 1) / 256 pixels; 0.2 m * 2000 pixels = 400.
    stored = [[0, 1, 257, 25601], [2561, 129, 2, 65535]]
    expected = [[0, 0, 400, 4], [40, 800, 102400, 400 * 256 / 65534]]
    self.write('disparity', np.array(stored, np.uint16))
    self.write_camera(
      {
        'extrinsic': {'baseline': 0.2, 'pitch': 0.05, 'x': 1.7},
        'intrinsic': {'fx': 2000.0, 'fy': 2100.0, 'u0': 1090.0, 'v0': 510.0},
      }
    )
    record = self.open(self.root, 'train', 'depth')[0]
    self.assertEqual(record['depth'].dtype, np.float32)
    np.testing.assert_allclose(record['depth'], expected, rtol=1e-5)

  def test_a_camera_that_is_missing_or_no_camera(self):
    self.write('disparity', np.ones((2, 4), np.uint16))
    source = self.open(self.root, 'train', 'depth')
    path = self.path('camera', suffix='.json')
    self.assert_user_error(lambda: source[0], path, self.path('disparity'))
    for camera in ('{', '[]', '{"extrinsic": {"baseline": 1}}', '\0', {'intrinsic': 'fx'}):
      self.write_camera(camera)
      self.assert_user_error(lambda: source[0], path, 'expected the camera')

  def test_ids_and_disparity_in_colour_are_refused(self):
    for kind, ending, extra in (
      ('gtFine', '_instanceIds', 'instances'),
      ('disparity', '', 'depth'),
    ):
      self.write(kind, np.zeros((2, 4, 3), np.uint8), ending)
      source = self.open(self.root, 'train', extra)
      self.assert_user_error(lambda source=source: source[0], self.path(kind, ending), 'RGB')

  def test_train_ids_and_what_is_no_id_at_all_are_refused(self):
    for value in (34, 255):
      self.write('gtFine', np.full((2, 4), value, np.uint8), '_labelIds')
      source = self.open(self.root, 'train')
      self.assert_user_error(
        lambda source=source: source[0],
        self.path('gtFine', '_labelIds'),
        f'value {value} (8 pixels)',
        'expected 0 to 32 or 33',
      )

  def test_half_a_download_and_a_split_without_labels(self):
    self.assert_user_error(lambda: self.open(self.root, 'test'), "'test'", 'train, val')
    self.assert_user_error(
      lambda: self.open(self.root, 'val'), self.root / 'leftImg8bit/val', 'no such directory'
    )
    for extra, missing in (('instances', 'instanceIds'), ('depth', 'disparity')):
      self.assert_user_error(lambda extra=extra: self.open(self.root, 'train', extra), missing)
    self.path('leftImg8bit').with_stem('aachen_000001_000019_leftImg8bit').write_bytes(b'')
    self.assert_user_error(
      lambda: self.open(self.root, 'train'), 'has no mask', 'aachen_000001_000019_gtFine_labelIds'
    )


if __name__ == '__main__':
  absltest.main()
