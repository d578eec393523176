import cv2
import numpy as np
from absl.testing import absltest, parameterized

from seg_jax.metrics import boundary


def example(shape, num_classes=4, seed=0):
  """Blobs of classes with some pixels ignored, and a prediction that is the truth moved."""
  rng = np.random.default_rng(seed)
  small = rng.integers(0, num_classes, (shape[0], -(-shape[1] // 8), -(-shape[2] // 8)))
  labels = small.repeat(8, 1).repeat(8, 2)[:, : shape[1], : shape[2]].astype(np.int32)
  predicted = np.roll(labels, (1, 2), (1, 2))
  labels[rng.random(shape) < 0.02] = 255
  return predicted, labels


def mask_to_boundary(mask: np.ndarray, width: int) -> np.ndarray:
  """As the paper's authors define it: the mask without its erosion, zeros around the picture."""
  padded = np.pad(mask.astype(np.uint8), 1)
  eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=width)
  return mask & ~eroded[1:-1, 1:-1].astype(bool)


class BoundaryTest(parameterized.TestCase):
  def test_the_width_is_two_percent_of_the_diagonal(self):
    self.assertEqual(boundary.distance((360, 480)), 12)  # of 600
    self.assertEqual(boundary.distance((20, 20)), 1)

  @parameterized.parameters(1, 2, 5, 12)
  def test_the_band_is_what_erosion_takes_from_each_class(self, width):
    _, labels = example((2, 37, 50))
    band = boundary.band(labels, width)
    for picture, found in zip(labels, band, strict=True):
      for c in range(4):
        expected = mask_to_boundary(picture == c, width)
        np.testing.assert_array_equal(np.asarray(found) & (picture == c), expected)

  def test_counts_equal_masks_one_by_one(self):
    predicted, labels = example((2, 130, 161))  # bands of 4 pixels
    counts = boundary.count(predicted, labels, 4)
    expected = np.zeros((3, 4), int)
    for guess, truth in zip(predicted, labels, strict=True):
      for c in range(4):
        near_truth = mask_to_boundary(truth == c, 4)
        near_guess = mask_to_boundary((guess == c) & (truth != 255), 4)
        expected[:, c] += [(near_truth & near_guess).sum(), near_truth.sum(), near_guess.sum()]
    np.testing.assert_array_equal(counts, expected)

  def test_a_perfect_prediction_has_equal_counts_and_nothing_labelled_none(self):
    _, labels = example((1, 40, 40))
    guess = np.where(labels == 255, 2, labels)
    both, truth, predicted = boundary.count(guess, labels, 4)
    np.testing.assert_array_equal(both, truth)
    np.testing.assert_array_equal(both, predicted)
    self.assertFalse(np.any(boundary.count(guess, np.full_like(labels, 255), 4)))

  def test_an_outline_one_pixel_off_costs_more_than_in_iou(self):
    labels = np.zeros((1, 100, 100), np.int32)
    labels[:, 20:80, 20:80] = 1
    guess = np.roll(labels, 1, 1)
    both, truth, predicted = np.asarray(boundary.count(guess, labels, 2))[:, 1]
    iou = np.sum((guess == 1) & (labels == 1)) / np.sum((guess == 1) | (labels == 1))
    self.assertGreater(iou, 0.96)
    self.assertLess(both / (truth + predicted - both), 0.8)


if __name__ == '__main__':
  absltest.main()
