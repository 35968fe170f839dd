"""ONNX files: write them from a traced program, run them with ONNX Runtime, quantize them to 8-bit integers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import onnxscript  # noqa: F401 - torch's exporter needs it, and would fail without it only after minutes
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor
from torch.export import ExportedProgram

from ddsm_zoo.export.program import ExportError, Run

OPSET = 18
INPUT = "image"


def write_onnx(program: ExportedProgram, path: Path, output: str, metadata: Mapping[str, str]) -> None:
    """Write the program as one file with the input ``image``, an output of that name and the metadata.

    Raises ExportError for operations that ONNX cannot express.
    """
    try:
        converted: Any = torch.onnx.export(
            program, opset_version=OPSET, input_names=[INPUT], output_names=[output], dynamo=True, verbose=False
        )
    except RuntimeError as error:
        raise ExportError(f"the model cannot be exported to ONNX: {' '.join(str(error).split())[:300]}") from error
    for node in converted.model.graph.all_nodes():
        node.metadata_props.clear()  # it holds source code lines and paths
    converted.model.metadata_props.update(metadata)
    converted.save(path, external_data=False)


def open_onnx(path: Path) -> Run:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(image: Tensor) -> Tensor:
        (out,) = session.run(None, {INPUT: image.numpy()})
        return torch.from_numpy(out)

    return run


def quantize(source: Path, path: Path, images: Iterable[Tensor], exact: Sequence[str] = ()) -> None:
    """Quantize the convolutions of the model in ``source`` to 8 bits. The ranges are calibrated on ``images``.

    Convolutions whose weight names contain one of ``exact`` are not quantized.
    """
    prepared = source.with_name(f"prepared-{source.name}")
    quant_pre_process(source, prepared, skip_symbolic_shape=True)
    nodes = (node for node in onnx.load(prepared).graph.node if node.op_type == "Conv")
    kept = [node.name for node in nodes if any(word in node.input[1] for word in exact)]
    quantize_static(
        prepared,
        path,
        _Images(images),
        quant_format=QuantFormat.QDQ,
        # with the activations, so that values they cut off do not widen the range of the convolution before them
        op_types_to_quantize=["Conv", "Clip", "Relu"],
        nodes_to_exclude=kept,
        per_channel=True,
        reduce_range=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


class _Images(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
    def __init__(self, images: Iterable[Tensor]) -> None:
        self.images: Iterator[Tensor] = iter(images)

    def get_next(self) -> dict[str, Any] | None:
        image = next(self.images, None)
        return None if image is None else {INPUT: image.numpy()}
