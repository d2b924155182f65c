"""Keypoint and camera files in (OpenPose, MediaPipe, mmpose, COCO, npz, CSV), and data sets of pictures."""

from handloop.formats.camera_file import read_camera as read_camera
from handloop.formats.datasets.open import open_pictures as open_pictures
from handloop.formats.options import Problem as Problem
from handloop.formats.options import ReadOptions as ReadOptions
from handloop.formats.options import ReadResult as ReadResult
from handloop.formats.picture_set import PictureSample as PictureSample
from handloop.formats.picture_set import PictureSet as PictureSet
from handloop.formats.read import FORMATS as FORMATS
from handloop.formats.read import read_keypoints as read_keypoints
