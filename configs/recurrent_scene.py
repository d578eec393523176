"""Recurrent net for scene labelling (Pinheiro and Collobert 2014,
https://proceedings.mlr.press/v32/pinheiro14.html), with norm.

    ./run.sh --config=configs/recurrent_scene.py                                # generated scenes
    ./run.sh --config=configs/recurrent_scene.py:camvid --config.data.dir=PATH  # full size, GPU

The paper's own is `--config.model.norm=none --config.model.width=25 --config.model.kernel_size=8`.

On the generated scenes: mIoU 0.70 on val, 3 minutes on two CPU cores.
"""

from configs import common


def get_config(dataset: str = 'shapes'):
  config = common.get_config(dataset)
  config.name = 'recurrent_scene'
  config.model.name = 'recurrent_scene'
  config.model.width = 16  # maps of the first layer; the second has twice as many
  config.model.kernel_size = 4
  config.model.instances = 2
  config.model.norm = 'batch'  # batch | group | none
  config.loss.auxiliary = 1.0  # every instance is trained alike
  config.optimizer.learning_rate = 4e-3
  config.optimizer.warmup_steps = 30
  if dataset == 'shapes':
    config.train.num_steps = 500
    config.train.eval_every = 250
    config.train.checkpoint_every = 250
  elif dataset != 'folder':
    config.dtype = 'bfloat16'
    config.model.width = 25
    config.model.kernel_size = 8
    config.optimizer.learning_rate = 2e-3
    config.train.num_steps = 6000 if dataset == 'camvid' else 20000
    config.train.eval_every = 1000
    config.train.checkpoint_every = 1000
  return config
