"""Dialtone builds cloud images for VoIP appliances and proves that they work."""

__version__ = "0.1.0"
