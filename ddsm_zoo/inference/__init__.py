"""Inference on images, folders and videos."""
