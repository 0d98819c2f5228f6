"""What a run is asked for: read from TOML, written back whole, and refused with a cure where it cannot be meant."""

from dataclasses import replace
from pathlib import Path

import pytest

from hypodask.core.documents import to_toml
from hypodask.core.errors import TrainingError
from hypodask.learning.loop import Schedule
from hypodask.training.config import Data, Folds, TrainingConfig, read_config

BIDS = '[data]\nprotocol = "ulm-2024"\nbids = "study"\noutlines = "study/derivatives/manual"\n'


@pytest.fixture
def written(tmp_path: Path):
    """``written(text)`` reads a file of this content."""

    def read(text: str) -> TrainingConfig:
        (tmp_path / "run.toml").write_text(text, encoding="utf-8")
        return read_config(tmp_path / "run.toml")

    return read


def test_a_short_file_is_a_whole_run_whose_paths_start_from_the_files_folder(written, tmp_path):
    config = written('out = "trained"\n' + BIDS)
    data = Data("ulm-2024", bids=str(tmp_path / "study"), outlines=str(tmp_path / "study/derivatives/manual"))
    assert config == TrainingConfig(str(tmp_path / "trained"), data)


def test_every_kind_of_value_is_read(written):
    config = written(
        'out = "/t"\non_bad = "stop"\n'
        + BIDS
        + 'entities = { desc = "manual" }\n[network]\nstart = "hypothalamus"\nwidths = [8, 16]\n'
        + "[schedule]\nsteps = 40\nlearning_rate = 1\n[folds]\ncount = 2\n[variation]\nnoise = 0.1\n"
    )
    assert (config.on_bad, config.data.entities, config.network.widths) == ("stop", {"desc": "manual"}, (8, 16))
    assert config.network.start == "hypothalamus"
    assert (config.data.structure, config.network.loss) == ("hypothalamus", "cross_entropy_dice")
    assert config.schedule == Schedule(steps=40, learning_rate=1.0)
    assert isinstance(config.schedule.learning_rate, float)
    assert (config.folds, config.variation.noise) == (Folds(count=2), 0.1)


def test_a_run_that_was_written_is_read_as_the_same_run(written):
    config = written('out = "t"\n' + BIDS + 'entities = { desc = "x" }\ndescription = "Ülm, \\"two\\" raters"\n')
    config = replace(config, schedule=Schedule(learning_rate=1e-5, precision="bfloat16"), folds=Folds(patience=3))
    assert written(to_toml(config)) == config


def test_structure_and_loss_are_read(written):
    config = written(
        'out = "t"\n' + BIDS + 'structure = "third_ventricle"\n[network]\nloss = "cross_entropy_jaccard"\n'
    )
    assert (config.data.structure, config.network.loss) == ("third_ventricle", "cross_entropy_jaccard")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("out = \n", r"run.toml cannot be read as TOML \(Invalid value \(at line 1.*; correct the file"),
        ('outt = "t"\n' + BIDS, "run.toml has 'outt', which is not known; it may have out, data, .*'out' is meant"),
        (BIDS, r"run.toml lacks 'out'; add it \(text in quotes\)"),
        ('out = "t"\n[data]\nbids = "b"\n', r"run.toml: \[data\] lacks 'protocol'"),
        ('out = "t"\n' + BIDS + "[schedule]\nstep = 3\n", r"\[schedule\] has 'step', .* perhaps 'steps' is meant"),
        ('out = "t"\n' + BIDS + "[schedule]\nsteps = 3.5\n", r"\[schedule\] has steps = 3.5; a whole number is needed"),
        ('out = "t"\n' + BIDS + "[schedule]\nsteps = true\n", "steps = True; a whole number is needed"),
        ('out = "t"\n' + BIDS + "[schedule]\naverage = nan\n", "average = nan; a finite number is needed"),
        ('out = "t"\n' + BIDS + '[network]\nwidths = ["8"]\n', r"\[network\] has widths\[0\] = '8'; a whole number is"),
        ('out = "t"\n' + BIDS + "[network]\nwidths = 8\n", "widths = 8; a list, each a whole number is needed"),
        ('out = "t"\n' + BIDS + '[network]\nkind = "vit"\n', "kind = 'vit'; one of 'unet'.* is needed"),
        (
            'out = "t"\n' + BIDS + "entities = { desc = 3 }\n",
            r"\[data.entities\] has desc = 3; text in quotes is needed",
        ),
        ('out = "t"\n' + BIDS + "entities = 3\n", r"\[data\] has entities = 3; a table is needed"),
        ('out = "t"\ndata = 3\n', "run.toml has data = 3; a table is needed"),
        ('out = "t"\n' + BIDS + 'table = "pairs.tsv"\n', "either bids and outlines are needed, or table alone"),
        ('out = "t"\n[data]\nprotocol = "x"\nbids = "b"\n', "either bids and outlines are needed"),
        ('out = "t"\n[data]\nprotocol = "x"\ntable = "p.tsv"\n', "no label table; set labels to the path"),
        ('out = "t"\n' + BIDS.replace("ulm-2024", " "), "protocol is empty; name the rules"),
        (
            'out = "t"\n' + BIDS + 'structure = "amygdala"\n',
            "structure is 'amygdala', which is no structure that hypodask measures; give one of hypothalamus, icv,",
        ),
        ('out = "t"\n' + BIDS + '[network]\nloss = "dice"\n', "loss = 'dice'; one of 'cross_entropy_dice', 'cross_"),
        ('[recipe]\nname = "icv"\n', "has 'recipe', which is not known"),
        ('out = "t"\n' + BIDS + "[folds]\ncount = 1\n", "count is 1; 0 to measure nothing, or at least 2"),
        ('out = "t"\n' + BIDS + "[folds]\ncount = 0\npatience = 2\n", "patience needs held-out subjects"),
        ('out = "t"\n' + BIDS + "[schedule]\nsteps = 0\n", "must be at least 1"),
        ('out = "t"\n' + BIDS + "[schedule]\nlearning_rate = 0.0\n", "learning_rate must be positive"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_what_was_needed(written, text, message):
    with pytest.raises(TrainingError, match=message):
        written(text)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(TrainingError, match=r"nowhere.toml cannot be read .*; give the path of a TOML file"):
        read_config(tmp_path / "nowhere.toml")
