"""Every command that README, docs and cards print: its flags exist, and it runs as it is printed.

`documented.toml` says of each how it is run. A command that it does not name fails the test, so
none is left out without a word.
"""

import argparse
import itertools
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    {ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")}
    | set((ROOT / "checkpoints").glob("*/README.md"))
)
RULES = tomllib.loads((ROOT / "tests" / "documented.toml").read_text())
CODES = {"run": 0, "find": 1}  # of the kinds that run to their end, how they end
KINDS = (*CODES, "begin", "elsewhere")
MODULES = re.compile(r"-m ((?:data|parity|trunk_jax|trunk_torch_ref|benchmarks|tests)\b[\w.]*)")
OURS = re.compile(rf"python3? {MODULES.pattern}(.*)")
JOINTS = re.compile(r"\s*(?:&&|;)\s*|\s+\|\s+")  # between the commands of a line
SPANS = re.compile(r"(?:\S*/)?(make|npm|pip|pip-audit|pytest|python[\d.]*) ")  # in prose
DATA = ROOT.parent / "shared" / "tfds-standin"
_BEGUN_S = 300.0  # within which a long training has ended its first epoch
_LONGEST_S = 3600.0


def lines(text):
    """(of a block, of prose): each command for a shell in a Markdown text, without comments."""
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]
    given = [line for block in blocks for line in block.replace("\\\n", "").splitlines()]
    split = [JOINTS.split(line.split(" #")[0].strip()) for line in given]
    return list(itertools.chain(*split)), list(itertools.chain(*map(JOINTS.split, spans)))


def commands(text):
    """The commands of ours, each once."""
    blocks, spans = lines(text)
    spans = [span for span in spans if " -m " in span and len(span.split()) > 3]  # not mere names
    found = []
    for line in blocks + spans:
        if match := OURS.search(line):
            words = re.sub(r"([A-Z])\.\.\.", r"\1", f"python -m {match[1]}{match[2]}")  # IMAGE...
            found.append(re.sub(r" \.\.\.(?= |$)", "", words).rstrip())  # the reader's flags
    return list(dict.fromkeys(found))


def others(text):
    """The commands that are not ours, each once."""
    blocks, spans = lines(text)
    found = [line.removeprefix("do ") for line in blocks] + [s for s in spans if SPANS.match(s)]
    loop = re.compile(r"(for \w+ in .*|do|done|)")
    found = [c for c in found if not loop.fullmatch(c) and "..." not in c]
    return list(dict.fromkeys(c for c in found if not OURS.search(c)))


def documented(of=commands):
    """All commands with the page that shows each first."""
    found = {}
    for page in PAGES:
        for command in of(page.read_text()):
            found.setdefault(command, page.relative_to(ROOT))
    return found


def kinds(command):
    """(kind, reason) of each rule that covers a command."""
    return [
        (kind, rule.get("why"))
        for kind in KINDS
        for rule in RULES[kind]
        if re.fullmatch(rule["command"], command)
    ]


ALL = documented()
OTHERS = documented(others)


def of_kind(kind):
    return [command for command in ALL if kinds(command) and kinds(command)[0][0] == kind]


def test_commands_are_found():
    text = "`python -m data.table A\n--b` and\n```sh\nx python -m parity.check \\\n --c  # d\n```\n"
    assert commands(text) == ["python -m parity.check  --c", "python -m data.table A --b"]
    assert commands("`python -m data.table`") == []
    several = (
        "```sh\nmake x && python -m data.a b; for i in 1; do\n  python -m tests.c d; done\n```\n"
    )
    assert commands(several) == ["python -m data.a b", "python -m tests.c d"]
    assert others(several + "`pip install x`, `pip`, `a b`") == ["make x", "pip install x"]
    assert commands("`python -m data.a ... --b IMAGE...`") == ["python -m data.a --b IMAGE"]
    assert len(ALL) > 60
    assert "python -m trunk_jax.train --dataset svhn" in ALL


def test_the_lists_have_every_command():
    """`python -m trunk_jax` those of all packages, the other two their own."""
    from data.__main__ import GROUPS as of_data
    from data.base import commands as found
    from parity.__main__ import GROUPS as of_parity
    from trunk_jax.__main__ import GROUPS, PACKAGES

    def all_of(*packages):
        return sorted(f"{name}.{c}" for name in packages for c in found.commands(ROOT / name))

    for groups, packages in ((GROUPS, PACKAGES), (of_data, ["data"]), (of_parity, ["parity"])):
        assert sorted(itertools.chain(*groups.values())) == all_of(*packages)


@pytest.mark.parametrize("command", ALL, ids=str)
def test_each_has_one_rule(command):
    found = kinds(command)
    assert len(found) == 1, f"{command} ({ALL[command]}): {found}; see tests/documented.toml"
    assert found[0][0] in CODES or found[0][1], "what is not run to its end needs a reason"


