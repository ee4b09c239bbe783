"""Trained weights in the forms of other programs: timm and the Hub, ONNX, torch.export."""
