"""ApolloScape: the toolkit's real lane labels and tables, and small trees in the owners' layouts.

There are no real pictures, and no real labels of `scene`; these are made here.
"""

import re
import tempfile
from pathlib import Path

import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from configs.common import get_config
from seg_jax.data.datasets import apolloscape, open_dataset, recognise
from seg_jax.data.label_map import read_label
from seg_jax.errors import UserError

SHARED = Path(__file__).resolve().parents[4] / 'shared' / 'data' / 'apolloscape'
# The table of the scene's classes on the owners' page: id -> train id.
SCENE = {0: 255, 1: 255, 17: 0, 33: 1, 161: 1, 34: 2, 162: 2, 35: 3, 163: 3, 36: 4, 164: 4, 37: 5}
SCENE |= {165: 5, 38: 6, 166: 6, 39: 7, 167: 7, 40: 8, 168: 8, 49: 9, 50: 10, 65: 11, 66: 12}
SCENE |= {67: 13, 81: 14, 82: 15, 83: 16, 84: 17, 85: 18, 86: 19, 97: 20, 98: 255, 99: 255}
SCENE |= {100: 255, 113: 21, 255: 255}


class ApolloscapeTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.config = get_config('apolloscape').data
    self.config.dir = str(self.root)

  def open(self, split):
    return open_dataset(self.config, split, seed=0)

  def save(self, array, name):
    path = self.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)

  def save_record(self, images, labels, record, camera='Camera 5', mask=((17, 33), (161, 49))):
    stem = f'{record}/{camera}/170908_061502408_Camera_5'
    self.save(np.zeros((2, 2, 3), np.uint8), f'{images}/{stem}.jpg')
    self.save(np.array(mask, np.uint8), f'{labels}/{stem}_bin.png')
    return f'{images}/{stem}.jpg', f'{labels}/{stem}_bin.png'


