"""int8 files from float ONNX files: what is quantized, with which ranges, and at what cost.

`lower` is the way in. A float file is rewritten (`rewrite`), read as a graph of units (`units`),
its channels are scaled (`equalize`), and it is observed on calibration items (`calibration`,
`deploy.observe`). Ranges and weights follow (`ranges`, `weights`, `rounding`, `correct`), and the
QDQ file (`write`): standard ONNX, which onnxruntime fuses into its integer kernels. What stays
float is decided by `settings`, by measured seconds (`placement`) and by what int8 loses (`bound`).
`uncalibrated` needs no items; `simulated` rounds in training as the file will.
"""
