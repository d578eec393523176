import collections
import math
import sys
import threading
import time

import cloudpickle
import numpy as np
from absl.testing import absltest, parameterized

from configs.common import get_config
from seg_jax.data import pipeline
from seg_jax.errors import UserError

MEAN = (0.485, 0.456, 0.406)
COLOUR = (124, 116, 104)
MAX_INSTANCES = 5

# Worker processes cannot always import a test module by its name.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


class MemorySource:
  """Random records of the given sizes; record `bad` raises."""

  def __init__(self, sizes, bad=None):
    self.sizes, self.bad, self.reads = sizes, bad, 0

  def __len__(self):
    return len(self.sizes)

  def size(self, index):
    return self.sizes[index]

  def __getitem__(self, index):
    self.reads += 1
    if index == self.bad:
      raise UserError(f'picture_{index}.png: expected a picture')
    rng = np.random.default_rng(index)
    count = 1 + index % 4
    return {
      'image': rng.integers(0, 256, (*self.sizes[index], 3), np.uint8),
      'label': rng.integers(0, 12, self.sizes[index], np.uint8),
      'instances': rng.integers(0, count + 1, self.sizes[index], np.int32),
      'classes': rng.integers(0, 12, count, np.int32),
      'is_crowd': rng.random(count) < 0.5,
      'depth': rng.uniform(1, 80, self.sizes[index]).astype(np.float32),
    }


def make_source(count, bad=None):
  return MemorySource([(20 + 5 * (i % 3), 30 - 4 * (i % 2)) for i in range(count)], bad)


def train(source, num_batches, seed=0, start_step=0, process=(0, 1), **changes):
  data = get_config('folder').data
  data.update({'batch_size': 4, 'crop_size': (12, 17), 'max_instances': MAX_INSTANCES, **changes})
  iterator = pipeline.train_batches(source, data, seed=seed, start_step=start_step, process=process)
  return [next(iterator) for _ in range(num_batches)]


def evaluate(source, batch_size=4, size_multiple=8, num_threads=2, process=(0, 1)):
  return pipeline.eval_batches(
    source,
    batch_size=batch_size,
    size_multiple=size_multiple,
    mean=MEAN,
    max_instances=MAX_INSTANCES,
    num_threads=num_threads,
    process=process,
  )


def joined(*parts):
  """The batches of several processes, each of which has a part of every one."""
  return [
    {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}
    for batches in zip(*parts, strict=True)
  ]


def assert_same(first, second):
  assert len(first) == len(second)
  for one, other in zip(first, second, strict=True):
    assert set(one) == set(other)
    for key in one:
      np.testing.assert_array_equal(one[key], other[key], err_msg=key)


def assert_batch_types(batch, shape):
  rows = (shape[0], MAX_INSTANCES)
  expected = {
    'image': (np.uint8, (*shape, 3)),
    'label': (np.int32, shape),
    'depth': (np.float32, shape),
    'boxes': (np.float32, (*rows, 4)),
    'classes': (np.int32, rows),
    'masks': (np.bool_, (*rows, *shape[1:])),
    'is_crowd': (np.bool_, rows),
    'instance_valid': (np.bool_, rows),
    'size': (np.int32, (shape[0], 2)),
    'valid': (np.bool_, shape[:1]),
    'index': (np.int32, shape[:1]),
  }
  assert {key: (array.dtype, array.shape) for key, array in batch.items()} == expected


