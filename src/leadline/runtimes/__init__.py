"""Runtimes: one adapter per engine, behind the contract of `base.py`."""

# Name -> the module with its adapter, which is imported when it is asked for: the help lists names alone.
RUNTIMES = {
    "torch": "leadline.runtimes.torch_eager",
    "torch-compile": "leadline.runtimes.torch_compile",
    "onnxruntime": "leadline.runtimes.onnx_runtime",
    "openvino": "leadline.runtimes.open_vino",
    "coreml": "leadline.runtimes.core_ml",
    "tensorrt": "leadline.runtimes.tensor_rt",
    "litert": "leadline.runtimes.lite_rt",
    "executorch": "leadline.runtimes.execu_torch",
    "ncnn": "leadline.runtimes.ncnn_engine",
    "tvm": "leadline.runtimes.tvm_relax",
    "web": "leadline.runtimes.web",
}
