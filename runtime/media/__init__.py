"""Images and videos in: read, sampled, resized, cut into patches, laid out in text and given positions."""
