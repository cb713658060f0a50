"""Makes torch_checkpoint/{zip,legacy}.pt beside this file: small tensors as PyTorch saves them.

For development only: `python tests/golden/make_torch_checkpoints.py` in an environment with torch;
the committed files were made with torch 2.13.0. The test knows what is in them.
"""

import collections
from pathlib import Path

import torch

FOLDER = Path(__file__).parent / "torch_checkpoint"


def make_tensors() -> dict[str, torch.Tensor]:
    """Every kind of number, and tensors that are not the whole of their storage in order."""
    base = torch.arange(6.0).reshape(2, 3)
    return collections.OrderedDict(
        base=base,
        transposed=base.T,
        column=base[:, 1],
        strided=base[1:, ::2],
        scalar=torch.tensor(2.5),
        empty=torch.zeros(0, 3),
        f16=torch.arange(5).half(),
        bf16=torch.arange(5).bfloat16(),
        f64=torch.arange(5).double(),
        i64=torch.arange(5) - 2**40,
        u8=torch.arange(5).to(torch.uint8),
        bool=torch.tensor([True, False, True]),
    )


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, is_zip in (("zip", True), ("legacy", False)):
        path = FOLDER / f"{name}.pt"
        torch.save(make_tensors(), path, _use_new_zipfile_serialization=is_zip)
