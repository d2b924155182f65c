"""Pictures without a disk: batches by number, and a stream without end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from handloop.synth.picture import PictureBatch
from handloop.synth.render import Renderer


def render_batch(renderer: Renderer, indices: Sequence[int]) -> PictureBatch:
    """The pictures of the given numbers, which need not be consecutive.

        renderer = Renderer(load_hand(), PictureOptions(size=224, seed=1))
        batch = render_batch(renderer, range(64))

    Raises:
        InputError: no numbers.
    """
    return PictureBatch.stack([renderer.render(index) for index in indices])


def stream_batches(renderer: Renderer, batch_size: int, first: int = 0, step: int = 1) -> Iterator[PictureBatch]:
    """Batches without end: pictures first, first + step, first + 2 step, ...

    Args:
        renderer: its seed and options decide the pictures.
        batch_size: pictures in a batch.
        first: number of the first picture; in a data loader, the worker's.
        step: distance of the numbers; in a data loader, how many workers there are, so that none renders another's.
    """
    while True:
        yield render_batch(renderer, range(first, first + batch_size * step, step))
        first += batch_size * step
