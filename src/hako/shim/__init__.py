"""``containerd-shim-hako-v2``: what containerd and CRI-O run a container with, over ttrpc."""