def test_no_rule_is_stale():
    for kind, rules in RULES.items():
        for rule in rules:
            known = OTHERS if kind == "others" else ALL
            assert any(re.fullmatch(rule["command"], command) for command in known), rule


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_module_that_a_page_names_is_there(page):
    for module in MODULES.findall(" ".join(page.read_text().split())):
        file = ROOT / module.rstrip(".").replace(".", "/")
        assert file.with_name(f"{file.name}.py").exists() or (file / "__main__.py").exists(), module


@pytest.mark.parametrize("command", OTHERS, ids=str)
def test_what_is_not_ours_is_known(command):
    """A target of make, an extra and a file of pip's, a file of pytest's: that they exist."""
    words = shlex.split(command)
    if re.fullmatch(r"python[\d.]*", Path(words[0]).name) and words[1] == "-m":
        words = words[2:]
    tool = Path(words[0]).name
    missing = {"make": of_make, "pip": of_pip, "pytest": of_pytest}
    if tool in missing:
        assert missing[tool](words[1:]) == [], f"{command} ({OTHERS[command]})"
        return
    found = [rule for rule in RULES["others"] if re.fullmatch(rule["command"], command)]
    assert len(found) == 1, f"{command} ({OTHERS[command]}): {found}; see tests/documented.toml"
    assert found[0]["why"]


def of_make(words):
    folder = ROOT
    if words[:1] == ["-C"]:
        folder, words = ROOT / words[1], words[2:]
    rules = re.findall(r"^([\w .-]+):(?!=)", (folder / "Makefile").read_text(), re.MULTILINE)
    known = set(itertools.chain(*map(str.split, rules)))
    return [word for word in words if "=" not in word and word not in known]


def of_pip(words):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ours = [re.fullmatch(r"(?:\.|trunk-jax)\[([\w,]+)\]", word) for word in words]
    asked = itertools.chain(*(match[1].split(",") for match in ours if match))
    files = [after for word, after in itertools.pairwise(words) if word in ("-c", "-r")]
    gone = [file for file in files if not (ROOT / file).exists()]
    return gone + [extra for extra in asked if extra not in extras["optional-dependencies"]]


def of_pytest(words):
    return [word for word in words if word.startswith("tests") and not (ROOT / word).exists()]


def test_what_is_not_there_is_missed():
    assert of_make(["-C", "examples/c", "clean", "nothing", "A=b"]) == ["nothing"]
    assert of_make(["test-all", "demos"]) == ["demos"]
    assert of_pip(["install", "-c", "no.txt", ".[test,tset]", "jax[k8s]"]) == ["no.txt", "tset"]
    assert of_pytest(["-q", "tests", "tests/gone.py"]) == ["tests/gone.py"]


class Parsed(BaseException):
    """The flags were right."""


@pytest.mark.filterwarnings("ignore:.* found in sys.modules:RuntimeWarning")  # of runpy
@pytest.mark.parametrize("command", ALL, ids=str)
def test_its_flags_exist(command, tmp_path, monkeypatch):
    words = next(filled(command, tmp_path))
    parse = argparse.ArgumentParser.parse_args

    def parsed(self, *arguments, **more):
        parse(self, *arguments, **more)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parsed)
    monkeypatch.setattr(sys, "argv", ["x", *words[3:]])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs" / "studies").mkdir(parents=True)
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "tests" / "compared").mkdir(parents=True)
    (tmp_path / "BACK").mkdir()
    listing = words[2] in ("trunk_jax", "parity", "data")
    with pytest.raises(SystemExit if listing else Parsed) as left:
        runpy.run_module(words[2], run_name="__main__", alter_sys=False)
    assert not listing or left.value.code in (None, 0)


def filled(command, folder):
    """The command as words, with things of this machine for what a page leaves to the reader.

    A variable of a loop in a shell gives a line for some of its values.
    """
    fill = {
        "RUN": "runs/finished",
        "TREE": "checkpoints/cifar10-efficient",
        "MONOLITH": "checkpoints/cifar10-efficient-monolith",
        "DIR": shlex.quote(str(DATA)),
        "NEW": "runs/new",
        "FOLDER": "runs/handed-on",
        "IMAGE": "image.png",
        "FILE.pth": "file.pth",
        "FILE": "file",
        "FILE.zip": "file.zip",
        "VARIANT": "plain",
        "LEVEL": "1",
        "NAME": "resnet50",
        "START": "0.1",
        "STOP": "0.3",
        "STEP": "0.1",
        "COMMAND": f"{shlex.quote(sys.executable)} -m trunk_jax.train --limit 100 --epochs 1",
    }
    loops = {"$v": ["plain"], "$seed": ["0"], "$network": ["resnet", "monolith"]}
    used = [name for name in loops if name in command]
    for values in itertools.product(*(loops[name] for name in used)):
        text = command
        for name, value in zip(used, values, strict=True):
            text = text.replace(name, value)
        given = [shlex.split(fill[w]) if w in fill else [w] for w in shlex.split(text)]
        words = list(itertools.chain(*given))
        words = [os.path.expanduser(word) for word in words]
        yield [match for word in words for match in expand(word, folder)]


