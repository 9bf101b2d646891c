"""Flags, and how a command reports a mistake: one line, exit code 2, nothing left behind."""

import errno
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_run_folder import contents, one_line

from data.base import interrupts, writing
from data.base.errors import UserError, run_command
from data.images import specs
from data.recipes import recipe
from data.run import options, runfolder
from data.run.options import evaluate_options, train_options

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# --- bad input


BAD = {
    "--dataset mnist": ["'mnist'", "digits, svhn, emnist, cifar10"],
    "--dataset": ["--dataset", "expected one argument"],
    "--backbone alexnet": ["'alexnet'", "mobilenet, vgg"],
    "--recipe best": ["'best'", "corrected, efficient, exits, published"],
    "--recipe published": ["digits", "svhn mobilenet", "cifar10 vgg"],
    "--dataset svhn --backbone vgg --recipe published": ["svhn vgg", "svhn mobilenet"],
    "--protocol cheat": ["'cheat'", "holdout, published"],
    "--grouping kmeans": ["'kmeans'", "threshold, sampled"],
    "--volatility 0": ["volatility", "0.0", "above 0"],
    "--volatility -1": ["volatility", "-1.0", "above 0"],
    "--volatility nan": ["volatility", "nan", "above 0"],
    "--volatility inf": ["volatility", "inf", "above 0"],
    "--volatility 1e999": ["volatility", "inf", "above 0"],
    "--volatility high": ["--volatility", "'high'"],
    "--volatility auto --backbone monolith": ["volatility", "auto", "a number"],
    "--budget many": ["--budget", "'many'", "40M"],
    "--budget=-1M": ["budget", "-1000000", "0 or more"],
    "--from nowhere --volatility 1": ["nowhere", "no run folder"],
    "--epochs 0": ["epochs", "0", "above 0"],
    "--epochs -5": ["epochs", "-5", "above 0"],
    "--epochs 1.5": ["--epochs", "'1.5'"],
    "--batch-size 0": ["batch size", "0", "above 0"],
    "--batch-size many": ["--batch-size", "'many'"],
    "--limit -1": ["limit", "-1", "0 (all) or more"],
    "--seed -1": ["seed", "-1", "0 or more"],
    "--seed 9223372036854775808": ["seed", "0 or more"],
    "--colour red": ["--colour red", "--help"],
    "extra": ["extra", "--help"],
    "--resume now": ["now", "--help"],
}


@pytest.mark.parametrize("framework", ["jax", "torch"])
@pytest.mark.parametrize("flags", BAD)
def test_a_bad_flag_is_one_line_and_creates_nothing(flags, framework, tmp_path, capsys):
    arguments = [*flags.split(), "--out", "run"]
    if flags.endswith("--dataset"):
        arguments = ["--out", "run", "--dataset"]
    text = one_line(capsys, lambda: train_options(framework, arguments))
    for part in BAD[flags]:
        assert part in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "RUN"),
        (["run", "--split", "all"], "'test'"),
        (["run", "two"], "two"),
        (["run", "--json"], "--json"),
    ],
)
def test_a_bad_flag_of_evaluate(arguments, part, tmp_path, capsys):
    assert part in one_line(capsys, lambda: evaluate_options("jax", arguments))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["train", "--dataset", "mnist"], ["'mnist'", "digits, svhn, emnist, cifar10"]),
        # one process is enough to see what becomes of any such error
        pytest.param(
            ["train", "--batch-size", "100000"],
            ["--batch-size 100000", "training images"],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["evaluate", "nowhere"], ["nowhere", "no such folder"], marks=pytest.mark.slow
        ),
    ],
)
def test_the_command_itself(arguments, parts, tmp_path):
    """As a user runs it, from the shell."""
    command = [sys.executable, "-m", f"trunk_jax.{arguments[0]}", *arguments[1:]]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    for part in parts:
        assert part in line
    assert list(tmp_path.iterdir()) == []


# --- good input


def test_defaults(tmp_path):
    found = train_options("jax", [])
    assert found.recipe == recipe.load("efficient", "digits", "resnet")
    assert found.flags == options.DEFAULTS | {"recipe": "efficient"}
    assert found.out == Path(f"runs/digits-{found.recipe.backbone}-efficient-seed0-jax")
    assert (found.resume, found.data_dir, found.json) == (False, None, None)
    assert list(tmp_path.iterdir()) == []


def test_a_backbone_alone_finds_its_recipe():
    found = train_options("jax", ["--backbone", "vgg", "--dataset", "svhn"])
    assert found.recipe == recipe.load("corrected", "svhn", "vgg")
    assert found.flags["recipe"] == "corrected"


