"""What executes a region's code. An engine file offers `open(artifact, region, form) -> callable(list of tensors)`."""