class SceneTest(ApolloscapeTest):
  def save_record(self, record, road='road01_ins', **kwargs):
    return super().save_record(f'{road}/ColorImage', f'{road}/Label', record, **kwargs)

  def test_the_table_is_that_of_the_owners(self):
    info = apolloscape.INFOS['scene']
    self.assertEqual(apolloscape.LABELS['scene'].classes, SCENE)
    self.assertEqual(info.num_classes, 22)
    self.assertEqual((info.class_names[0], info.class_names[21]), ('sky', 'vegatation'))
    self.assertEqual(info.class_names[20], 'building')
    self.assertSequenceEqual(info.things, range(1, 9))
    colours = {'sky': (70, 130, 180), 'car': (0, 0, 142), 'road': (192, 128, 192)}
    for name, colour in colours.items():
      self.assertSequenceEqual(info.palette[info.class_names.index(name)].tolist(), colour)

  def test_records_are_split_where_there_are_no_lists(self):
    for record in range(1, 11):
      self.save_record(f'Record{record:03}')
    self.save_record('Record001', road='road02_seg')
    self.save_record('Record002', road='road02_seg')
    val = ['road01_ins/ColorImage/Record009', 'road01_ins/ColorImage/Record010']
    val.append('road02_seg/ColorImage/Record002')
    train, validation = self.open('train'), self.open('val')
    self.assertEqual([name.rsplit('/', 2)[0] for name in validation.names], val)
    self.assertLen(train, 9)
    self.assertEqual(recognise(self.root), 'apolloscape')
    np.testing.assert_array_equal(train[0]['label'], [[0, 1], [1, 9]])

  def test_a_road_of_one_record_is_for_training(self):
    self.save_record('Record001')
    self.assertLen(self.open('train'), 1)
    with self.assertRaisesRegex(UserError, "split 'val' .* is empty"):
      self.open('val')

  @parameterized.parameters('', 'image_lists/')
  def test_the_owners_lists_are_followed(self, folder):
    pairs = [self.save_record(f'Record{record:03}') for record in range(1, 7)]
    (self.root / folder).mkdir(exist_ok=True)
    for split, chosen in {'train': pairs[3:5], 'val': pairs[:3]}.items():
      text = ''.join(f'{image}\t{label}\n' for image, label in chosen)
      (self.root / f'{folder}road01_ins_{split}.lst').write_text(text)
    self.assertSequenceEqual(self.open('train').names, [pairs[3][0], pairs[4][0]])
    self.assertSequenceEqual(self.open('val').names, [image for image, _ in pairs[:3]])

  def test_what_is_wrong_with_a_list_is_told(self):
    image, label = self.save_record('Record001')
    listing = self.root / 'road01_ins_train.lst'
    listing.write_text(f'{image} {label}\n')
    with self.assertRaisesRegex(UserError, r'train.lst, line 1: .*with a tab between'):
      self.open('train')
    with self.assertRaisesRegex(UserError, 'road01_ins_val.lst: '):
      self.open('val')
    second = label.replace('_bin', '2_bin')
    listing.write_text(f'{image}\t{label}\n{image}\t{second}\n')
    with self.assertRaisesRegex(UserError, f'1 of the 4 files .*{Path(second).name}'):
      self.open('train')

  def test_objects_and_groups(self):
    mask = np.array([[33, 33, 33, 164], [33, 36, 164, 49]], np.uint8)
    ids = np.array([[33000, 33000, 33001, 7], [33001, 36000, 7, 255]], np.uint16)
    _, label = self.save_record('Record001', mask=mask)
    self.save(np.zeros((2, 4, 3), np.uint8), _)
    self.save(ids, label.replace('_bin', '_instanceIds'))
    self.save_record('Record001', road='road02_seg')  # without instances
    self.config.extras = ('instances',)
    source = self.open('train')
    self.assertLen(source, 1)
    record = source[0]
    classes = np.where(record['instances'] > 0, record['classes'][record['instances'] - 1], -1)
    crowd = np.where(record['instances'] > 0, record['is_crowd'][record['instances'] - 1], False)
    np.testing.assert_array_equal(classes, [[1, 1, 1, 4], [1, 4, 4, -1]])
    np.testing.assert_array_equal(crowd, [[0, 0, 0, 1], [0, 0, 1, 0]])
    self.assertLen(record['classes'], 4)  # two cars, a person, a group of persons
    self.assertNotEqual(record['instances'][0, 0], record['instances'][0, 2])
    self.assertEqual(record['instances'][0, 2], record['instances'][1, 0])

  def test_half_a_download_is_told(self):
    image, label = self.save_record('Record001')
    self.config.extras = ('instances',)
    with self.assertRaisesRegex(UserError, '1 of the 1 files .*_instanceIds.png'):
      self.open('train')
    self.save(np.zeros((1, 1), np.uint16), label.replace('_bin', '_instanceIds'))
    with self.assertRaisesRegex(UserError, r'_instanceIds.png: \(1, 1\) pixels; expected \(2, 2\)'):
      self.open('train')[0]
    self.config.extras = ()
    (self.root / image).rename(self.root / image.replace('Camera_5', 'Camera_6'))
    with self.assertRaisesRegex(UserError, '_bin.png: has no picture'):
      self.open('train')

  def test_what_is_wrong_with_the_folder_is_told(self):
    with self.assertRaisesRegex(UserError, r"not the folder of 'apolloscape'.*road\*/ColorImage"):
      self.open('train')
    self.save_record('Record001', mask=((17, 2), (17, 17)))
    with self.assertRaisesRegex(UserError, "no split 'test'"):
      self.open('test')
    with self.assertRaisesRegex(UserError, r'_bin.png: value 2 \(1 pixel\) not known'):
      self.open('train')[0]
    self.config.variant = 'lane'
    with self.assertRaisesRegex(UserError, 'of another data.variant'):
      self.open('train')


