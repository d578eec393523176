"""The lattice on natural pictures, against the exact filter and against pydensecrf."""

import functools
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from PIL import Image

from seg_jax.ops import mean_field

VOC = Path(__file__).resolve().parents[3] / 'shared/data/pascal_voc/VOCdevkit/VOC2012'


class NaturalPicturesTest(parameterized.TestCase):
  @parameterized.parameters(((80.0, 13.0), 0.05), ((160.0, 3.0), 0.08))
  def test_lattice_is_near_the_exact_filter(self, thetas, bound):
    """The mean error as a part of the mean, at the usual bandwidths and at the paper's."""
    crops = np.concatenate(list(natural_crops(3)))
    stripes = np.eye(4, dtype=np.float32)[np.indices((40, 40)).sum(0) // 12 % 4]
    x = jnp.asarray(np.stack(3 * [stripes]))

    @functools.partial(jax.jit, static_argnums=1)
    def appearance(picture, form):
      return mean_field.kernels(picture, *thetas, 3.0, form)[0](x)

    lattice, exact = (appearance(crops, form) for form in (mean_field.lattice, mean_field.exact))
    errors = jnp.abs(lattice - exact).mean((1, 2, 3)) / exact.mean((1, 2, 3))
    self.assertLess(float(errors.max()), bound)
    self.assertGreater(float(errors.min()), 1e-3)  # it is another filter

  @pytest.mark.slow
  def test_labels_are_those_of_pydensecrf(self):
    """On ten pictures, whose true labels are made coarse by 16 pixels and smeared, as a net's."""
    if importlib.util.find_spec('pydensecrf') is None:
      self.skipTest('pydensecrf is not installed')
    agreement, changed = [], []
    for name in natural_pictures(10):
      picture = np.array(voc('JPEGImages', f'{name}.jpg').convert('RGB'))
      label = np.asarray(voc('SegmentationClass', f'{name}.png')).astype(np.int32)
      probabilities = coarse(np.where(label == 255, 0, label), 21)
      ours = labels_by_lattice(np.log(probabilities)[None], picture[None].astype(np.float32))
      theirs = labels_by_pydensecrf(probabilities, picture)
      agreement.append((np.asarray(ours)[0] == theirs).mean())
      changed.append((theirs != probabilities.argmax(-1)).mean())
    self.assertGreater(np.mean(changed), 0.01)
    self.assertGreater(min(agreement), 0.99)


def coarse(label, num_classes, factor=16):
  """Probabilities [H, W, K] from every 16th label, enlarged bilinearly, never below 1 %."""
  height, width = label.shape
  small = np.eye(num_classes, dtype=np.float32)[label[factor // 2 :: factor, factor // 2 :: factor]]
  large = jax.image.resize(jnp.asarray(small), (height, width, num_classes), 'linear')
  large = np.asarray(large) + 0.01
  return large / large.sum(-1, keepdims=True)


@jax.jit
def labels_by_lattice(unaries, picture):
  kernels = mean_field.kernels(picture, 80.0, 13.0, 3.0, mean_field.lattice)
  logits = mean_field.mean_field(
    unaries, kernels, (10.0, 3.0), mean_field.potts(unaries.shape[-1]), 10
  )
  return jnp.argmax(logits, -1)


def labels_by_pydensecrf(probabilities, picture):
  import pydensecrf.densecrf as dcrf

  height, width, num_classes = probabilities.shape
  crf = dcrf.DenseCRF2D(width, height, num_classes)
  energies = -np.log(probabilities).reshape(-1, num_classes).T
  crf.setUnaryEnergy(np.ascontiguousarray(energies, np.float32))
  crf.addPairwiseBilateral(sxy=80, srgb=13, rgbim=picture, compat=10)
  crf.addPairwiseGaussian(sxy=3, compat=3)
  marginals = np.array(crf.inference(10))
  return marginals.argmax(0).reshape(height, width)


def voc(folder, name):
  return Image.open(VOC / folder / name)


def natural_pictures(count):
  """The names of pictures with labels; skips the test where they are absent."""
  paths = sorted((VOC / 'SegmentationClass').glob('*.png'))[:count]
  if len(paths) < count:
    raise pytest.skip.Exception(f'{VOC} is not there')
  return [path.stem for path in paths]


def natural_crops(count):
  for name in natural_pictures(count):
    picture = np.asarray(voc('JPEGImages', f'{name}.jpg').convert('RGB'), np.float32)
    top, left = ((n - 40) // 2 for n in picture.shape[:2])
    yield picture[None, top : top + 40, left : left + 40]


if __name__ == '__main__':
  absltest.main()