def expand(word, folder):
    """As a shell does with a `*`."""
    if "*" not in word:
        return [word]
    return sorted(str(path.relative_to(folder)) for path in folder.glob(word)) or [word]


@pytest.fixture(scope="session")
def workplace(tmp_path_factory):
    """A copy of what the commands read and write beside their data, with a finished run."""
    folder = tmp_path_factory.mktemp("documented")
    for name in ("checkpoints", "docs", "benchmarks", "README.md"):
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, folder / name)
    Image.new("RGB", (32, 32), (90, 120, 40)).save(folder / "image.png")
    for place in range(30):  # docs/your-data.md: a folder of three classes, and a new image
        file = folder / "flowers" / "abc"[place % 3] / f"{place}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (80 * (place % 3), 5 * place, 40)).save(file)
    (folder / "new").mkdir()
    Image.new("RGB", (20, 30), (80, 60, 40)).save(folder / "new" / "a.jpg")
    torch.save({"weight": torch.ones(2)}, folder / "file.pth")
    train = [sys.executable, "-m", "trunk_jax.train", "--out", "runs/finished"]
    subprocess.run(train, cwd=folder, env=environment(), check=True, capture_output=True)
    return folder


def environment():
    return os.environ | {
        "PYTHONPATH": str(ROOT),
        "TRUNK_CACHE_DIR": os.environ.get(
            "TRUNK_CACHE_DIR", str(Path("~/.cache/trunk").expanduser())
        ),
    }


def need_data(command):
    """Skip a command whose data this machine lacks."""
    if "DIR" in command or re.search(r"svhn|emnist", command):
        if not DATA.is_dir():
            pytest.skip("the stand-ins of SVHN and EMNIST are not at hand")
        return {"TFDS_DATA_DIR": str(DATA)}
    if "cifar10" in command and not Path("~/tensorflow_datasets/cifar10").expanduser().is_dir():
        pytest.skip("CIFAR-10 is not prepared in ~/tensorflow_datasets")
    return {}


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for kind in CODES for c in of_kind(kind)], ids=str)
def test_it_runs_to_its_end(command, workplace):
    more, code = need_data(command), CODES[kinds(command)[0][0]]
    for study in (workplace / "runs").glob("study-*"):  # a page's study is the reader's first
        shutil.rmtree(study)
    for words in filled(command, workplace):
        done = subprocess.run(
            [sys.executable, *words[1:]],
            cwd=workplace,
            env=environment() | more,
            text=True,
            capture_output=True,
            timeout=_LONGEST_S,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == code, f"{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
        assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("command", of_kind("begin"), ids=str)
def test_a_long_training_begins(command, workplace, tmp_path):
    """It ends its first epoch, and Ctrl-C then ends it as it should."""
    more = need_data(command)
    for words in filled(command, workplace):
        words = words if "--out" in words else [*words, "--out", str(tmp_path / "out")]
        with (
            open(tmp_path / "said", "w+") as said,
            subprocess.Popen(
                [sys.executable, *words[1:]],
                cwd=workplace,
                env=environment() | more,
                stdout=said,
                stderr=said,
                text=True,
            ) as process,
        ):
            until = time.monotonic() + _BEGUN_S
            while process.poll() is None and time.monotonic() < until:
                if re.search(r"epoch +\d+/\d+|\d+ of \d+|\d+ %", (tmp_path / "said").read_text()):
                    break
                time.sleep(0.5)
            process.send_signal(signal.SIGINT)
            code = process.wait(120)
        text = (tmp_path / "said").read_text()
        assert code == 130, text[-3000:]
        assert "Traceback" not in text


@pytest.mark.slow
def test_the_quickstart_runs(tmp_path):
    """docs/quickstart.md, a notebook: its cells one after another, and what they claim."""
    cells = re.findall(
        r"^```python\n(.*?)^```",
        (ROOT / "docs/quickstart.md").read_text(),
        re.MULTILINE | re.DOTALL,
    )
    assert len(cells) == 4
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(cells)],
        cwd=tmp_path,
        env=environment() | {"TMPDIR": str(tmp_path)},
        text=True,
        capture_output=True,
        timeout=_BEGUN_S,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = dict(line.rsplit(": ", 1) for line in done.stdout.splitlines() if ": " in line)
    # 200 images by a shipped tree: no chance in it but rounding of a decision
    assert 0.5 < float(said["right, of 47 classes"]) < 0.65
    assert float(said["right, among the digits"]) > 0.8
    assert said["same answers"] == said["same paths"] == "True"
    assert float(said["largest difference of a probability"]) < 1e-4
