"""The segmentation network: a timm encoder and a DeepLabv3+ decoder in two halves."""
