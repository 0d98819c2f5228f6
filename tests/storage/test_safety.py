"""What is read is data and never code, and nothing listens to other machines."""

import ast
import json
import pickle
import shutil
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path

import fsspec
import h5py
import numpy as np
import psutil
import pytest
from distributed import get_client

import hypodask
from hypodask.cluster import each
from hypodask.core.errors import LandmarkError, LocationError, ModelError, ResultsError, ScanError, StoreError
from hypodask.core.grid import Grid
from hypodask.files.digests import sha256_of
from hypodask.files.location import Location
from hypodask.networks.cards import ModelCard
from hypodask.networks.weights import load_weights, resolve_model
from hypodask.quality.reference import Reference
from hypodask.scan import Scan, read_scan
from hypodask.scan.landmarks import read_landmarks
from hypodask.segmentation.published import import_hypothalamus_seg
from hypodask.storage.store import mark_done, read_stored_scan, write_scan
from hypodask.study.cohort import Cohort
from hypodask.study.results import assemble, finalise, open_results
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


def linked_weights(path: Path, kind: str, elsewhere: Path) -> None:
    """Published weights whose first kernel lies in another file, by one of the ways that HDF5 has for it."""
    layer, shape = "unet_conv_downarm_0_0", (3, 3, 3, 1, 24)
    name = f"{layer}/{layer}/kernel:0"
    with h5py.File(elsewhere, "w") as other:
        other[name] = np.ones(shape, np.float32)
    with h5py.File(path, "w") as file:
        if kind == "external link to the layer":
            file[layer] = h5py.ExternalLink(str(elsewhere), layer)
        elif kind == "external link to the weights":
            file[name] = h5py.ExternalLink(str(elsewhere), name)
        elif kind == "external link to all":
            file["model_weights"] = h5py.ExternalLink(str(elsewhere), "/")
        elif kind == "soft link":
            file[name] = h5py.SoftLink("/anywhere")
        elif kind == "raw storage":
            storage = [(str(elsewhere), 0, 4 * int(np.prod(shape)))]
            file.create_dataset(name, shape, np.float32, external=storage)
        else:
            layout = h5py.VirtualLayout(shape, np.float32)
            layout[:] = h5py.VirtualSource(str(elsewhere), name, shape)
            file.create_virtual_dataset(name, layout)


@pytest.mark.parametrize(
    "kind",
    [
        *("external link to the layer", "external link to the weights", "external link to all"),
        *("soft link", "raw storage", "virtual"),
    ],
)
def test_published_weights_that_lie_in_another_file_are_not_read(tmp_path: Path, kind: str) -> None:
    linked_weights(tmp_path / "a.h5", kind, tmp_path / "secret.h5")
    with pytest.raises(ModelError, match=r"(is a link .*|lies in another file), which is not (followed|opened)"):
        import_hypothalamus_seg(tmp_path / "a.h5")


@pytest.mark.parametrize("name", ["hypothalamus", "icv", "icv-border", "commissures"])
def test_shipped_weights_that_are_not_those_of_their_card_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    resolve_model(name)
    shutil.copytree(PACKAGE / "weights", tmp_path / "weights")
    monkeypatch.setattr("hypodask.networks.weights.files", lambda package: tmp_path)
    weights = tmp_path / "weights" / f"{name}.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ModelError, match="is not the file that its card describes"):
        resolve_model(name)
    for card in ("[]", "null", "{", "[" * 200_000):
        weights.with_suffix(".json").write_text(card)
        with pytest.raises(ModelError, match=r"card of .* cannot be read"):
            resolve_model(name)


@pytest.mark.parametrize(
    ("text", "card_problem", "ranges_problem"),
    [
        *((text, "cannot be read", "cannot be read") for text in ("[" * 200_000, "[]", "null", "1")),
        ('{"architecture": []}', "lacks 'name'; add it", "has 'architecture', which is not known"),
    ],
)
def test_a_card_that_is_none_is_an_error_of_ours(text: str, card_problem: str, ranges_problem: str) -> None:
    with pytest.raises(ModelError, match=f"the model card {card_problem}.*fetch the weights file again"):
        ModelCard.from_json(text)
    with pytest.raises(ModelError, match=f"the file of reference ranges {ranges_problem}.*make it again with"):
        Reference.from_json(text)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("reference://x::file:///some/refs.json", "chains"),
        ("reference://x", "of the protocol 'reference'"),
        ("http://somewhere/a.nii", "of the protocol 'http'"),
        ("github://org:repo@main/a.nii", "of the protocol 'github'"),
        ("filecache::s3://b/a.nii", "chains"),
        ("zip://x::/nope.zip", "chains"),
        ("://a.nii", "of the protocol ''"),
    ],
)
def test_urls_that_can_do_more_than_be_read_are_refused(monkeypatch: pytest.MonkeyPatch, url: str, why: str) -> None:
    opened: list[object] = []
    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda *given, **options: opened.append(given))
    with pytest.raises(LocationError, match=why):
        Location(url)
    with pytest.raises(ScanError, match=why):
        read_scan(url)
    with pytest.raises(LandmarkError, match=why):
        read_landmarks(f"{url}.fcsv")
    with pytest.raises(LocationError, match=why):
        Cohort.from_table(f"{url}.csv")
    assert opened == []


def test_a_protocol_is_added_by_the_environment_but_never_the_one_that_runs_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HYPODASK_PROTOCOLS", "https, reference")
    assert Location("https://somewhere/a.nii").url == "https://somewhere/a.nii"
    with pytest.raises(LocationError, match="of the protocol 'reference'"):
        Location("reference://a")


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


def vouch_for(out: Path, stem: str) -> None:
    """Give results the digests that whoever forges them would give them."""
    files = [path for path in (out / f"{stem}.zarr").rglob("*") if path.is_file()]
    digests = {path.relative_to(out / f"{stem}.zarr").as_posix(): sha256_of(path.read_bytes()) for path in files}
    manifest = json.dumps({"files": digests, "tables": {}}).encode()
    (out / f"{stem}.json").write_bytes(manifest)
    pointer = {"results": f"{stem}.zarr", "manifest_sha256": sha256_of(manifest)}
    (out / "results.json").write_text(json.dumps(pointer))


def test_results_that_hold_pickles_are_refused(tmp_path: Path, trap: Trap) -> None:
    older_zarr(tmp_path / "results-20261101T000000-abcdef.zarr", trap)
    vouch_for(tmp_path, "results-20261101T000000-abcdef")
    with pytest.raises(ResultsError, match="cannot be decoded"):
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
    mark_done(url, {})
    with pytest.raises(StoreError, match="cannot be decoded"):
        read_stored_scan(url)
    assert not trap.mark.exists()


def test_results_outside_the_output_are_not_opened(tmp_path: Path) -> None:
    finalise(str(tmp_path / "other"), assemble(hypodask.Cohort.from_files([__file__]).table, []))
    name = json.loads((tmp_path / "other" / "results.json").read_text())["results"]
    (tmp_path / "out").mkdir()
    pointer = {"results": f"../other/{name}", "manifest_sha256": "0" * 64}
    (tmp_path / "out" / "results.json").write_text(json.dumps(pointer))
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
