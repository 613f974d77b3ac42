"""pipe: cached frozen features and stacked lightweight heads for multimodal video with few labels."""

__version__ = "0.1.0"
