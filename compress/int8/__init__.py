"""int8 files from float ONNX files: what is quantized, with which ranges, and at what cost.

`lower` is the way in. A float file is read as a graph of units (`units`), observed on calibration
items (`observe`), given ranges and weights (`ranges`, `weights`), and written as a QDQ file
(`write`): standard ONNX, which onnxruntime fuses into its integer kernels.
"""
