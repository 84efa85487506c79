"""The names in the ONNX files: those of the input and the output, and of the nodes that are replaced after export."""

IMAGES, LOGITS, BATCH = "images", "logits", "batch"
DOMAIN = "ptq_exp"
WEIGHT, QUANTIZER = f"{DOMAIN}::Weight", f"{DOMAIN}::FakeQuantize"
