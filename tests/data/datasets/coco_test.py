"""Few real pictures and annotations, which each test links into a tree as COCO's owners have it.

Instances: 6 pictures with 35 polygons and a crowd; panoptic: 2 pictures with 50 segments.
"""

import itertools
import json
import os
import pickle
import tempfile
from pathlib import Path

import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image
from pycocotools.coco import COCO

from configs.common import get_config
from seg_jax.data import instances
from seg_jax.data.datasets import coco, open_dataset
from seg_jax.errors import UserError

SHARED = Path(__file__).resolve().parents[4] / 'shared' / 'data'
INSTANCES, PANOPTIC = SHARED / 'coco_instances', SHARED / 'coco_panoptic' / 'sample_data'


class CocoTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    for folder in (INSTANCES, PANOPTIC):
      if not folder.is_dir():
        self.skipTest(f'{folder} is not there')
    self.root = Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.json = self.root / 'annotations' / 'instances_val2017.json'
    self.config = get_config('coco').data
    self.config.dir = str(self.root)
    self.config.extras = ('instances',)

  def open(self, split='val'):
    return open_dataset(self.config, split, seed=0)

  def link(self, path, target):
    path.parent.mkdir(parents=True, exist_ok=True)
    os.symlink(target, path)

  def instances_tree(self, change=lambda content: None, images='val2017'):
    """The real tree; `change` is what to do to its JSON first."""
    content = json.loads((INSTANCES / 'annotations.json').read_text())
    change(content)
    for path in (INSTANCES / 'images').iterdir():
      self.link(self.root / images / path.name, path)
    self.json.parent.mkdir(exist_ok=True)
    self.json.write_text(json.dumps(content))

  def made_tree(self, segmentations, categories, crowds=None):
    """One picture, 12 x 16, with these objects."""
    (self.root / 'val2017').mkdir()
    (self.root / 'annotations').mkdir()
    Image.fromarray(np.zeros((12, 16, 3), np.uint8)).save(self.root / 'val2017' / '1.png')
    crowds = crowds or [0] * len(categories)
    annotations = [
      {'id': i, 'image_id': 1, 'category_id': category, 'iscrowd': crowd, 'segmentation': shape}
      for i, (shape, category, crowd) in enumerate(
        zip(segmentations, categories, crowds, strict=True)
      )
    ]
    image = {'id': 1, 'file_name': '1.png', 'height': 12, 'width': 16}
    content = {'images': [image], 'annotations': annotations, 'categories': []}
    self.json.write_text(json.dumps(content))

  def panoptic_tree(self, change=lambda content: None, maps='annotations/panoptic_val2017'):
    self.config.variant = 'panoptic'
    content = json.loads((PANOPTIC / 'panoptic_examples.json').read_text())
    change(content)
    for path in (PANOPTIC / 'input_images').iterdir():
      self.link(self.root / 'val2017' / path.name, path)
    for path in (PANOPTIC / 'panoptic_examples').iterdir():
      self.link(self.root / maps / path.name, path)
    (self.root / 'annotations').mkdir(exist_ok=True)
    (self.root / 'annotations' / 'panoptic_val2017.json').write_text(json.dumps(content))

  def test_classes_are_those_of_the_owners(self):
    owners = json.loads((SHARED / 'coco_panoptic' / 'panoptic_coco_categories.json').read_text())
    panoptic, things = coco.INFOS['panoptic'], coco.INFOS['instances']
    self.assertEqual(panoptic.class_names, tuple(row['name'] for row in owners))
    self.assertEqual(panoptic.palette.tolist(), [row['color'] for row in owners])
    self.assertEqual(panoptic.things, tuple(i for i in range(133) if owners[i]['isthing']))
    self.assertEqual(
      coco.LABELS['panoptic'].classes, {0: 255} | {row['id']: i for i, row in enumerate(owners)}
    )
    listed = json.loads((INSTANCES / 'annotations.json').read_text())['categories']
    self.assertEqual(things.class_names, ('background', *(row['name'] for row in listed)))
    self.assertEqual(
      coco.LABELS['instances'].classes,
      {0: 0, 255: 255} | {row['id']: i for i, row in enumerate(listed, 1)},
    )
    self.assertEqual((things.num_classes, panoptic.num_classes), (81, 133))
    self.assertEqual(
      (things.class_names[80], panoptic.class_names[132]), ('toothbrush', 'rug-merged')
    )
    self.assertEqual(things.palette[1].tolist(), [220, 20, 60])
    self.assertEqual(things.palette[80].tolist(), panoptic.palette[79].tolist())
    self.assertEqual(things.things, tuple(range(1, 81)))
    self.assertEqual(things.num_images, {'train': 118287, 'val': 5000})

  @parameterized.parameters('val2017', 'images/val2017')
  def test_objects_are_those_of_cocos_own_reader(self, images):
    self.instances_tree(images=images)
    source, reference = self.open(), COCO(INSTANCES / 'annotations.json')
    self.assertLen(source, 6)
    self.assertEqual(source.names, sorted(source.names))
    class_of = {row['id']: i for i, row in enumerate(reference.dataset['categories'], 1)}
    number_of = {row['file_name']: row['id'] for row in reference.dataset['images']}
    seen, crowds, disputed = 0, 0, 0
    for i, name in enumerate(source.names):
      record = source[i]
      np.testing.assert_array_equal(record['image'], Image.open(self.root / name).convert('RGB'))
      annotations = reference.imgToAnns[number_of[Path(name).name]]
      self.assertEqual(
        record['classes'].tolist(), [class_of[row['category_id']] for row in annotations]
      )
      self.assertEqual(record['is_crowd'].tolist(), [bool(row['iscrowd']) for row in annotations])
      size = record['image'].shape[:2]
      masks = [reference.annToMask(row) for row in annotations]
      layers = record['instances'].reshape(*size, -1)
      for k, mask in enumerate(masks, 1):
        np.testing.assert_array_equal((layers == k).any(-1), mask)
      label = self.semantic(size, masks, record['classes'])
      np.testing.assert_array_equal(record['label'], label)
      seen, crowds = seen + len(masks), crowds + record['is_crowd'].sum()
      disputed += (label == 255).sum()
    self.assertGreater(disputed, 0)
    self.assertEqual((seen, crowds), (36, 1))

  def semantic(self, size, masks, classes):
    """By the number of classes at each pixel, one channel a class."""
    here = np.zeros((*size, 81), bool)
    for mask, k in zip(masks, classes, strict=True):
      here[..., k] |= mask.astype(bool)
    count = here.sum(-1)
    return np.select([count == 0, count == 1], [0, here.argmax(-1)], 255)

  def test_overlapping_objects_keep_both_masks_and_disputed_pixels_are_ignored(self):
    def box(x0, y0, x1, y1):
      return [[x0, y0, x1, y0, x1, y1, x0, y1]]

    crowd = {'size': [12, 16], 'counts': [12 * 15, 12]}  # the last column
    shapes = [box(1, 1, 7, 7), box(5, 5, 11, 11), box(1, 1, 4, 4), crowd]
    self.made_tree(shapes, [1, 90, 1, 1], [0, 0, 0, 1])
    record = self.open()[0]
    masks = np.zeros((4, 12, 16), bool)
    masks[0, 1:7, 1:7] = masks[1, 5:11, 5:11] = masks[2, 1:4, 1:4] = masks[3, :, 15] = True
    expected = np.where(masks[[0, 2, 3]].any(0), 1, 0) + np.where(masks[1], 80, 0)
    expected[5:7, 5:7] = 255
    np.testing.assert_array_equal(record['label'], expected)
    padded = instances.padded(record, 6)
    np.testing.assert_array_equal(padded['masks'][:4], masks)
    self.assertEqual(padded['classes'].tolist(), [1, 80, 1, 1, 0, 0])
    self.assertEqual(padded['is_crowd'].tolist(), [False] * 3 + [True] + [False] * 2)
    self.assertEqual(padded['boxes'][1].tolist(), [5, 5, 11, 11])

  def test_a_picture_without_annotations_is_all_background(self):
    def forget_one(content):
      number = next(row['id'] for row in content['images'] if row['file_name'].endswith('089.jpg'))
      content['annotations'] = [r for r in content['annotations'] if r['image_id'] != number]

    self.instances_tree(forget_one)
    source = self.open()
    self.assertLen(source, 6)
    record = source[source.names.index('val2017/000000000089.jpg')]
    self.assertFalse(record['label'].any())
    self.assertFalse(record['instances'].any())
    self.assertEqual(record['classes'].shape, (0,))

  def test_workers_get_all_of_it_in_little(self):
    self.instances_tree()
    self.config.cache_gib = 0.0
    source = self.open()
    pickled = pickle.dumps(source)
    self.assertLess(len(pickled), self.json.stat().st_size / 2)
    again = pickle.loads(pickled)
    for key, array in source[3].items():
      np.testing.assert_array_equal(again[3][key], array)

  @parameterized.parameters('annotations/panoptic_val2017', 'panoptic_val2017')
  def test_segments_have_the_areas_and_categories_of_the_json(self, maps):
    self.panoptic_tree(maps=maps)
    source = self.open()
    content = json.loads((PANOPTIC / 'panoptic_examples.json').read_text())
    names = [row['name'] for row in content['categories']]
    ids = [row['id'] for row in content['categories']]
    self.assertLen(source, 2)
    for annotation in content['annotations']:
      name = f'val2017/{Path(annotation["file_name"]).stem}.jpg'
      record = source[source.names.index(name)]
      rgb = np.array(Image.open(PANOPTIC / 'panoptic_examples' / annotation['file_name']), int)
      pixels = rgb @ [1, 256, 256**2]
      counts = dict(zip(*np.unique(pixels, return_counts=True), strict=True))
      expected, things = np.full(pixels.shape, 255), {}
      for row in annotation['segments_info']:
        self.assertEqual(counts[row['id']], row['area'])
        expected[pixels == row['id']] = ids.index(row['category_id'])
        if content['categories'][ids.index(row['category_id'])]['isthing']:
          things[row['id']] = row
      np.testing.assert_array_equal(record['label'], expected)
      self.assertGreater((record['label'] == 255).sum(), 0)
      self.assertLen(record['classes'], len(things))
      for k in range(1, len(things) + 1):
        (number,) = np.unique(pixels[record['instances'] == k])
        row = things[number]
        self.assertEqual((record['instances'] == k).sum(), row['area'])
        self.assertEqual(record['classes'][k - 1], ids.index(row['category_id']))
        self.assertEqual(record['is_crowd'][k - 1], row['iscrowd'])
    self.assertEqual(names[int(record['label'][-1, 0])], 'grass-merged')

  def test_split_without_labels_is_none(self):
    self.instances_tree()
    with self.assertRaisesRegex(UserError, "no split 'test'; expected one of train, val"):
      self.open('test')
    with self.assertRaisesRegex(UserError, 'instances_train2017.json: cannot be read'):
      self.open('train')

  def test_wrong_folders_are_told(self):
    self.config.variant = 'panoptic'
    self.instances_tree()
    with self.assertRaisesRegex(UserError, 'data.dir: .*expected annotations/panoptic_.*2017.json'):
      self.open()
    self.config.variant = 'instance'
    with self.assertRaisesRegex(UserError, "'coco' has no 'instance'; did you mean 'instances'"):
      self.open()

  def test_half_a_download_is_noticed(self):
    self.instances_tree()
    (self.root / 'val2017' / '000000000089.jpg').unlink()
    with self.assertRaisesRegex(
      UserError, '1 of the 6 files of .*val2017.json are missing.*089.jpg'
    ):
      self.open()
    for path in list((self.root / 'val2017').iterdir()):
      path.unlink()
    (self.root / 'val2017').rmdir()
    with self.assertRaisesRegex(UserError, 'has no val2017'):
      self.open()

  def test_panoptic_maps_that_are_not_there_are_noticed(self):
    self.panoptic_tree()
    maps = self.root / 'annotations' / 'panoptic_val2017'
    (maps / '000000142238.png').unlink()
    with self.assertRaisesRegex(UserError, '1 of the 2 files .* missing, such as 000000142238.png'):
      self.open()
    maps.rename(maps.with_name('elsewhere'))
    with self.assertRaisesRegex(UserError, 'panoptic_val2017: no such directory; .*2017.zip'):
      self.open()

  @parameterized.named_parameters(
    ('no list', lambda c: c.pop('annotations'), ": 'annotations' is None; expected a list"),
    ('image id', lambda c: c['images'][2].pop('id'), r"images\[2\]: 'id' is None"),
    ('image twice', lambda c: c['images'].append(c['images'][0]), 'an id of its own'),
    ('no name', lambda c: c['images'][2].update(file_name='../a.jpg'), "expected .* a file's name"),
    (
      'no size',
      lambda c: c['images'][2].update(height=0),
      r'images\[2\]: 0 x .* expected the size',
    ),
    (
      'image',
      lambda c: c['annotations'][3].update(image_id=7),
      r'annotations\[3\]: image_id 7; expected one of the 6',
    ),
    (
      'category',
      lambda c: c['annotations'][3].update(category_id=12),
      r'\[3\]: category_id 12; expected one of the 80',
    ),
    ('no crowd', lambda c: c['annotations'][3].pop('iscrowd'), "'iscrowd' is None"),
    ('shape', lambda c: c['annotations'][3].update(segmentation='x'), 'polygons or runs'),
    ('annotation', lambda c: c['annotations'].append(5), "'image_id' is None"),
    ('other', lambda c: c['categories'][4].update(name='owl'), "5 is 'owl'; .* own, airplane"),
    ('more', lambda c: c['categories'].append({'id': 91, 'name': 'owl'}), '91 is .* no such'),
  )
  def test_errors_in_the_json_are_told(self, change, message):
    self.instances_tree(change)
    with self.assertRaisesRegex(UserError, rf'instances_val2017.json.*{message}'):
      self.open()

  @parameterized.parameters('', '{"images": [', '[1, 2]', '\x00\xff')
  def test_what_is_no_json_of_coco_is_told(self, text):
    self.instances_tree()
    self.json.write_text(text, 'latin-1')
    with self.assertRaisesRegex(UserError, 'instances_val2017.json.*expected'):
      self.open()

  @parameterized.named_parameters(
    ('two points', [[1, 2, 3, 4]], 'three points or more'),
    ('empty', [], 'expected polygons'),
    ('of another size', {'size': [16, 12], 'counts': [192]}, r'expected \[12, 16\]'),
    ('short', {'size': [12, 16], 'counts': [5]}, 'of 5 pixels; expected 192'),
  )
  def test_a_malformed_segmentation_is_told_with_its_annotation(self, segmentation, message):
    self.made_tree([[[0, 0, 5, 0, 5, 5]], segmentation], [1, 2])
    source = self.open()
    with self.assertRaisesRegex(UserError, f'val2017.json: annotation 1: .*{message}'):
      source[0]

  def test_a_size_that_is_not_the_pictures_is_told(self):
    self.made_tree([], [])
    self.json.write_text(self.json.read_text().replace('"height": 12', '"height": 13'))
    with self.assertRaisesRegex(UserError, '1.png has 12 x 16 .*val2017.json 13 x 16'):
      self.open()[0]

  @parameterized.named_parameters(
    ('unknown', lambda rows: rows.pop(3), '4325578 is not in segments_info'),
    (
      'absent',
      lambda rows: rows.append({'id': 77, 'category_id': 1, 'iscrowd': 0}),
      'no pixel of segment 77',
    ),
  )
  def test_segments_of_map_and_json_have_to_be_the_same(self, change, message):
    self.panoptic_tree(lambda content: change(content['annotations'][0]['segments_info']))
    source = self.open()
    index = source.names.index('val2017/000000142238.jpg')
    with self.assertRaisesRegex(UserError, f'000000142238.png: .*{message}'):
      source[index]

  @parameterized.named_parameters(
    (
      'no segments',
      lambda c: c['annotations'][0].pop('segments_info'),
      "'segments_info' is None; expected a list",
    ),
    ('none', lambda c: c['annotations'].pop(), 'image 439180 has no annotation'),
    ('twice', lambda c: c['annotations'].append(c['annotations'][0]), 'has two annotations'),
    (
      'image',
      lambda c: c['annotations'][0].update(image_id=7),
      'image_id 7; expected one of the 2',
    ),
    (
      'category',
      lambda c: c['annotations'][0]['segments_info'][0].update(category_id=183),
      r'segments_info\[0\]: category_id 183; expected one of the 133',
    ),
    (
      'same id',
      lambda c: c['annotations'][0]['segments_info'][0].update(id=4260062),
      'id 4260062; expected one of its own',
    ),
    ('id', lambda c: c['annotations'][0]['segments_info'][0].update(id=2**24), 'to 16777215'),
  )
  def test_errors_in_the_panoptic_json_are_told(self, change, message):
    self.panoptic_tree(change)
    with self.assertRaisesRegex(UserError, rf'panoptic_val2017.json.*{message}'):
      self.open()

  def test_a_grey_map_is_told(self):
    self.panoptic_tree()
    path = self.root / 'annotations' / 'panoptic_val2017' / '000000142238.png'
    path.unlink()
    Image.fromarray(np.zeros((427, 640), np.uint8)).save(path)
    with self.assertRaisesRegex(UserError, '142238.png: a map of one channel; expected RGB'):
      self.open()[0]

  def test_variants_and_extras_open_alike(self):
    self.instances_tree()
    for extras, variant in itertools.product([(), ('instances',)], ['', 'instances']):
      self.config.extras, self.config.variant = extras, variant
      keys = {'image', 'label'} | ({'instances', 'classes', 'is_crowd'} if extras else set())
      self.assertEqual(set(self.open()[0]), keys)


if __name__ == '__main__':
  absltest.main()
