"""Makes folders of experiments, as the plotters read them."""

import json

import torch

METRICS = "tensor_rank_and_reconstruction_metrics.json"
TARGET = torch.arange(8.0).view(2, 2, 2)
MATRIX_RUN = {"depth": 3, "lr": 1e-3, "init_alpha": 0.1, "status": {"finished": True}}
ONE_VALUE = {"sse_loss_div_2": ([9], [1.0]), "e2e_0_0_value": ([9], [1.0])}


def make_tracker(epochs, values, as_lists=False):
    kind = list if as_lists else lambda numbers: torch.tensor(list(numbers))
    return {"epochs_with_values": kind(epochs), "epoch_values": kind(values)}


def make_run(path, metrics, **parameters):
    """Creates the folder of a finished run with a checkpoint of these metrics."""
    (path / "checkpoints").mkdir(parents=True)
    trackers = {name: make_tracker(epochs, values) for name, (epochs, values) in metrics.items()}
    torch.save({"train_evaluator": {}, "val_evaluator": trackers}, path / "checkpoints/2020_epoch_9.pt")
    (path / "run_params.json").write_text(json.dumps({"status": {"finished": True}, **parameters}))


def make_matrix_run(path, metrics=ONE_VALUE, **parameters):
    """Creates the folder of a matrix factorization run."""
    make_run(path, metrics, **{**MATRIX_RUN, **parameters})


def make_tensor_run(directory, name, parameters=None, ranks=(1, 9, 1), errors=(1e-3, 0.5), target=TARGET):
    """Creates the folder of a finished tensor completion run, and returns its path."""
    folder = directory / name
    folder.mkdir(parents=True)
    metrics = {"model_reconstruction_error": errors[0], "memorizer_reconstruction_error": errors[1]}
    if ranks:
        metrics |= {f"{n}_tensor_rank": r for n, r in zip(("model", "memorizer", "targets"), ranks, strict=True)}
    (folder / METRICS).write_text(json.dumps(metrics))
    if parameters is not None:
        (folder / "run_params.json").write_text(json.dumps(parameters))
    if target is not None:
        torch.save(target, folder / "targets_tensor.pt")
    return folder


def texts_of(legend):
    return [text.get_text() for text in legend.get_texts()]
