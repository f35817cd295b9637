"""The segmentation network: a timm encoder and a DeepLabv3+ decoder with two seams."""
