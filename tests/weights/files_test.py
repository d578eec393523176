import os
import pickle
import sys
import tempfile
from pathlib import Path
from unittest import mock

import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from absl.testing import absltest, parameterized

from seg_jax.errors import UserError
from seg_jax.weights import files

ARRAYS = {'a.weight': np.float32([[1, 2, 3], [4, 5, 6]]), 'a.bias': np.float32([0.5, -1])}


class Code:
  """Unpickled, it makes the folder `path`."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return os.mkdir, (str(self.path),)


class FilesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.path = self.folder / 'deep' / 'er' / 'a.safetensors'

  def refused(self, path, message):
    with self.assertRaisesRegex(UserError, message) as caught:
      files.read(path)
    self.assertNotIn('\n', str(caught.exception))
    self.assertIn(str(path), str(caught.exception))

  def same(self, read, expected=ARRAYS):
    self.assertEqual(read.keys(), expected.keys())
    for name, array in expected.items():
      self.assertEqual(read[name].dtype, np.float32)
      np.testing.assert_array_equal(read[name], array)

  def test_what_is_written_is_what_is_read_however_it_lies_in_memory(self):
    arrays = ARRAYS | {'b': np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(2, 0, 1)}
    files.write(self.path, arrays)
    self.same(files.read(self.path), arrays)
    self.assertEqual(os.listdir(self.path.parent), ['a.safetensors'])
    with safetensors.safe_open(self.path, 'np') as file:
      self.assertEqual(file.metadata(), {'format': 'pt'})

  def test_counters_are_numbers_there_and_left_out_here(self):
    files.write(self.path, ARRAYS | {'a.num_batches_tracked': np.zeros((), np.int64)})
    there = safetensors.numpy.load_file(self.path)['a.num_batches_tracked']
    self.assertEqual((there.shape, there.dtype), ((), np.int64))
    self.same(files.read(self.path))

  @parameterized.parameters('float16', 'float64', 'bfloat16')
  def test_other_floats_become_float32(self, dtype):
    dtype = jnp.dtype(dtype)
    files.write(self.path, {name: array.astype(dtype) for name, array in ARRAYS.items()})
    self.same(files.read(self.path))  # the numbers are exact in all of them

  @parameterized.parameters('int8', 'int64', 'bool')
  def test_other_numbers_are_refused_by_name(self, dtype):
    files.write(self.path, ARRAYS | {'b.weight': np.ones(3, dtype)})
    self.refused(self.path, 'b.weight is (I8|I64|BOOL); expected floats')

  @parameterized.parameters(0, 4, 8, 60, -9, -1)
  def test_a_truncated_file(self, length):
    files.write(self.path, ARRAYS)
    self.path.write_bytes(self.path.read_bytes()[:length])
    self.refused(self.path, 'no whole .safetensors file')

  def test_what_is_no_weights_file(self):
    self.path.parent.mkdir(parents=True)
    self.path.write_text('<!DOCTYPE html>' * 99)
    self.refused(self.path, 'no whole .safetensors file')
    text = self.folder / 'weights.h5'
    text.write_text('')
    self.refused(text, 'no weights file; expected one of .safetensors, .pth')
    self.refused(self.folder / 'none.safetensors', 'cannot be read .No such file')
    self.refused(self.folder, 'no weights file')
    files.write(self.path, {})
    self.refused(self.path, 'holds no arrays')

  def test_a_prefix_of_data_parallel_training_is_taken_off(self):
    files.write(self.path, {f'module.{name}': array for name, array in ARRAYS.items()})
    self.same(files.read(self.path))

  def test_a_pickle_without_pytorch_is_not_opened(self):
    path, made = self.folder / 'a.pth', self.folder / 'made'
    path.write_bytes(pickle.dumps({'a': Code(made)}))
    with mock.patch.dict(sys.modules, {'torch': None}):
      self.refused(path, "needs PyTorch to be read: pip install 'torch>=2.4'")
    self.assertFalse(made.exists())


class TorchFilesTest(parameterized.TestCase):
  refused, same = FilesTest.refused, FilesTest.same

  def setUp(self):
    super().setUp()
    try:
      import torch
    except ImportError:
      self.skipTest('PyTorch is not installed')
    self.torch = torch
    self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.path = self.folder / 'a.pth'
    self.state = {name: torch.from_numpy(array) for name, array in ARRAYS.items()}

  @parameterized.parameters(
    (lambda state: state,),
    (lambda state: {'state_dict': state, 'epoch': 3},),
    (lambda state: {'model': state, 'optimizer': {'state': {0: {}}, 'param_groups': []}},),
    (lambda state: {f'module.{name}': array for name, array in state.items()},),
  )
  def test_a_state_dict_is_read_in_whatever_it_is_wrapped(self, wrapped):
    counter = {'a.num_batches_tracked': self.torch.tensor(7)}
    self.torch.save(wrapped(self.state | counter), self.path)
    self.same(files.read(self.path))

  @parameterized.parameters('float16', 'float64', 'bfloat16')
  def test_other_floats_become_float32(self, dtype):
    dtype = getattr(self.torch, dtype)
    self.torch.save({name: array.to(dtype) for name, array in self.state.items()}, self.path)
    self.same(files.read(self.path))

  def test_parameters_and_the_older_format_are_read(self):
    state = {name: self.torch.nn.Parameter(array) for name, array in self.state.items()}
    self.torch.save(state, self.path, _use_new_zipfile_serialization=False)
    self.same(files.read(self.path))

  def test_other_numbers_are_refused_by_name(self):
    self.torch.save(self.state | {'b.weight': self.torch.ones(3, dtype=self.torch.int8)}, self.path)
    self.refused(self.path, 'b.weight is torch.int8; expected floats')

  @parameterized.parameters(
    ('torch', 2),
    ('torch', 4),
    ('torch before 1.6', 2),
    ('pickle', 0),
    ('pickle', 2),
    ('pickle', 4),
  )
  def test_code_is_refused_and_never_run(self, saved, protocol):
    made = self.folder / 'made'
    tree = {'state_dict': self.state, 'args': Code(made)}
    if saved == 'pickle':
      self.path.write_bytes(pickle.dumps({'args': Code(made)}, protocol))
    else:
      zipped = saved == 'torch'
      self.torch.save(
        tree, self.path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped
      )
    self.refused(self.path, 'is refused: it holds .* nothing of it was run')
    self.assertFalse(made.exists())
    pickle.loads(pickle.dumps(Code(made)))  # what would have been
    self.assertTrue(made.exists())

  @parameterized.parameters(0, 4, 100, -100, -1)
  def test_a_truncated_file(self, length):
    self.torch.save(self.state, self.path)
    self.path.write_bytes(self.path.read_bytes()[:length])
    self.refused(self.path, 'is no whole file of torch.save|is refused')

  def test_what_is_no_weights_file(self):
    self.path.write_text('<!DOCTYPE html>' * 99)
    self.refused(self.path, 'is refused|is no whole file')
    self.torch.save(self.torch.ones(3), self.path)
    self.refused(self.path, 'holds a Tensor; expected a state_dict')
    self.torch.save({'epoch': 3}, self.path)
    self.refused(self.path, 'holds no arrays')
    self.refused(self.folder / 'none.pth', 'cannot be read .No such file')


if __name__ == '__main__':
  absltest.main()
