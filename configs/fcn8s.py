"""FCN-8s (Long et al. 2015, https://arxiv.org/abs/1411.4038): 16s with the scores of pool3.

At once (Shelhamer et al. 2017, https://arxiv.org/abs/1605.06211), or in stages as in the paper of
2015: from a finished FCN-16s, at a lower learning rate.

    ./run.sh --config=configs/fcn8s.py                                # generated scenes, on a CPU
    ./run.sh --config=configs/fcn8s.py:camvid --config.data.dir=PATH  # full size, for a GPU
    ./run.sh --config=configs/fcn8s.py --workdir=runs/fcn8s-staged \
        --config.model.pretrained=runs/fcn16s-staged \
        --config.optimizer.learning_rate=5e-4 --config.train.num_steps=200

CamVid on a CPU and other datasets as for `configs/fcn32s.py`, whose learning rates it has.

On the generated scenes: mIoU 0.80 on val, 4 minutes on two CPU cores.
"""

from configs import fcn32s


def get_config(dataset: str = 'shapes'):
  config = fcn32s.get_config(dataset)
  config.name = 'fcn8s'
  config.model.head = '8s'
  return config
