"""Rendered pictures of hands with exact labels, without limit."""

from handloop.synth.batch import render_batch as render_batch
from handloop.synth.batch import stream_batches as stream_batches
from handloop.synth.picture import Picture as Picture
from handloop.synth.picture import PictureBatch as PictureBatch
from handloop.synth.picture import PictureOptions as PictureOptions
from handloop.synth.picture import Segment as Segment
from handloop.synth.picture import Visibility as Visibility
from handloop.synth.render import Renderer as Renderer
from handloop.synth.shards import read_pictures as read_pictures
