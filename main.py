"""Trains, evaluates and shows one system on one dataset.

python main.py --config=configs/unet.py:camvid --config.data.dir=PATH
python main.py --config=configs/unet.py:camvid --mode=predict photo.jpg
"""

from pathlib import Path

import ml_collections
from absl import app, flags
from ml_collections import config_flags

from seg_jax import runtime, settings
from seg_jax.errors import UserError

MODES = {
  'train': 'trains, going on from the last checkpoint, then evaluates the best one',
  'eval': 'evaluates a checkpoint on the splits of config.eval.splits',
  'predict': 'labels the pictures and videos named after the flags: files, folders or globs',
  'inspect': 'shows a dataset before anyone trains on it',
  'prepare': 'makes a few large files of a dataset, in --workdir',
  'export': 'writes a checkpoint for other programs, as --format into --output',
}
_CONFIG = config_flags.DEFINE_config_file('config', None, 'FILE[:DATASET]; default configs/unet.py')
_WORKDIR = flags.DEFINE_string('workdir', None, "The run's directory; default runs/NAME-DATASET")
_MODE = flags.DEFINE_enum('mode', 'train', list(MODES), '; '.join(map(': '.join, MODES.items())))
_FORMAT = flags.DEFINE_enum(
  'format',
  'safetensors',
  ['safetensors'],
  "Of an export; safetensors: weights, torchvision's names",
)
_OUTPUT = flags.DEFINE_string('output', None, 'The file of an export; default WORKDIR/export/NAME')


def run(
  config: ml_collections.ConfigDict,
  workdir: Path,
  mode: str,
  overrides: dict,
  inputs: list[str],
  output: Path | None = None,
) -> None:
  """One mode, in `workdir`; `overrides` are what the command line changed in `config`.

  The imports wait until a mode needs them, so that a mistyped flag is told at once.
  """
  if inputs and mode != 'predict':
    raise UserError(f'{inputs[0]!r} is not expected; only --mode=predict takes files')
  if output and mode != 'export':
    raise UserError(f'--output={output} is not expected; only --mode=export takes it')
  settings.check(config)
  if config.distributed and mode not in ('train', 'eval'):
    raise UserError(f'--mode={mode} is one process; expected train or eval of config.distributed')
  if mode not in ('inspect', 'prepare'):
    runtime.start(config.distributed)
  if mode == 'train':
    from seg_jax.training.loop import train

    train(settings.for_training(config, workdir), workdir)
  elif mode == 'eval':
    from seg_jax.training.evaluation import evaluate

    evaluate(settings.for_inference(config, overrides, workdir), workdir)
  elif mode == 'predict':
    from seg_jax.inference.predict import predict

    predict(settings.for_inference(config, overrides, workdir), workdir, inputs)
  elif mode == 'export':
    from seg_jax.inference.export import export

    export(settings.for_inference(config, overrides, workdir), workdir, output)
  else:
    from seg_jax.data.prepare import prepare
    from seg_jax.inspection import inspect

    {'inspect': inspect, 'prepare': prepare}[mode](config, workdir)


def main(argv: list[str]) -> None:
  config = _CONFIG.value
  workdir = Path(_WORKDIR.value or f'runs/{config.name}-{config.data.name}')
  overrides = config_flags.get_override_values(flags.FLAGS['config'])
  output = Path(_OUTPUT.value) if _OUTPUT.value else None
  run(config, workdir, _MODE.value, overrides, argv[1:], output)


if __name__ == '__main__':
  runtime.plain_warnings()
  app.run(runtime.exits(main), flags_parser=runtime.parse_flags)