class TrainBatchesTest(parameterized.TestCase):
  def test_the_parts_of_processes_are_the_batches_of_one(self):
    source = make_source(7)
    parts = [train(source, 3, start_step=1, process=(i, 2)) for i in range(2)]
    assert_same(joined(*parts), train(source, 3, start_step=1))

  @parameterized.parameters(1, 4)
  def test_batches_are_as_the_contract_says(self, batch_size):
    for batch in train(make_source(5), 3, batch_size=batch_size):
      assert_batch_types(batch, (batch_size, 12, 17))
      self.assertTrue(batch['valid'].all())

  def test_objects_move_with_the_picture_and_keep_what_they_are(self):
    """Each object's class is written into the label, so it is to be found under its mask."""

    class Objects(MemorySource):
      def __getitem__(self, index):
        record = super().__getitem__(index)
        label = np.append(0, record['classes'])[record['instances']].astype(np.uint8)
        return {**record, 'label': label}

    seen = 0
    for batch in train(Objects([(20, 30), (9, 40)] * 3), 5, flip=True, scale_range=(0.7, 1.4)):
      for label, *objects in zip(
        *(batch[key] for key in ('label', 'instance_valid', 'classes', 'masks', 'boxes')),
        strict=True,
      ):
        for valid, kind, mask, box in zip(*objects, strict=True):
          self.assertEqual(valid, mask.any())
          if valid:
            self.assertEqual(set(label[mask]), {kind})
            rows, columns = np.nonzero(mask)
            expected = rows.min(), columns.min(), rows.max() + 1, columns.max() + 1
            np.testing.assert_array_equal(box, expected)
            seen += 1
    self.assertGreater(seen, 30)

  def test_index_is_the_number_of_the_record(self):
    source = make_source(7)
    plain = {'flip': False, 'photometric': 0.0, 'scale_range': (1.0, 1.0), 'crop_size': (40, 40)}
    for batch in train(source, 4, **plain):
      for index, label in zip(batch['index'], batch['label'], strict=True):
        rows, columns = source.size(index)
        top, left = (axis.min() for axis in np.nonzero(label != 255))
        window = label[top : top + rows, left : left + columns]
        np.testing.assert_array_equal(window, source[index]['label'])

  @parameterized.parameters(0, 4)
  def test_does_not_depend_on_the_number_of_threads(self, num_threads):
    source = make_source(10)
    assert_same(train(source, 6, num_threads=1), train(source, 6, num_threads=num_threads))

  @parameterized.parameters(1, 3, 200)
  def test_starting_at_a_step_equals_skipping(self, start_step):
    source = MemorySource([(4, 4)] * 300)
    skipped = train(source, start_step + 3, crop_size=(3, 3))[start_step:]
    assert_same(train(source, 3, start_step=start_step, crop_size=(3, 3)), skipped)

  def test_seed_decides(self):
    source = make_source(10)
    assert_same(train(source, 2, seed=5), train(source, 2, seed=5))
    first, second = (np.concatenate([b['index'] for b in train(source, 5, seed=s)]) for s in (5, 6))
    self.assertFalse(np.array_equal(first, second))

  @parameterized.parameters((20, 6), (3, 8), (1, 4))
  def test_each_epoch_holds_every_record_once_in_an_order_of_its_own(self, count, batch_size):
    source = MemorySource([(6, 6)] * count)
    batches = train(source, 12, batch_size=batch_size, crop_size=(3, 3))
    indices = np.concatenate([batch['index'] for batch in batches])
    epochs = indices[: len(indices) // count * count].reshape(-1, count)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(count), (len(epochs), 1)))
    orders = {tuple(epoch) for epoch in epochs}
    self.assertGreaterEqual(len(orders), min(len(epochs), math.factorial(count)) / 2)

  def test_a_record_is_augmented_anew_in_each_epoch_and_place(self):
    batches = train(MemorySource([(20, 20)]), 3)
    pictures = {image.tobytes() for batch in batches for image in batch['image']}
    self.assertEqual(len(pictures), 12)

  @parameterized.parameters(0, 2)
  def test_user_error_of_a_source_arrives_as_it_is(self, num_threads):
    with self.assertRaisesRegex(UserError, '^picture_3.png: expected a picture$'):
      train(make_source(10, bad=3), 3, num_threads=num_threads)

  def test_abandoned_iterator_stops_its_threads(self):
    def grain_threads():
      return {thread for thread in threading.enumerate() if 'grain' in thread.name}

    before = grain_threads()
    iterator = pipeline.train_batches(make_source(10), get_config().data, seed=0)
    next(iterator)
    self.assertNotEmpty(grain_threads() - before)
    del iterator
    deadline = time.monotonic() + 5
    while grain_threads() - before and time.monotonic() < deadline:
      time.sleep(0.01)
    self.assertEmpty(grain_threads() - before)

  def test_worker_processes_yield_the_same_and_pass_on_user_errors(self):
    count, start_step = 40, 2
    expected = train(make_source(count), 10)
    bad = expected[-1]['index'][-1]  # the last of the first epoch: nine batches are good
    data = get_config('folder').data
    data.update({'batch_size': 4, 'crop_size': (12, 17), 'num_workers': 2})
    data.max_instances = MAX_INSTANCES
    iterator = pipeline.train_batches(make_source(count, bad), data, seed=0, start_step=start_step)
    assert_same([next(iterator) for _ in range(9 - start_step)], expected[start_step:9])
    with self.assertRaisesRegex(UserError, f'^picture_{bad}.png: expected a picture$'):
      next(iterator)


class EvalBatchesTest(parameterized.TestCase):
  def test_the_parts_of_processes_are_the_batches_of_one(self):
    """Those of a last batch that has no record for the second process, too."""
    source = make_source(9)
    parts = [evaluate(source, process=(i, 2)) for i in range(2)]
    assert_same(joined(*parts), list(evaluate(source)))
    self.assertEqual(sorted(parts[0].records + parts[1].records), list(range(9)))

  @parameterized.product(count=(1, 4, 13), batch_size=(1, 4), size_multiple=(1, 8, 64))
  def test_every_record_once_at_its_native_size(self, count, batch_size, size_multiple):
    source = make_source(count)
    seen = collections.Counter()
    for batch in evaluate(source, batch_size, size_multiple):
      height, width = batch['label'].shape[1:]
      assert_batch_types(batch, (batch_size, height, width))
      np.testing.assert_array_equal(batch['valid'], batch['index'] >= 0)
      self.assertTrue(batch['valid'][0])
      self.assertTrue((batch['label'][~batch['valid']] == 255).all())
      for position in np.flatnonzero(batch['valid']):
        index = batch['index'][position]
        seen[int(index)] += 1
        rows, columns = source.size(index)
        # Rounded up to the next multiple and no farther.
        self.assertEqual((height % size_multiple, width % size_multiple), (0, 0))
        self.assertBetween(height - rows, 0, size_multiple - 1)
        self.assertBetween(width - columns, 0, size_multiple - 1)
        record = source[index]
        for key, fill in {'image': COLOUR, 'label': 255, 'depth': 0}.items():
          expected = np.broadcast_to(np.array(fill, record[key].dtype), batch[key][0].shape).copy()
          expected[:rows, :columns] = record[key]
          np.testing.assert_array_equal(batch[key][position], expected, err_msg=key)
        objects = len(record['classes'])
        for k in range(MAX_INSTANCES):
          mask = np.zeros((height, width), bool)
          if k < objects:
            mask[:rows, :columns] = record['instances'] == k + 1
            self.assertEqual(batch['classes'][position, k], record['classes'][k])
            self.assertEqual(batch['is_crowd'][position, k], record['is_crowd'][k])
          np.testing.assert_array_equal(batch['masks'][position, k], mask)
          self.assertEqual(batch['instance_valid'][position, k], k < objects)
      self.assertFalse(batch['instance_valid'][~batch['valid']].any())
      for index, size in zip(batch['index'], batch['size'], strict=True):
        self.assertEqual(tuple(size), source.size(index) if index >= 0 else (0, 0))
    self.assertEqual(seen, collections.Counter(range(count)))

  def test_one_size_fills_all_batches_but_the_last(self):
    source = MemorySource([(17, 30), (24, 25)] * 5)  # both become 24 x 32
    valid = [batch['valid'].sum() for batch in evaluate(source)]
    self.assertEqual(valid, [4, 4, 2])

  def test_length_order_and_threads(self):
    source = make_source(13)
    batches = evaluate(source)
    first = list(batches)
    self.assertLen(batches, len(first))
    assert_same(list(batches), first)
    for num_threads in (0, 1, 4):
      assert_same(list(evaluate(source, num_threads=num_threads)), first)

  def test_reads_only_a_few_batches_ahead(self):
    source = MemorySource([(4, 4)] * 100)
    iterator = iter(evaluate(source, batch_size=2, num_threads=2))
    self.assertEqual(source.reads, 0)
    next(iterator)
    time.sleep(0.2)
    self.assertLessEqual(source.reads, 2 * 4)

  @parameterized.parameters(0, 2)
  def test_user_error_of_a_source_arrives_as_it_is(self, num_threads):
    with self.assertRaisesRegex(UserError, '^picture_3.png: expected a picture$'):
      list(evaluate(make_source(10, bad=3), num_threads=num_threads))


if __name__ == '__main__':
  absltest.main()
