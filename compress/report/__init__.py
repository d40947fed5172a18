"""Tables and figures: pure functions of rows, which know nothing of torch or ONNX."""
