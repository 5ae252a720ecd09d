"""Files of weights: ours, arcface_torch's, MXNet's, and ONNX."""
