"""FCN-AlexNet (Long et al. 2015, https://arxiv.org/abs/1411.4038), FCN-32s on the net of 2012.

    ./run.sh --config=configs/fcn_alexnet.py                                # on a CPU
    ./run.sh --config=configs/fcn_alexnet.py:camvid --config.data.dir=PATH  # full size, for a GPU

The paper starts from AlexNet trained on ImageNet, with its local response normalisation and without
batch norm.

On the generated scenes: mIoU 0.71 on val, 4 minutes on two CPU cores.
"""

from configs import fcn32s


def get_config(dataset: str = 'shapes'):
  config = fcn32s.get_config(dataset)
  config.name = 'fcn_alexnet'
  config.model.backbone = 'alexnet'
  if dataset == 'shapes':
    config.model.width = 16  # 24 channels in conv1, 64 or 96 in the others
    config.train.num_steps = 700
    config.train.eval_every = 350
    config.train.checkpoint_every = 350
  return config
