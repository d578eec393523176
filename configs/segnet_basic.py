"""SegNet-Basic (Badrinarayanan et al. 2017, https://arxiv.org/abs/1511.00561, section 3.1).

    ./run.sh --config=configs/segnet_basic.py                                # on a CPU
    ./run.sh --config=configs/segnet_basic.py:camvid --config.data.dir=PATH  # full size, for a GPU

The paper weighs classes by `--config.loss.class_weights=median_frequency` and takes SGD with
`--config.optimizer.name=sgd --config.optimizer.learning_rate=0.1
--config.optimizer.schedule=constant`.

On the generated scenes: mIoU 0.76 on val, 8 minutes on two CPU cores.
"""

from configs import common


def get_config(dataset: str = 'shapes'):
  config = common.get_config(dataset)
  config.name = 'segnet_basic'
  config.model.name = 'segnet_basic'
  config.model.width = 24
  config.model.norm = 'batch'  # batch | group | none
  config.model.upsampling = 'max_unpool'  # max_unpool|nearest|bed_of_nails|bilinear|transposed
  config.optimizer.learning_rate = 4e-3
  config.optimizer.warmup_steps = 30
  if dataset == 'shapes':
    config.train.num_steps = 900
    config.train.eval_every = 300
    config.train.checkpoint_every = 300
  elif dataset == 'camvid':
    config.dtype = 'bfloat16'
    config.model.width = 64
    config.optimizer.learning_rate = 2e-3
    config.train.num_steps = 6000
  elif dataset != 'folder':
    config.model.width = 64
    config.optimizer.learning_rate = 2e-3
    config.train.num_steps = 20000
    config.train.eval_every = 2000
  return config
