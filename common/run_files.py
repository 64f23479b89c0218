"""Reading an experiment's folder, which may be of this project or of the original code, damaged, or something else."""

import math
from pathlib import Path
from typing import Any

from common.files import load_json

_KINDS = {
    str: ("experiment_name", "dataset_path", "dtype", "engine", "weight_init_type", "trainer_checkpoint"),
    bool: ("use_balanced_init", "enforce_pos_det", "enforce_neg_det", "use_adaptive_lr", "store_checkpoints"),
    int: ("num_samples", "random_seed", "epochs", "validate_every", "depth"),
    float: ("lr", "init_alpha", "init_std", "stop_on_zero_loss_tol", "tensor_rank_tol"),
    dict: ("provenance", "status"),
}
_LARGEST = 10**9
_WORDS = {str: "text", bool: "true or false", int: "an integer", float: "a finite number", dict: "a dictionary"}


def run_parameters(folder: Path) -> dict[str, Any]:
    """The content of a folder's run_params.json; the parameters that readers look at are of the types they should be,
    or missing, or None.

    Raises FileNotFoundError where there is none, and ValueError that says what is wrong.
    """
    content = load_json(folder / "run_params.json")
    for kind, names in _KINDS.items():
        for name in names:
            if not _is(content.get(name), kind):
                raise ValueError(f"damaged: {name} in run_params.json is not {_WORDS[kind]}")
    for name, least in (("depth", 1), ("num_samples", 1), ("init_std", 0)):
        if content.get(name) is not None and not least <= content[name] <= _LARGEST:
            raise ValueError(f"damaged: {name} in run_params.json is {content[name]}")
    sweep = (content.get("provenance") or {}).get("sweep")
    if not _is(sweep, dict) or not _is((sweep or {}).get("start_time"), str):
        raise ValueError("damaged: provenance in run_params.json does not say which sweep it is of")
    if not _is((sweep or {}).get("experiment"), int):
        raise ValueError("damaged: provenance in run_params.json does not say which experiment it is")
    entry = content.get("unobserved_entry")
    if entry is not None and not (
        isinstance(entry, list) and len(entry) == 2 and all(type(each) is int and each >= 0 for each in entry)
    ):
        raise ValueError("damaged: unobserved_entry in run_params.json is no pair of integers")
    return content


def stop_reason(parameters: dict[str, Any]) -> str | None:
    """Why a run ended, as its run_params.json has it; None where it does not say."""
    return (parameters.get("status") or {}).get("stop_reason")


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint with the largest epoch in an experiment's folder, None where there is none."""
    epochs = {}
    for checkpoint in (folder / "checkpoints").glob("[!.]*_epoch_*.pt"):
        number = checkpoint.stem.rpartition("_")[2]
        if number.isdecimal():
            epochs[int(number)] = checkpoint
    return epochs[max(epochs)] if epochs else None


def is_number(value: Any) -> bool:
    """Whether it is a finite number, of a size that can be computed with."""
    return _is_integer(value) or (type(value) is float and math.isfinite(value))


def _is_integer(value: Any) -> bool:
    return type(value) is int and abs(value) < 2**63


def _is(value: Any, kind: type) -> bool:
    if kind is float or kind is int:
        return value is None or (is_number(value) if kind is float else _is_integer(value))
    return value is None or isinstance(value, kind)
