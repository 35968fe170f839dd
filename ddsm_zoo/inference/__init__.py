"""Images and videos in, segmentations out."""
