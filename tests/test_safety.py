"""What is read is data and never code, and nothing listens to other machines."""

import ast
import json
import pickle
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path

import h5py
import numpy as np
import psutil
import pytest
from distributed import get_client

import hypodask
from hypodask.cluster import each
from hypodask.dataset import assemble, finalise, open_results
from hypodask.errors import ModelError, ResultsError, StoreError
from hypodask.grid import Grid
from hypodask.network.weights import load_weights
from hypodask.scan import Scan
from hypodask.segmentation.keras_import import import_hypothalamus_seg
from hypodask.store import read_stored_scan, write_scan
from hypodask.training.preparation import load_head

PACKAGE = Path(hypodask.__file__).parent
CODE_LOADERS = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "torch", "keras", "tensorflow", "yaml"}
CALLS_THAT_RUN = {"eval", "exec", "compile", "__import__", "read_pickle", "unsafe_load", "system", "popen"}


class Trap:
    """Whoever unpickles this leaves a file behind."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[Path]]:
        return Path.touch, (self.mark,)


@pytest.fixture
def trap(tmp_path: Path) -> Trap:
    """A trap that was shown to work, and is set again."""
    trap = Trap(tmp_path / "sprung")
    pickle.loads(pickle.dumps(trap))  # noqa: S301 - our own bytes
    trap.mark.unlink()
    return trap


def sources() -> dict[str, ast.Module]:
    return {
        path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
        for path in PACKAGE.rglob("*.py")
    }


def imported(tree: ast.Module) -> set[str]:
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return {name.partition(".")[0] for name in names}


def called(tree: ast.Module) -> set[str]:
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    # By the last part of a dotted name, but jax.jit(...).compile and re.compile are no built-ins.
    plain = {node.func.id for node in calls if isinstance(node.func, ast.Name)}
    dotted = {node.func.attr for node in calls if isinstance(node.func, ast.Attribute)} - {"compile"}
    return plain | dotted | {f"{keyword.arg}=" for node in calls for keyword in node.keywords}


def test_no_module_imports_or_calls_what_loads_code_from_data() -> None:
    trees = sources()
    assert len(trees) > 80
    assert {name: found for name, tree in trees.items() if (found := imported(tree) & CODE_LOADERS)} == {}
    forbidden = CALLS_THAT_RUN | {"allow_pickle=", "shell="}
    assert {name: found for name, tree in trees.items() if (found := called(tree) & forbidden)} == {}


def test_a_pickle_in_an_npz_is_not_loaded(tmp_path: Path, trap: Trap) -> None:
    path = tmp_path / "sub-01.npz"
    np.savez(path, image=np.array([trap], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle"):
        load_head(str(path))
    assert not trap.mark.exists()


def test_a_pickle_instead_of_weights_is_not_loaded(tmp_path: Path, trap: Trap) -> None:
    for name, load in (("a.safetensors", load_weights), ("a.h5", import_hypothalamus_seg)):
        path = tmp_path / name
        path.write_bytes(pickle.dumps(trap))
        with pytest.raises(ModelError, match="cannot be read"):
            load(path)
    assert not trap.mark.exists()


def test_a_pickle_inside_published_weights_is_not_loaded(tmp_path: Path, trap: Trap) -> None:
    layer = "unet_conv_downarm_0_0"
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file[f"{layer}/{layer}/kernel:0"] = np.void(pickle.dumps(trap))
    with pytest.raises(ModelError, match="first convolution"):
        import_hypothalamus_seg(tmp_path / "a.h5")
    assert not trap.mark.exists()


def older_zarr(store: Path, trap: Trap) -> None:
    """An array of Zarr 2, whose filters may say that chunks are pickles."""
    array = {"zarr_format": 2, "shape": [1], "chunks": [1], "dtype": "|O", "compressor": None, "fill_value": ""}
    array |= {"order": "C", "filters": [{"id": "vlen-utf8"}, {"id": "pickle", "protocol": 4}]}
    metadata = {".zgroup": {"zarr_format": 2}, "a/.zarray": array, "a/.zattrs": {"_ARRAY_DIMENSIONS": ["scan"]}}
    (store / "a").mkdir(parents=True)
    for name, content in metadata.items():
        (store / name).write_text(json.dumps(content))
    (store / ".zmetadata").write_text(json.dumps({"zarr_consolidated_format": 1, "metadata": metadata}))
    (store / "a" / "0").write_bytes(pickle.dumps(trap))


def test_results_that_hold_pickles_are_refused(tmp_path: Path, trap: Trap) -> None:
    older_zarr(tmp_path / "results-1.zarr", trap)
    (tmp_path / "results.json").write_text('{"results": "results-1.zarr"}')
    with pytest.raises(ResultsError, match="missing or damaged"):
        open_results(str(tmp_path))
    assert not trap.mark.exists()


def with_codec(path: Path, codec: str) -> None:
    metadata = json.loads(path.read_text())
    metadata["codecs"] = [{"name": codec, "configuration": {"id": "pickle"}}]
    path.write_text(json.dumps(metadata))


@pytest.mark.parametrize("codec", ["numcodecs.pickle", "pickle"])
def test_a_store_whose_codec_is_a_pickle_is_refused(tmp_path: Path, trap: Trap, codec: str) -> None:
    url = str(tmp_path / "sub-01.nii.zarr")
    write_scan(url, Scan(np.ones((4, 4, 4), np.uint8), Grid((4, 4, 4), np.eye(4), "scanner")))
    with_codec(Path(url, "0", "zarr.json"), codec)
    Path(url, "0", "c", "0", "0", "0").write_bytes(pickle.dumps(trap))
    with pytest.raises(StoreError, match="damaged"):
        read_stored_scan(url)
    assert not trap.mark.exists()


def test_results_outside_the_output_are_not_opened(tmp_path: Path) -> None:
    finalise(str(tmp_path / "other"), assemble(hypodask.Cohort.from_files([__file__]).table, []))
    name = json.loads((tmp_path / "other" / "results.json").read_text())["results"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "results.json").write_text(json.dumps({"results": f"../other/{name}"}))
    with pytest.raises(ResultsError, match="no results of ours"):
        open_results(str(tmp_path / "out"))


def listening(_: int) -> tuple[set[str], int]:
    """Addresses at which client, scheduler and this worker listen, and what a browser is told of a dashboard."""
    here = psutil.Process()
    connections = [one for process in (here, here.parent()) if process for one in process.net_connections("inet")]
    port = get_client().scheduler_info()["services"]["dashboard"]
    browser = HTTPConnection("127.0.0.1", port, timeout=30)
    browser.request("GET", "/status")
    status = browser.getresponse().status
    browser.close()
    return {one.laddr.ip for one in connections if one.status == psutil.CONN_LISTEN}, status


def test_workers_started_here_listen_to_this_machine_alone_and_show_no_dashboard() -> None:
    (outcome,) = each(listening, [0], workers=1)
    assert outcome.get() == ({"127.0.0.1"}, 404)
