import functools
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from absl.testing import absltest, parameterized

from seg_jax.errors import UserError
from seg_jax.training.logs import read_metrics
from seg_jax.training.mesh import make_mesh, mesh_of
from tests.training import devices, tiny
from tests.training.devices import case

TOLERANCE = 1e-5  # of a loss, relative
# Unpooling is not continuous: rounding alone moves a maximum where two are nearly equal.
STEPS = {'segnet': 4}  # that are compared; of others all ten
WAYS = {  # by the number of devices
  2: [{}, {'parallel': 'pmap'}, {'mesh__space': 2}],
  4: [{}, {'parallel': 'pmap'}, {'mesh__space': 4}],
  8: [{'optimizer__sharded': True}, {'parallel': 'pmap'}, {'mesh__space': 2}],
}
FEW = {4: [{'parallel': 'pmap'}], 8: [{'mesh__space': 2, 'optimizer__sharded': True}]}


@functools.cache
def one_device(**overrides) -> dict:
  """The oracle."""
  with tempfile.TemporaryDirectory() as folder:
    return devices.outcomes(Path(folder), [case(**overrides)], devices=1)[0]


def check_depth(outcome: dict, expected: dict) -> None:
  """The same scores of depth, which are sums of floats."""
  assert outcome['depth'].keys() == expected['depth'].keys()
  for name, value in expected['depth'].items():
    np.testing.assert_allclose(outcome['depth'][name], value, rtol=1e-4, err_msg=name)


class MeshTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))

  def check(self, system, ways):
    """The same losses as on one device, and of the same first weights the same matrix."""
    one = one_device(system=system)
    self.assertLen(one['losses'], 10)
    for count, overrides in ways.items():
      cases = [case(system, **given) for given in overrides]
      many = devices.outcomes(self.folder / str(count), cases, devices=count)
      for given, outcome in zip(cases, many, strict=True):
        with self.subTest(devices=count, **given):
          losses = (run['losses'][: STEPS.get(system)] for run in (outcome, one))
          np.testing.assert_allclose(*losses, rtol=TOLERANCE)
          self.assertEqual(outcome['confusion'], one['confusion'])
          space = given.get('mesh.space', 1)
          self.assertEqual(outcome['share'], [1, 8 * space // count, 64 // space, 32, 3])
          self.assertEqual(outcome['split'] > 0, 'optimizer.sharded' in given)

  def test_four_devices_do_what_one_does(self):
    """Augmented pictures, ignored pixels, Dice and batch norm included."""
    self.check(
      'unet',
      {4: [{'parallel': 'pmap'}, {'mesh__space': 2, 'optimizer__sharded': True}]},
    )

  @parameterized.parameters('unet', 'segnet', 'deeplab_v3plus')
  @pytest.mark.slow
  def test_many_devices_do_what_one_does(self, system):
    self.check(system, FEW)

  @parameterized.parameters('unet', 'segnet', 'deeplab_v3plus')
  @pytest.mark.thorough
  def test_any_number_of_devices_does_what_one_does(self, system):
    self.check(system, WAYS)

  @pytest.mark.slow
  def test_all_losses_are_those_of_the_whole_batch_under_pmap(self):
    terms = {f'loss__{name}': 1.0 for name in ('cross_entropy', 'dice', 'focal', 'lovasz')}
    terms |= {'loss__hard_pixel_fraction': 0.3, 'loss__class_weights': 'enet'}
    terms |= {'train__num_steps': 2, 'train__eval_every': 2, 'train__checkpoint_every': 2}
    (four,) = devices.outcomes(self.folder, [case('unet', **terms, parallel='pmap')], devices=4)
    one = one_device(system='unet', **terms)
    np.testing.assert_allclose(four['losses'], one['losses'], rtol=TOLERANCE)

  @parameterized.parameters(
    ('berhu', {'parallel': 'pmap'}), ('scale_invariant', {'parallel': 'pmap'}, {'mesh__space': 2})
  )
  @pytest.mark.slow
  def test_labels_and_depth_too_of_a_batch_that_is_split(self, loss, *ways):
    self.check_scenes(loss, ways)

  @parameterized.parameters('l1', 'berhu', 'scale_invariant')
  @pytest.mark.thorough
  def test_labels_and_depth_too_of_a_batch_that_is_split_in_any_way(self, loss):
    self.check_scenes(loss, [{'parallel': 'pmap'}, {'mesh__space': 2}])

  def check_scenes(self, loss, ways):
    fields = {'loss__depth': loss, 'train__num_steps': 4, 'train__eval_every': 4}
    fields |= {'train__checkpoint_every': 4}
    cases = [case('several_decoders', **fields, **way) for way in ways]
    one = one_device(system='several_decoders', **fields)
    for outcome in devices.outcomes(self.folder, cases, devices=4):
      np.testing.assert_allclose(outcome['losses'], one['losses'], rtol=TOLERANCE)
      self.assertEqual(outcome['confusion'], one['confusion'])
      check_depth(outcome, one)

  @pytest.mark.slow
  def test_objects_too(self):
    """Which boxes are learned from is drawn for the whole batch."""
    ways = [case('panoptic_fpn'), case('panoptic_fpn', parallel='pmap')]
    (one,) = devices.outcomes(self.folder / 'one', ways[:1], devices=1)
    four, mapped = devices.outcomes(self.folder / 'four', ways, devices=4)
    self.assertEqual(one['result'].keys(), four['result'].keys())
    for name in ('loss', 'norm'):
      np.testing.assert_allclose(four[name], one[name], rtol=TOLERANCE)
      np.testing.assert_allclose(mapped[name], one[name], rtol=TOLERANCE)
    for name in ('pq', 'num_images'):
      np.testing.assert_allclose(four['result'][name], one['result'][name], rtol=1e-4)
    for name in ('box_ap', 'mask_ap'):
      there = (run['result']['instance'][name] for run in (four, one))
      np.testing.assert_allclose(*there, rtol=1e-4)

  @parameterized.parameters(
    {'train__steps_per_call': 5, 'train__log_every': 5}, {'train__recompute': True}
  )
  @pytest.mark.slow
  def test_another_program_for_the_same_steps(self, **overrides):
    (outcome,) = devices.outcomes(self.folder, [case('unet', **overrides)], devices=1)
    every = overrides.get('train__log_every', 1)
    expected = one_device(system='unet')['losses'][every - 1 :: every]
    np.testing.assert_allclose(outcome['losses'], expected, rtol=TOLERANCE)

  @pytest.mark.slow
  def test_a_run_of_eight_devices_goes_on_with_fewer(self):
    """To the same losses, with the optimizer split over the devices or not."""
    whole, eight = one_device(system='unet'), self.folder / '8'
    saved = eight / 'case0' / 'checkpoints'
    with devices.processes(eight, [case('unet', optimizer__sharded=True)], 8) as (process,):
      wait_until((saved / '5').exists, process)
    last = max(int(path.name) for path in saved.glob('[0-9]*'))
    for count in (1, 2, 4):
      workdir = self.folder / str(count)
      shutil.copytree(eight, workdir)
      (rest,) = devices.outcomes(workdir, [case('unet', optimizer__sharded=count == 2)], count)
      self.assertIn(f'going on from step {last} of 10', (workdir / '0.out').read_text())
      self.assertLess(last, 10)
      np.testing.assert_allclose(rest['losses'], whole['losses'], rtol=TOLERANCE)

  @parameterized.parameters(
    ({'mesh.data': 3}, 'mesh.data is 3 and mesh.space 1; expected a product of 1'),
    ({'mesh.data': -1, 'mesh.space': -1}, 'mesh.data is -1 and mesh.space -1; expected'),
    ({'mesh.space': 2}, 'mesh.data is -1 and mesh.space 2; expected a product of 1'),
  )
  def test_a_mesh_that_does_not_fit_says_so(self, overrides, message):
    with self.assertRaisesRegex(UserError, message):
      mesh_of(tiny.config(**overrides))

  @pytest.mark.slow
  def test_what_four_devices_cannot_share_out_is_told(self):
    refused = {
      'data.batch_size is 6; expected a multiple of 4 ': {'data__batch_size': 6},
      'eval.batch_size is 30; expected a multiple of 4 ': {'eval__batch_size': 30},
      'data.crop_size.0. is 30; expected a multiple of 4 ': {
        'data__crop_size': (30, 32),
        'mesh__space': 4,
      },
      'data.crop_size.0. is 32; expected at least 64, 32 for ': {
        'data__crop_size': (32, 32),
        'mesh__space': 2,
      },
      'eval.size_multiple is 1; expected a multiple of 2 ': {
        'eval__size_multiple': 1,
        'mesh__space': 2,
      },
      "parallel is 'pmap', with mesh.space 2 ": {'parallel': 'pmap', 'mesh__space': 2},
      "parallel is 'pmap'; expected jit for optimizer.sharded": {
        'parallel': 'pmap',
        'optimizer__sharded': True,
      },
    }
    cases = [case('unet', **given) for given in refused.values()]
    for message, told in zip(refused, devices.outcomes(self.folder, cases, 4), strict=True):
      self.assertRegex(told['refused'], message)

  def test_one_device_is_a_mesh(self):
    self.assertEqual(dict(make_mesh().shape), {'data': 1, 'space': 1})


def wait_until(done, process):
  """Until `done()`, or the process has ended."""
  deadline = time.monotonic() + 300
  while not done():
    assert process.poll() is None and time.monotonic() < deadline
    time.sleep(0.01)


@pytest.mark.slow
class ProcessesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))

  def test_two_processes_do_what_one_does(self):
    one = one_device(system='unet')
    (two,) = devices.outcomes(self.folder, [case('unet')], devices=2, count=2)
    np.testing.assert_allclose(two['losses'], one['losses'], rtol=TOLERANCE)
    self.assertEqual(two['confusion'], one['confusion'])

  def test_two_processes_judge_labels_and_depth_as_one_does(self):
    fields = {'train__num_steps': 2, 'train__eval_every': 2, 'train__checkpoint_every': 2}
    one = one_device(system='several_decoders', **fields)
    (two,) = devices.outcomes(self.folder, [case('several_decoders', **fields)], devices=2, count=2)
    np.testing.assert_allclose(two['losses'], one['losses'], rtol=TOLERANCE)
    self.assertEqual(two['confusion'], one['confusion'])
    check_depth(two, one)

  def endless(self, **overrides):
    """Two processes in the middle of a run that only its end would save."""
    never = ('train__num_steps', 'train__eval_every', 'train__checkpoint_every')
    long = case('unet', **dict.fromkeys(never, 10**6) | overrides)
    started = self.enterContext(devices.processes(self.folder, [long], devices=2, count=2))
    run = self.folder / 'case0'
    wait_until(lambda: len(read_metrics(run)) > 3, started[0])
    return started, run

  @parameterized.parameters(1, 5)
  def test_sigterm_to_one_stops_both_at_the_same_step(self, steps_per_call):
    fields = {'train__steps_per_call': steps_per_call, 'train__log_every': steps_per_call}
    started, run = self.endless(**fields | {'train__checkpoint_every': 2 * steps_per_call})
    started[1].terminate()
    for index, process in enumerate(started):
      self.assertEqual(process.wait(timeout=120), 0, (self.folder / f'{index}.err').read_text())
    last = max(int(path.name) for path in (run / 'checkpoints').glob('[0-9]*'))
    self.assertEqual(read_metrics(run)[-1]['step'], last)

  @parameterized.parameters(0, 1)
  def test_a_process_that_is_gone_ends_the_other(self, gone):
    """Within the two minutes that the README promises; the message is JAX's."""
    started, _ = self.endless()
    started[gone].kill()
    self.assertNotEqual(started[1 - gone].wait(timeout=120), 0)
    self.assertIn('another task died', (self.folder / f'{1 - gone}.err').read_text())

  def test_a_process_without_pictures_takes_part(self):
    few = {'eval__batch_size': 400, 'eval__splits': 'val'}  # all 200 are the first one's
    one = one_device(system='unet')
    (two,) = devices.outcomes(self.folder, [case('unet', **few)], devices=1, count=2)
    self.assertEqual(two['confusion'], one['confusion'])


if __name__ == '__main__':
  absltest.main()
