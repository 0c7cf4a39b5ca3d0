"""What executes a region's code. An engine file offers `open(artifact, region, form, device) -> callable(list of tensors)`."""
