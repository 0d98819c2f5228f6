"""What a user's own script is told, however it was started."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

CALL = "hypodask.process(hypodask.Cohort.from_files([{scan!r}]), {out!r}, workers=1, progress=False)"

UNGUARDED = {
    "plain": "import hypodask\n{call}\n",
    "in a function": "import hypodask\ndef main():\n    {call}\nmain()\n",
    "under another test": "import hypodask, sys\nif sys.argv:\n    {call}\n",
    "with a guard that comes too late": "import hypodask\n{call}\nif __name__ == '__main__':\n    pass\n",
    "by another function of ours": "import hypodask.cluster\nlist(hypodask.cluster.each(len, ['a'], workers=1))\n",
}


@pytest.fixture
def call(tmp_path: Path) -> str:
    (tmp_path / "scan.nii").write_text("no image")
    return CALL.format(scan=str(tmp_path / "scan.nii"), out=str(tmp_path / "out"))


def run(*arguments: str, folder: Path, typed: str | None = None) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, input=typed, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize("kind", UNGUARDED)
def test_a_script_without_the_line_is_told_what_is_missing_before_anything_starts(
    tmp_path: Path, call: str, kind: str
) -> None:
    (tmp_path / "script.py").write_text(UNGUARDED[kind].format(call=call))
    ended = run("script.py", folder=tmp_path)
    assert ended.returncode == 1
    assert 'outside of `if __name__ == "__main__":`' in ended.stderr.splitlines()[-1]
    assert str(tmp_path / "script.py") in ended.stderr.splitlines()[-1]
    assert len(ended.stderr.splitlines()) < 25
    assert not (tmp_path / "out").exists()


def test_a_module_without_the_line_is_told_so_too(tmp_path: Path, call: str) -> None:
    (tmp_path / "script.py").write_text(UNGUARDED["plain"].format(call=call))
    ended = run("-m", "script", folder=tmp_path)
    assert 'outside of `if __name__ == "__main__":`' in ended.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "line",
    [
        "import hypodask\nif __name__ == '__main__':\n    {call}\n",
        "import hypodask, multiprocessing\nif multiprocessing.current_process().name == 'MainProcess':\n    {call}\n",
    ],
)
def test_a_script_with_the_line_runs(tmp_path: Path, call: str, line: str) -> None:
    (tmp_path / "script.py").write_text(line.format(call=call))
    assert run("script.py", folder=tmp_path).returncode == 0
    assert (tmp_path / "out" / "results.json").exists()


def test_a_script_that_ends_as_it_is_imported_is_told_that_workers_import_it(tmp_path: Path, call: str) -> None:
    (tmp_path / "script.py").write_text(f"import hypodask, sys\nif __name__ != '__main__':\n    sys.exit()\n{call}\n")
    ended = run("script.py", folder=tmp_path)
    assert "workers could not be started on this machine" in ended.stderr.splitlines()[-1]
    assert len(ended.stderr.splitlines()) < 25
    assert not (tmp_path / "out" / "locks").exists()


def test_what_was_piped_in_is_told_to_be_saved_as_a_file(tmp_path: Path, call: str) -> None:
    ended = run("-", folder=tmp_path, typed=UNGUARDED["plain"].format(call=call))
    assert "save the script as a file" in ended.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_what_is_given_on_the_command_line_runs(tmp_path: Path, call: str) -> None:
    assert run("-c", f"import hypodask; {call}", folder=tmp_path).returncode == 0


def test_ctrl_c_says_how_to_go_on(tmp_path: Path) -> None:
    for number in range(2):
        folder = tmp_path / "bids" / f"sub-{number}" / "anat"
        folder.mkdir(parents=True)
        (folder / f"sub-{number}_T1w.nii").write_text("no image")
    command = [sys.executable, "-c", "from hypodask.cli import main; main()", "run"]
    command += [str(tmp_path / "bids"), str(tmp_path / "out"), "--workers", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as begun:
        while not (tmp_path / "out" / "locks").exists():
            assert begun.poll() is None
            time.sleep(0.05)
        os.kill(begun.pid, signal.SIGINT)
        _, said = begun.communicate(timeout=60)
    assert begun.returncode == 130
    assert "make the same call again to go on where it stopped" in said
    assert "Traceback" not in said
    assert not (tmp_path / "out" / "locks").exists()
