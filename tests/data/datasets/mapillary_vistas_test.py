"""Mapillary Vistas, on the sample that comes with v1.1 and a crop with masks of both versions."""

import json
import tempfile
from pathlib import Path

import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from configs.common import get_config
from seg_jax.data.datasets import mapillary_vistas, open_dataset
from seg_jax.errors import UserError

SHARED = Path(__file__).resolve().parents[4] / 'shared' / 'data' / 'mapillary_vistas'
CROP = '__CRyFzoDOXn6unQ6a3DnQ'
SAMPLE = 'grDzFDON_vntlJOAKJx7qA'


class MapillaryVistasTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    if not SHARED.is_dir():
      self.skipTest(f'{SHARED} is not there')
    self.root = Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.config = get_config('mapillary_vistas').data
    self.config.dir = str(self.root)

  def link(self, source, target):
    (self.root / target).parent.mkdir(parents=True, exist_ok=True)
    (self.root / target).symlink_to(SHARED / source)

  def link_sample(self):
    """The sample of v1.1 in the layout of the releases 1.0 to 1.2."""
    folder = 'v1.1_sample'
    self.link(f'{folder}/{SAMPLE}.jpg', f'training/images/{SAMPLE}.jpg')
    self.link(f'{folder}/{SAMPLE}_label.png', f'training/labels/{SAMPLE}.png')
    self.link(f'{folder}/{SAMPLE}_instance.png', f'training/instances/{SAMPLE}.png')

  def link_crop(self):
    """The crop in the layout of the release 2.0, which holds v1.2, too."""
    folder = 'mmseg_pseudo_100x100'
    self.link(f'{folder}/images/{CROP}.jpg', f'validation/images/{CROP}.jpg')
    (self.root / 'training/images').mkdir(parents=True)
    for version in ('v1.2', 'v2.0'):
      (self.root / f'training/{version}/labels').mkdir(parents=True)
      self.link(f'{folder}/{version}/{CROP}.png', f'validation/{version}/labels/{CROP}.png')

  def open(self, split='train'):
    return open_dataset(self.config, split, seed=0)

  def test_the_tables_have_the_published_numbers_of_labels(self):
    for variant, (things, stuff, void) in {'v1.2': (37, 28, 1), 'v2.0': (70, 46, 8)}.items():
      info = mapillary_vistas.INFOS[variant]
      ignored = [k for k, v in mapillary_vistas.LABELS[variant].classes.items() if v == 255]
      self.assertLen(set(info.class_names), things + stuff + void)
      self.assertLen(info.things, things)
      self.assertLen(ignored, void)
      self.assertEqual((info.class_names[0], info.class_names[-1]), ('Bird', 'Unlabeled'))
      self.assertEqual(len(info.palette), len(info.class_names))
      for name, colour in {
        'Road': (128, 64, 128),
        'Car': (0, 0, 142),
        'Sky': (70, 130, 180),
      }.items():
        self.assertSequenceEqual(info.palette[info.class_names.index(name)].tolist(), colour)

  def test_ids_of_v2_0(self):
    info = mapillary_vistas.INFOS['v2.0']
    ids = {2: 'Ambiguous Barrier', 31: 'Person Group', 38: 'Lane Marking - Ambiguous'}
    ids |= {79: 'Signage - Ambiguous', 86: 'Pole Group', 96: 'Traffic Sign - Ambiguous'}
    ids |= {115: 'Vehicle Group', 123: 'Unlabeled'}
    ignored = {k for k, v in mapillary_vistas.LABELS['v2.0'].classes.items() if v == 255}
    self.assertEqual({i: info.class_names[i] for i in ignored}, ids)
    self.assertEqual(info.class_names[27], 'Building')
    self.assertEqual(info.class_names[108], 'Car')

  def test_the_table_of_v1_2_is_that_of_the_owners(self):
    labels = json.loads((SHARED / 'v1.1_sample/config.json').read_text())['labels']
    info = mapillary_vistas.INFOS['v1.2']
    self.assertSequenceEqual(info.class_names, [label['readable'] for label in labels])
    self.assertSequenceEqual(info.palette.tolist(), [label['color'] for label in labels])
    things = [i for i, label in enumerate(labels) if label['instances'] and label['evaluate']]
    self.assertSequenceEqual(info.things, things)
    classes = {i: i if label['evaluate'] else 255 for i, label in enumerate(labels)}
    self.assertEqual(mapillary_vistas.LABELS['v1.2'].classes, classes)

  def test_the_sample_is_what_pillow_reads_with_65_as_ignored(self):
    self.link_sample()
    source = self.open()
    self.assertSequenceEqual(source.names, [f'training/images/{SAMPLE}.jpg'])
    self.assertEqual(source.size(0), (2448, 3264))
    record = source[0]
    mask = np.asarray(Image.open(SHARED / f'v1.1_sample/{SAMPLE}_label.png'))
    counts = np.bincount(mask.ravel(), minlength=256)
    self.assertGreater(counts[65], 0)
    counts[255], counts[65] = counts[65], 0
    np.testing.assert_array_equal(np.bincount(record['label'].ravel(), minlength=256), counts)
    image = np.asarray(Image.open(SHARED / f'v1.1_sample/{SAMPLE}.jpg'))
    np.testing.assert_array_equal(record['image'], image)

  def test_objects_of_the_sample_are_the_segments_of_its_panoptic_picture(self):
    self.link_sample()
    self.config.extras = ('instances',)
    record = self.open()[0]
    folder = SHARED / 'v1.1_sample'
    things = [
      i
      for i, label in enumerate(json.loads((folder / 'config.json').read_text())['labels'])
      if label['instances']
    ]
    mask = np.asarray(Image.open(folder / f'{SAMPLE}_label.png'))[::4, ::4]
    panoptic = np.asarray(Image.open(folder / f'{SAMPLE}_panoptic.png'))[::4, ::4].astype(int)
    segments = panoptic @ (1, 256, 65536)
    expected = sorted(
      (int(mask[segments == segment][0]), int((segments == segment).sum()))
      for segment in np.unique(segments[np.isin(mask, things)])
    )
    instances = record['instances'][::4, ::4]
    found = [(int(c), int((instances == k).sum())) for k, c in enumerate(record['classes'], 1)]
    self.assertEqual(sorted(found), expected)
    self.assertIn(0, record['classes'])  # a bird, whose first object has the value 0
    self.assertFalse(record['is_crowd'].any())

  @parameterized.parameters('v1.2', 'v2.0')
  def test_the_crop_is_read_in_both_versions_of_the_release_2_0(self, variant):
    self.link_crop()
    self.config.variant = variant
    source = self.open('val')
    mask = np.asarray(Image.open(SHARED / f'mmseg_pseudo_100x100/{variant}/{CROP}.png'))
    record = source[0]
    np.testing.assert_array_equal(record['label'], mask)
    names = {source.info.class_names[i] for i in np.unique(record['label'])}
    self.assertEqual(names, {'Building', 'Street Light', 'Pole'})

  def test_the_owners_table_is_used_if_it_is_there(self):
    self.link_sample()
    table = json.loads((SHARED / 'v1.1_sample/config.json').read_text())
    table['labels'][13] |= {'readable': 'Carriageway', 'color': [1, 2, 3], 'evaluate': False}
    (self.root / 'config.json').write_text(json.dumps(table))
    source = self.open()
    self.assertEqual(source.info.class_names[13], 'Carriageway')
    self.assertSequenceEqual(source.info.palette[13].tolist(), (1, 2, 3))
    self.assertNotIn(13, source[0]['label'])

  @parameterized.parameters('{"labels": [', '{"labels": []}', '{"labels": [{"readable": "Bird"}]}')
  def test_a_table_that_is_none_is_told(self, text):
    self.link_sample()
    (self.root / 'config.json').write_text(text)
    with self.assertRaisesRegex(
      UserError, r'config\.json: cannot be used .*expected the 66 labels'
    ):
      self.open()

  def test_what_is_wrong_with_the_folder_is_told(self):
    self.link_sample()
    with self.assertRaisesRegex(UserError, "no split 'test'; expected one of train, val"):
      self.open('test')
    self.link(f'v1.1_sample/{SAMPLE}.jpg', 'training/images/second.jpg')
    with self.assertRaisesRegex(UserError, r'second\.jpg: has no mask; expected .*labels/second'):
      self.open()
    self.config.variant = 'v2.0'
    with self.assertRaisesRegex(UserError, 'expected training/v2.0/labels in it'):
      self.open()
    self.config.dir = str(SHARED)
    with self.assertRaisesRegex(UserError, "not the folder of 'mapillary_vistas'"):
      self.open()


if __name__ == '__main__':
  absltest.main()
