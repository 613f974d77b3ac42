"""Frozen backbones and what stands before them: views, spectrograms, optical flow. Tensors in, tensors out."""