@pytest.mark.parametrize(("text", "value"), [("40M", 40e6), ("2.5e3", 2500.0), ("3k", 3000.0)])
def test_a_budget_is_in_multiply_adds(text, value):
    found = train_options("jax", ["--budget", text])
    assert found.recipe.budget == value
    assert recipe.to_json(found.recipe)["budget"] == value
    assert recipe.to_json(train_options("jax", []).recipe)["budget"] == 0


def test_each_flag_arrives():
    flags = (
        "--dataset cifar10 --data-dir D --backbone vgg --recipe published --protocol holdout "
        "--epochs 3 --batch-size 7 --limit 50 --seed 9 --volatility 0.5 --grouping sampled "
        "--resume --json J"
    )
    found = train_options("torch", flags.split())
    expected = recipe.override(
        recipe.load("published", "cifar10", "vgg"),
        protocol="holdout",
        epochs=3,
        batch_size=7,
        limit=50,
        seed=9,
        volatility=0.5,
        grouping="sampled",
    )
    assert found.recipe == expected
    assert found.out == Path("runs/cifar10-vgg-published-seed9-torch")
    assert (found.resume, found.data_dir, found.json) == (True, "D", Path("J"))
    assert train_options("jax", ["--out", "O"]).out == Path("O")


def test_evaluate_flags():
    found = evaluate_options("jax", ["R"])
    assert found == options.EvaluateOptions(Path("R"), "test", None, None)
    found = evaluate_options("jax", ["R", "--split", "train", "--data-dir", "D", "--json", "J"])
    assert found == options.EvaluateOptions(Path("R"), "train", "D", Path("J"))


def helped(capsys, function, framework="jax"):
    with pytest.raises(SystemExit) as caught:
        function(framework, ["--help"])
    assert caught.value.code == 0
    return " ".join(capsys.readouterr().out.split())


# Flags whose default is described in words: none, off, what the data need.
AS_WORDS = ("precision", "deterministic", "budget", "init", "image_size")


def test_help_gives_each_default(capsys):
    text = helped(capsys, train_options)
    usage, flags = text.split("options:")
    assert "python -m trunk_jax.train" in usage
    entries = re.split(r" (?=--[a-z-]+ )", flags)[1:]
    described = {entry.split()[0]: entry for entry in entries if not entry.startswith("--help")}
    assert {name.removeprefix("--").replace("-", "_") for name in described} == {
        *options.DEFAULTS,
        "siblings",
        "data_dir",
        "from",
        "out",
        "resume",
        "json",
        "devices",
        "distributed",
        "autotune",
        "tensorboard",
        "seeds",
        "images_in",
    }
    for entry in described.values():
        assert re.search(r"\(default: .+\)$", entry)
    for name, value in options.DEFAULTS.items():
        entry = described["--" + name.replace("_", "-")]
        if value is not None and value is not False:
            assert f"(default: {value}" in entry
        elif name not in ("model", "recipe", *AS_WORDS):
            assert "recipe's" in entry
    for choice in (*specs.SPECS, *recipe.names(), "mobilenet, vgg"):
        assert choice in text
    assert "trunk_torch_ref.train" in helped(capsys, train_options, "torch")


def test_help_of_evaluate(capsys):
    text = helped(capsys, evaluate_options)
    for default in ("test", "the run's own", "none"):
        assert f"(default: {default})" in text


# --- resuming


def start(*arguments):
    """A run as train starts it; what `config.json` must hold is up to the framework."""
    found = train_options("jax", [*arguments, "--out", "run"])
    config = {
        "format": runfolder.FORMAT,
        "flags": found.flags,
        "recipe": recipe.to_json(found.recipe),
    }
    return runfolder.create(found.out, config, found.resume)


def test_a_resumed_run_keeps_its_flags():
    assert start("--epochs", "3", "--volatility", "0.1", "--backbone", "vgg") is False
    assert start("--resume") is True
    assert start("--resume", "--epochs", "3") is True
    found = train_options("jax", ["--resume", "--out", "run"])
    assert found.recipe.backbone == "vgg"
    assert found.recipe.root.class_phase.epochs == 3
    assert found.recipe.root.volatility == 0.1
    assert found.flags["epochs"] == 3


def test_a_resumed_run_takes_no_other_flags(tmp_path, capsys):
    start("--epochs", "3")
    before = contents(tmp_path)
    text = one_line(capsys, lambda: start("--resume", "--epochs", "4", "--seed", "1"))
    assert "flags.epochs: 3, now 4" in text
    assert "flags.seed: None, now 1" in text
    assert "recipe.root.class_phase.epochs: 3, now 4" in text
    text = one_line(capsys, lambda: start("--epochs", "3"))
    assert "run exists; add --resume" in text
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "flags",
    [
        None,
        [],
        "flags",
        {"colour": "red"},
        {"epochs": "many"},
        {"epochs": [3]},
        {"epochs": 2.5},
        {"dataset": ["digits"]},
        {"dataset": "mnist"},
        {"volatility": "x"},
        {"recipe": {}},
        {"seed": True},
        {"limit": "-1"},
        {"data_dir": "x"},
    ],
    ids=str,
)
def test_a_foreign_config_is_refused(flags, tmp_path, capsys):
    run = tmp_path / "run"
    writing.write_json(run / "config.json", {"format": runfolder.FORMAT, "flags": flags})
    before = contents(tmp_path)
    one_line(capsys, lambda: train_options("jax", ["--resume", "--out", "run"]))
    assert contents(tmp_path) == before