class LaneTest(ApolloscapeTest):
  def setUp(self):
    super().setUp()
    if not SHARED.is_dir():
      self.skipTest(f'{SHARED} is not there')
    self.config.variant = 'lane'

  def toolkit(self):
    """name, id, train id, is it ignored, colour, of each row of the toolkit's table."""
    number, text = r'\s*(\d+)\s*', r"\s*'([^']+)'\s*"
    row = rf'Label\({text},{number},{number},{text},{number},\s*\w+\s*,\s*(\w+)\s*,'
    row += rf'\s*\({number},{number},{number}\)'
    table = (SHARED / 'lane_segmentation/helpers/laneMarkDetection.py').read_text()
    for name, value, train_id, _, _, ignored, *colour in re.findall(row, table):
      yield name, int(value), int(train_id), ignored == 'True', list(map(int, colour))

  def test_the_table_is_that_of_the_toolkit(self):
    rows = list(self.toolkit())
    self.assertLen(rows, 38)
    classes = {value: train_id for _, value, train_id, _, _ in rows}
    self.assertEqual(apolloscape.LABELS['lane'].classes, classes)
    kept = sorted((train_id, name, colour) for name, _, train_id, _, colour in rows)[:36]
    info = apolloscape.INFOS['lane']
    self.assertSequenceEqual(info.class_names, [name for _, name, _ in kept])
    self.assertSequenceEqual(info.palette.tolist(), [colour for _, _, colour in kept])
    self.assertEqual((info.class_names[0], info.class_names[35]), ('void', 'om_n_n'))
    self.assertEqual(sum(row[3] and row[2] < 36 for row in rows), 18)  # as the docstring says

  def test_the_toolkits_labels_are_what_pillow_reads(self):
    paths = sorted((SHARED / 'lane_segmentation/test_eval_data/gt_dir').rglob('*_bin.png'))
    self.assertLen(paths, 6)
    train_ids = {value: train_id for _, value, train_id, _, _ in self.toolkit()}
    for path in paths:
      label = read_label(path, apolloscape.LABELS['lane'])
      values = np.bincount(np.asarray(Image.open(path)).ravel(), minlength=256)
      counts = np.zeros(256, int)
      for value in np.flatnonzero(values):
        counts[train_ids[value]] += values[value]
      np.testing.assert_array_equal(np.bincount(label.ravel(), minlength=256), counts)

  def test_the_tree_with_a_real_label(self):
    """A part of it, and a picture that is made."""
    path = next((SHARED / 'lane_segmentation/test_eval_data/gt_dir').rglob('*_bin.png'))
    mask = np.asarray(Image.open(path))[1400:1800, 1400:2000]
    images, labels = 'ColorImage_road02/ColorImage', 'Labels_road02/Label'
    name, _ = self.save_record(images, labels, 'Record001', mask=mask)
    self.save(np.zeros((*mask.shape, 3), np.uint8), name)
    self.save_record(images, labels, 'Record002', mask=np.full((2, 2), 249))
    self.save(np.zeros((2, 2, 3), np.uint8), f'{images}/Record003/Camera 5/unlabelled.jpg')
    train, val = self.open('train'), self.open('val')
    self.assertSequenceEqual(train.names, [name])
    self.assertLen(val, 1)
    train_ids = {value: train_id for _, value, train_id, _, _ in self.toolkit()}
    expected = np.vectorize(train_ids.get)(mask)
    self.assertGreater(len(np.unique(expected)), 2)
    np.testing.assert_array_equal(train[0]['label'], expected)
    np.testing.assert_array_equal(val[0]['label'], 255)
    self.assertEqual(recognise(self.root), 'apolloscape')
    self.config.extras = ('instances',)
    with self.assertRaisesRegex(UserError, "'apolloscape' has no 'instances'"):
      self.open('train')


if __name__ == '__main__':
  absltest.main()
