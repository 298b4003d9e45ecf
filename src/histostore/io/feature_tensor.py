"""A ``.pt`` file of one tensor. Anything that torch would have to run code for is refused."""

from __future__ import annotations

import pickle
from io import BytesIO
from typing import TYPE_CHECKING, Any

import torch

from histostore.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


def read_tensor(path: Path) -> NDArray[Any]:
    """Return the tensor of a file; bfloat16 becomes float32, which holds every value of it.

    Raises
    ------
    DataError
        The file is cut short, holds something else than one tensor, or is a pickle that could run code.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        text = f"{path} is a pickle of more than tensors, which may run code when it is read: refused"
        raise DataError(f"{text}; save the features as a tensor, h5 or npz") from None
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, AttributeError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path} is no whole torch file ({said}); copy it again") from None
    if not isinstance(found, torch.Tensor) or found.layout != torch.strided:
        raise DataError(f"{path} holds a {type(found).__name__}, not one dense tensor of (tiles, dimensions)")
    found = found.detach()
    values: NDArray[Any] = (found.float() if found.dtype == torch.bfloat16 else found).numpy()
    return values


def tensor_bytes(values: NDArray[Any]) -> bytes:
    """Return the file of one tensor."""
    out = BytesIO()
    torch.save(torch.from_numpy(values.copy()), out)
    return out.getvalue()
