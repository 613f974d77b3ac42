"""Miniatures of published data sets: their real layout and numbering, a few short clips of real media."""
