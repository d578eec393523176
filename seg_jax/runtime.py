"""The process around a run: flags, exit codes, warnings, the compilation cache."""

import logging as python_logging
import os
import runpy
import sys
from pathlib import Path

from absl import flags, logging

from seg_jax import settings
from seg_jax.errors import RunError, UserError, nearest

HEARTBEAT = 60  # seconds after which a process that is gone ends the others
DEFAULT_CONFIG = Path(__file__).parents[1] / 'configs' / 'unet.py'


def parse_flags(argv: list[str]) -> list[str]:
  """absl's parsing, with what is wrong told in one line and exit 2."""
  if '--config' in argv[:-1]:  # --config FILE
    at = argv.index('--config')
    argv = [*argv[:at], f'--config={argv[at + 1]}', *argv[at + 2 :]]
  if not any(arg.startswith('--config=') for arg in argv):
    argv = [argv[0], f'--config={DEFAULT_CONFIG}', *argv[1:]]
  given = next(arg for arg in reversed(argv) if arg.startswith('--config='))
  file, _, dataset = given[9:].partition(':')
  try:
    if not Path(file).is_file():
      raise UserError(f'--config={file}: no such file; expected one such as configs/unet.py')
    return flags.FLAGS(argv)
  except (AttributeError, KeyError):  # a key that the config does not have, or a fault in the file
    known = settings.flat(runpy.run_path(file)['get_config'](*[dataset][: bool(dataset)]).to_dict())
    keys = [arg[9:].partition('=')[0] for arg in argv if arg.startswith('--config.')]
    unknown = [key for key in keys if key not in known]
    if not unknown:
      raise
    sys.exit(complain(f'unknown config key {unknown[0]!r}{nearest(unknown[0], known)}'))
  except (flags.Error, UserError, TypeError, ValueError) as error:
    sys.exit(complain(str(error)))


def plain_warnings() -> None:
  """Warnings and worse as one line each, `warning: ...`, without absl's time and thread."""

  class Plain(python_logging.Formatter):
    def format(self, record):
      return f'{record.levelname.lower()}: {record.getMessage()}'

  logging.set_verbosity(logging.WARNING)
  logging.get_absl_handler().setFormatter(Plain())


def exits(main):
  """`main` with the exit codes that scripts rely on.

  0: done, 1: a failure, 2: what the user gave is wrong.
  """

  def run(argv):
    try:
      main(argv)
    except (UserError, RunError) as error:
      print(f'error: {error}', file=sys.stderr)
      sys.exit(2 if isinstance(error, UserError) else 1)

  return run


def start(distributed: bool = False) -> None:
  """Keeps compiled programs in the user's cache directory, and says what the run is on.

  With `distributed` this process joins the others first. JAX finds them on Cloud TPU, Slurm and
  under Open MPI; elsewhere JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID say. Of
  several processes the first one alone prints.

  Raises:
    UserError: the other processes are not known, or do not come.
  """
  import jax

  if distributed:
    # JAX's own watch for SIGTERM: Orbax asks it, too, so that a run cannot count what it was asked.
    jax.config.update('jax_enable_preemption_service', False)
    _join(jax.distributed)
    if jax.process_index():
      sys.stdout = open(os.devnull, 'w')  # noqa: SIM115 (until the process ends)

  if not jax.config.jax_compilation_cache_dir:
    home = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache')
    jax.config.update('jax_compilation_cache_dir', str(home / 'seg_jax' / 'xla'))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)
  # Orbax warns of what is meant, such as reading a checkpoint without the right to write there.
  logging.get_absl_logger().addFilter(lambda record: 'orbax' not in record.pathname)
  devices, processes = jax.devices(), jax.process_count()
  print(
    f'JAX {jax.__version__} on {len(devices)} x {devices[0].device_kind}'
    + (f' of {processes} processes' if processes > 1 else '')
  )


def _join(distributed) -> None:
  names = {'num_processes': 'JAX_NUM_PROCESSES', 'process_id': 'JAX_PROCESS_ID'}
  try:
    given = {name: int(os.environ[key]) for name, key in names.items() if key in os.environ}
    if len(given) == 2:
      given['cluster_detection_method'] = 'deactivate'
    distributed.initialize(
      **given, heartbeat_timeout_seconds=HEARTBEAT, shutdown_timeout_seconds=HEARTBEAT
    )
  except (ValueError, TypeError, IndexError, RuntimeError) as error:
    raise UserError(
      f'--config.distributed: {error}; expected Cloud TPU, Slurm or Open MPI, or '
      f'JAX_COORDINATOR_ADDRESS=HOST:PORT, {" and ".join(names.values())} in the environment'
    ) from error


def complain(message: str) -> int:
  """Tells what the user gave wrong in one line; returns the exit code."""
  print(f'error: {" ".join(message.split())}', file=sys.stderr)
  return 2