# --- run_command


def outcome(capsys, main):
    with pytest.raises(SystemExit) as caught:
        run_command(main)
    printed = capsys.readouterr()
    return caught.value.code, printed.out, printed.err


def raising(error):
    def main():
        print("before")
        raise error

    return main


def test_what_the_terminal_cannot_show_is_escaped(monkeypatch):
    for encoding, shown in (
        ("ascii", b"\\xfc \\u2500 \\udcff\n"),
        ("utf-8", b"\xc3\xbc \xe2\x94\x80 \\udcff\n"),
    ):
        out = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="\n")
        monkeypatch.setattr("sys.stdout", out)
        with pytest.raises(SystemExit) as left:
            run_command(lambda: print("\xfc \u2500 \udcff"))
        assert left.value.code == 0
        assert out.buffer.getvalue() == shown


def test_exit_codes(capsys):
    assert outcome(capsys, lambda: None) == (0, "", "")
    assert outcome(capsys, lambda: 1) == (1, "", "")
    assert outcome(capsys, raising(UserError("what"))) == (2, "before\n", "error: what\n")
    assert outcome(capsys, raising(KeyboardInterrupt())) == (130, "before\n", "interrupted\n")


def test_what_is_stopped_says_how_to_go_on(capsys):
    def main(arguments):
        interrupts.resumable("python -m x.y", arguments, "--resume")
        raise KeyboardInterrupt

    for arguments, command in (
        (["--out", "a b"], "python -m x.y --out 'a b' --resume"),
        (["--resume", "--out=c"], "python -m x.y --resume --out=c"),
    ):
        said = outcome(capsys, lambda words=arguments: main(words))
        assert said == (130, "", f"interrupted; go on with: {command}\n")
    # the next command of this process is another one
    assert outcome(capsys, raising(KeyboardInterrupt())) == (130, "before\n", "interrupted\n")


def test_a_message_is_one_line_whatever_it_quotes(capsys):
    assert outcome(capsys, raising(UserError("no a\nb\r\nc")))[2] == "error: no a b c\n"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (FileNotFoundError(errno.ENOENT, "No such file", "a/b"), "No such file: a/b"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), "Permission denied: x"),
    ],
)
def test_the_systems_own_errors_are_one_line(error, line, capsys):
    assert outcome(capsys, raising(error)) == (2, "before\n", f"error: {line}\n")


@pytest.mark.parametrize("error", [ValueError("ours"), OSError("ours"), KeyError("ours")])
def test_our_own_faults_keep_their_traceback(error):
    with pytest.raises(type(error), match="ours"):
        run_command(raising(error))


def test_a_reader_that_goes_away_is_no_fault():
    """`python -m ... | head -1`."""
    code = (
        "from data.base.errors import run_command\n"
        "run_command(lambda: [print('x' * 1000) for _ in range(10_000)] and None)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    ) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 1


def test_flags_cannot_be_abbreviated(capsys):
    for flag in ("--epoch=3", "--data=x", "--res"):
        assert f"unrecognized arguments: {flag}" in one_line(
            capsys, lambda flag=flag: train_options("jax", [flag])
        )


def test_every_command_reads_its_flags_with_our_parser():
    """argparse's own would take abbreviations, and exit with an error of several lines."""
    packages = ("data", "trunk_jax", "trunk_torch_ref", "parity", "benchmarks")
    files = [file for package in packages for file in (ROOT / package).rglob("*.py")]
    found = [
        file.relative_to(ROOT).as_posix()
        for file in files
        if re.search(r"argparse\.ArgumentParser|import ArgumentParser", file.read_text())
    ]
    assert found == ["data/base/parser.py"]


def test_a_recipe_file_is_found_again_from_another_folder(tmp_path, monkeypatch):
    (tmp_path / "mine.toml").write_text((recipe.FOLDER / "corrected.toml").read_text())
    found = train_options("jax", ["--recipe", "mine.toml"])
    assert found.flags["recipe"] == str(tmp_path / "mine.toml")
    assert found.out.name.startswith("digits-vgg-mine-seed")
    writing.write_json(tmp_path / "run" / "config.json", {"format": 1, "flags": found.flags})
    monkeypatch.chdir("/")
    again = train_options("jax", ["--out", str(tmp_path / "run"), "--resume"])
    assert again.recipe == found.recipe
