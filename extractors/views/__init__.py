"""Weak, strong and clean views of a clip: which frames, which augmentations, and their pixels.

``draws`` seeds, ``sampling`` picks frames, ``plan`` decides everything random about a view of frames; ``geometry``,
``operations`` and ``pitch`` hold the arithmetic; ``video``, ``flow`` and ``audio`` render. A view depends on the clip,
the view and the view seed, never on what else is rendered with it.
"""
