"""Timing on a GPU: modules in torch, files in onnxruntime, all rows in turns.

`device` holds every call to CUDA, `modules` and `files` make something to time of a module and of
an ONNX file, `turns` times them against each other. Torch is imported lazily throughout.
"""
