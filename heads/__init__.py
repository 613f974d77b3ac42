"""Lightweight trainable heads on frozen features; every tensor carries a leading ``runs`` axis."""
