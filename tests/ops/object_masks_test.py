import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from seg_jax.ops import object_masks


class PasteTest(parameterized.TestCase):
  def test_equals_interpolation_by_pytorch_box_by_box(self):
    """As torchvision's `paste_masks_in_image` does it."""
    try:
      import torch
    except ImportError:
      self.skipTest('PyTorch is not installed')
    rng = np.random.default_rng(0)
    boxes = np.float32(
      [(2.3, 3.9, 30.1, 17.2), (-5, -7.5, 12, 60), (10, 10, 10.4, 11), (0, 0, 0, 0), (4, 2, 44, 50)]
    )
    masks = rng.uniform(size=(len(boxes), 28, 28)).astype(np.float32)
    size = (40, 48)
    pasted = jax.jit(object_masks.paste, static_argnums=2)(masks, boxes, size)
    for mask, box, result in zip(masks, boxes, np.asarray(pasted), strict=True):
      half, centre = (box[2:] - box[:2]) / 2 * np.float32(30 / 28), (box[2:] + box[:2]) / 2
      y0, x0, y1, x1 = (int(v) for v in (*(centre - half), *(centre + half)))
      height, width = max(y1 - y0 + 1, 1), max(x1 - x0 + 1, 1)
      framed = torch.nn.functional.pad(torch.tensor(mask)[None, None], (1, 1, 1, 1))
      resized = torch.nn.functional.interpolate(
        framed, (height, width), mode='bilinear', align_corners=False
      )[0, 0].numpy()
      expected = np.zeros(size, np.float32)
      for i, j in np.ndindex(height, width):
        if 0 <= y0 + i < size[0] and 0 <= x0 + j < size[1]:
          expected[y0 + i, x0 + j] = resized[i, j]
      np.testing.assert_allclose(result, expected, atol=1e-5)


class CropTest(absltest.TestCase):
  def test_cells_hold_the_share_that_is_covered(self):
    """Where cells are whole pixels: the mean over them."""
    rng = np.random.default_rng(0)
    masks = rng.random((3, 12, 16)) < 0.5
    boxes = jnp.float32([(0, 0, 12, 16), (4, 8, 10, 16), (2, 2, 8, 6)])
    objects = jnp.array([2, 0, 1], jnp.int32)
    cells = object_masks.crop(masks, objects, boxes, 2)
    whole = object_masks.crop(
      masks, objects, boxes, 2, samples=24
    )  # often enough to see every pixel
    for k, (y0, x0, y1, x1) in enumerate(np.asarray(boxes, int)):
      inside = masks[objects[k], y0:y1, x0:x1]
      parts = inside.reshape(2, (y1 - y0) // 2, 2, (x1 - x0) // 2)
      np.testing.assert_allclose(whole[k], parts.mean((1, 3)), atol=1e-6)
    self.assertTrue(set(np.unique(cells)) <= {0, 0.25, 0.5, 0.75, 1})

  def test_what_is_pasted_is_cropped_again(self):
    """A disk, by way of the picture."""
    y, x = np.mgrid[:28, :28] - 13.5
    disk = (np.hypot(y, x) < 10).astype(np.float32)
    boxes = jnp.float32([[10, 20, 94, 132]])
    pasted = object_masks.paste(disk[None], boxes, (120, 160)) > 0.5
    again = object_masks.crop(pasted, jnp.zeros(1, jnp.int32), boxes, 28)[0] > 0.5
    self.assertGreater(np.mean(again == (disk > 0.5)), 0.97)


class OnTopTest(absltest.TestCase):
  def test_is_the_lowest_or_the_highest_number(self):
    masks = np.random.default_rng(0).random((2, 4, 5, 6)) < 0.3
    first, last = object_masks.first(masks), object_masks.last(masks)
    for n, y, x in np.ndindex(2, 5, 6):
      covering = [k + 1 for k in range(4) if masks[n, k, y, x]] or [0]
      self.assertEqual(int(first[n, y, x]), covering[0])
      self.assertEqual(int(last[n, y, x]), covering[-1])


class OverlapsTest(absltest.TestCase):
  def test_are_counted(self):
    rng = np.random.default_rng(0)
    a, b = rng.random((4, 9, 11)) < 0.4, rng.random((3, 9, 11)) < 0.6
    shared, of_a, of_b = object_masks.overlaps(a, b)
    for i, j in np.ndindex(4, 3):
      self.assertEqual(
        int(shared[i, j]), sum(p and q for p, q in zip(a[i].flat, b[j].flat, strict=True))
      )
    np.testing.assert_array_equal(of_a, [sum(mask.flat) for mask in a])
    np.testing.assert_array_equal(of_b, [sum(mask.flat) for mask in b])


if __name__ == '__main__':
  absltest.main()
