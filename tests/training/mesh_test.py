import functools
import signal
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from absl.testing import absltest, parameterized

from seg_jax.errors import UserError
from seg_jax.training.mesh import make_mesh, mesh_of
from tests.training import devices, tiny
from tests.training.devices import case

TOLERANCE = 1e-5  # of a loss, relative


@functools.cache
def one_device(**overrides) -> dict:
  """The oracle."""
  with tempfile.TemporaryDirectory() as folder:
    return devices.outcomes(Path(folder), [case(**overrides)], devices=1)[0]


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
          np.testing.assert_allclose(outcome['losses'], one['losses'], rtol=TOLERANCE)
          self.assertEqual(outcome['confusion'], one['confusion'])

  def test_four_devices_do_what_one_does(self):
    """Augmented pictures, ignored pixels, Dice and batch norm included."""
    self.check(
      'unet',
      {4: [{'parallel': 'pmap'}, {'mesh__space': 2, 'optimizer__sharded': True}]},
    )

  @parameterized.parameters('unet', 'segnet', 'deeplab_v3plus')
  @pytest.mark.slow
  def test_any_number_of_devices_does_what_one_does(self, system):
    self.check(
      system,
      {
        2: [{}, {'parallel': 'pmap'}, {'mesh__space': 2}],
        4: [{}, {'parallel': 'pmap'}, {'mesh__space': 4}],
        8: [{'optimizer__sharded': True}, {'parallel': 'pmap'}, {'mesh__space': 2}],
      },
    )

  @pytest.mark.slow
  def test_all_losses_are_those_of_the_whole_batch_under_pmap(self):
    terms = {f'loss__{name}': 1.0 for name in ('cross_entropy', 'dice', 'focal', 'lovasz')}
    terms |= {'loss__hard_pixel_fraction': 0.3, 'loss__class_weights': 'enet'}
    terms |= {'train__num_steps': 2, 'train__eval_every': 2, 'train__checkpoint_every': 2}
    (four,) = devices.outcomes(self.folder, [case('unet', **terms, parallel='pmap')], devices=4)
    one = one_device(system='unet', **terms)
    np.testing.assert_allclose(four['losses'], one['losses'], rtol=TOLERANCE)

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
    whole = one_device(system='unet')
    for count in (1, 2, 4):
      workdir = self.folder / str(count)
      self.stop_half_way(workdir)
      (rest,) = devices.outcomes(workdir, [case('unet', optimizer__sharded=count == 2)], count)
      np.testing.assert_allclose(rest['losses'], whole['losses'], rtol=TOLERANCE)

  def stop_half_way(self, workdir):
    """Leaves what eight devices have saved after five of ten steps."""
    sharded = case('unet', optimizer__sharded=True)
    (process,) = devices.processes(workdir, [sharded], devices=8)
    saved = workdir / '0' / 'checkpoints' / '5'
    while not saved.exists() and process.poll() is None:
      time.sleep(0.01)
    process.kill()
    process.communicate()
    self.assertTrue(saved.exists())

  @parameterized.parameters(
    ({'mesh.data': 3}, 'mesh.data is 3 and mesh.space 1; expected a product of 1'),
    ({'mesh.data': -1, 'mesh.space': -1}, 'mesh.data is -1 and mesh.space -1; expected'),
    ({'mesh.space': 2}, 'mesh.data is -1 and mesh.space 2; expected a product of 1'),
  )
  def test_a_mesh_that_does_not_fit_says_so(self, overrides, message):
    with self.assertRaisesRegex(UserError, message):
      mesh_of(tiny.config(**overrides))

  def test_one_device_is_a_mesh(self):
    self.assertEqual(dict(make_mesh().shape), {'data': 1, 'space': 1})


class ProcessesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))

  def test_two_processes_do_what_one_does(self):
    one = one_device(system='unet')
    (two,) = devices.outcomes(self.folder, [case('unet')], devices=2, count=2)
    np.testing.assert_allclose(two['losses'], one['losses'], rtol=TOLERANCE)
    self.assertEqual(two['confusion'], one['confusion'])

  def started(self):
    """Two processes in the middle of a long run, and where its checkpoints are."""
    endless = {'train__num_steps': 10**6, 'train__eval_every': 10**6, 'train__checkpoint_every': 50}
    long = case('unet', **endless)
    processes = devices.processes(self.folder, [long], devices=2, count=2)
    saved = self.folder / '0' / 'checkpoints'
    while not list(saved.glob('[0-9]*0')) and processes[0].poll() is None:
      time.sleep(0.05)
    return processes, saved

  @pytest.mark.slow
  def test_sigterm_to_one_stops_both_at_the_same_step(self):
    processes, saved = self.started()
    processes[1].terminate()
    for process in processes:
      _, errors = process.communicate(timeout=120)
      self.assertEqual(process.returncode, 0, errors[-2000:])
    last = max(int(path.name) for path in saved.glob('[0-9]*'))
    self.assertNotEqual(last % 50, 0)  # one step in fifty is saved anyway
    self.assertEqual(devices.read_metrics(self.folder / '0')[-1]['step'], last)

  @parameterized.parameters(0, 1)
  @pytest.mark.slow
  def test_a_process_that_is_gone_ends_the_other(self, gone):
    """Within the two minutes that the README promises; the message is JAX's."""
    started, _ = self.started()
    started[gone].send_signal(signal.SIGKILL)
    since = time.monotonic()
    _, errors = started[1 - gone].communicate(timeout=180)
    started[gone].communicate()
    self.assertLess(time.monotonic() - since, 120)
    self.assertNotEqual(started[1 - gone].returncode, 0)
    self.assertIn('another task died', errors)


if __name__ == '__main__':
  absltest.main()
