"""The feature cache: crash-safe Zarr groups of frozen features with a record for every clip."""
