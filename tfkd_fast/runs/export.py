"""A finished student in the formats that other programs load. Inference needs nothing of this package."""

import io
from pathlib import Path

import torch

from tfkd_fast.errors import UserError
from tfkd_fast.files import write_bytes
from tfkd_fast.runs.folder import RunFolder
from tfkd_fast.runs.student import read_student


def export_student(out: Path) -> list[Path]:
    """Write student.pt2 (`torch.export`) and student.onnx beside student.safetensors; returns the three paths.

    The network takes normalised images (B,C,H,W) float32, any B, and gives logits (B, classes). Mean, standard
    deviation and class names stand in the header of student.safetensors.
    """
    folder = RunFolder(out)
    folder.require_run()
    with folder.lock():  # also while the student is read, which another run might replace
        header, model = read_student(folder.student)  # the data set need not be there
        example = torch.zeros(2, *header.image_shape)
        shapes = ({0: torch.export.Dim("batch")},)
        program = torch.export.export(model, (example,), dynamic_shapes=shapes)
        content = io.BytesIO()
        torch.export.save(program, content)
        write_bytes(folder.archive, content.getvalue())
        try:
            exported = torch.onnx.export(program, verbose=False)
        except ImportError:
            raise UserError(f"wrote {folder.archive}, but ONNX needs more: pip install 'tfkd-fast[export]'") from None
        assert exported is not None
        onnx = exported.model_proto.SerializeToString()
        write_bytes(folder.onnx, onnx)
    return [folder.student, folder.archive, folder.onnx]
