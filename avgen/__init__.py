"""avgen: training, sampling and alignment of joint audio-video generators."""

__version__ = "0.1.0"
