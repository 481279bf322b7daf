"""OpenCV, for all of this room: imported here and nowhere else, with one thread and without OpenCL.

The loader's workers are forked (datasets/workers.py), and a pool of threads does not survive a fork: so OpenCV is told to have none.
`from datasets.views.opencv import cv2` is how the others take it.
"""

import cv2

cv2.setNumThreads(0)
cv2.ocl.setUseOpenCL(False)

__all__ = ["cv2"]
