"""Keypoint and camera files in: OpenPose, MediaPipe, npz, CSV."""

from handloop.formats.camera_file import read_camera as read_camera
from handloop.formats.options import Problem as Problem
from handloop.formats.options import ReadOptions as ReadOptions
from handloop.formats.options import ReadResult as ReadResult
from handloop.formats.read import FORMATS as FORMATS
from handloop.formats.read import read_keypoints as read_keypoints
