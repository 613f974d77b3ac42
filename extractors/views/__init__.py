"""Weak, strong and clean views of a clip: which frames, which augmentations, and their pixels.

``draws`` seeds, ``sampling`` picks frames, ``plan`` decides everything random about a view of frames; ``geometry``,
``operations``, ``paper`` and ``pitch`` hold the arithmetic; ``video``, ``flow`` and ``audio`` render, through ``batch``
many clips at once. A view depends on the clip, the view and the view seed, never on what else is rendered with it.

Views come in two variants: ``strict`` puts right what the papers' code does wrong, ``paper`` does it; the table is in
``paper``.
"""
