"""FCN-16s (Long et al. 2015, https://arxiv.org/abs/1411.4038): 32s with the scores of pool4.

At once, or in stages as in the paper: from a finished FCN-32s, at a lower learning rate.

    ./run.sh --config=configs/fcn16s.py
    ./run.sh --config=configs/fcn32s.py && ./run.sh --config=configs/fcn16s.py \
        --workdir=runs/fcn16s-staged --config.model.pretrained=runs/fcn32s-shapes \
        --config.optimizer.learning_rate=5e-4 --config.train.num_steps=200

The paper lowers the rate of its SGD by a factor of 100. CamVid and other datasets as for
`configs/fcn32s.py`.

On the generated scenes: mIoU 0.78 on val, 4 minutes on two CPU cores.
"""

from configs import fcn32s


def get_config(dataset: str = 'shapes'):
  config = fcn32s.get_config(dataset)
  config.name = 'fcn16s'
  config.model.head = '16s'
  return config
