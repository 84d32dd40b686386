"""Read from the source: what runs other people's bytes stands in no file but the named ones, each with its reason."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

HOME = Path(__file__).resolve().parents[2]
ROOMS = ("autoeval", "recorder", "eval", "demos", "benchmarks", "thirdparty")
FILES = sorted(
    [file for room in ROOMS for file in (HOME / room).rglob("*.py") if "Megatron-LM" not in file.parts]
    + [HOME / "evaluator.py", HOME / "run.py"]
)

# Calls by their last name or last two, and what makes one harmless: a keyword with its value as the source has it.
FORBIDDEN: dict[str, tuple[str, str] | None] = {
    "eval": None, "exec": None, "__import__": None, "import_module": None, "run_path": None, "run_module": None,
    "os.system": None, "os.popen": None, "os.execvp": None, "os.execv": None, "os.spawnvp": None, "os.mktemp": None, "tempfile.mktemp": None, "mktemp": None,
    "pickle.load": None, "pickle.loads": None, "pickle.Unpickler": None, "marshal.load": None, "marshal.loads": None,
    "shelve.open": None, "dill.load": None, "dill.loads": None, "joblib.load": None, "cloudpickle.loads": None,
    "pandas.read_pickle": None, "read_pickle": None,
    "yaml.load": None, "yaml.load_all": None, "yaml.full_load": None, "yaml.unsafe_load": None,
    "torch.load": ("weights_only", "True"), "numpy.load": ("allow_pickle", "False"), "np.load": ("allow_pickle", "False"),
    "extractall": ("filter", "'data'"),
}  # fmt: skip
FORBIDDEN_KEYWORDS = {("shell", "True"), ("verify", "False"), ("weights_only", "False"), ("allow_pickle", "True")}
FORBIDDEN_KEYWORDS |= {("trust_remote_code", "True")}

ALLOWED = {
    ("autoeval/helm/stage.py", "opened.extractall"): "zipfile: drops absolute names and '..', makes no links",
    ("autoeval/diagnosis/follow.py", "os.execv"): "becomes the command that follows --then on its own command line",
    ("autoeval/offline/loopback.py", "os.execvp"): "becomes the command that follows on its own command line",
}


@cache
def nodes(file: Path) -> tuple[ast.AST, ...]:
    """The calls, classes and texts of a file: parsing takes longer than all else here."""
    wanted = (ast.Call, ast.ClassDef, ast.JoinedStr, ast.Constant)
    return tuple(one for one in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(one, wanted))


def calls(file: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in nodes(file):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def offences(source: Iterable[ast.AST], file: str = "file.py") -> list[str]:
    """Of one file: ``file:line: call``."""
    found = []
    for node in source:
        if isinstance(node, ast.ClassDef) and "pickle.Unpickler" in map(ast.unparse, node.bases):
            names = {one.name for one in node.body if isinstance(one, ast.FunctionDef)}
            if "find_class" not in names:
                found.append(f"{file}:{node.lineno}: an unpickler that looks names up")
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        parts = called.split(".")
        given = {(one.arg or "", ast.unparse(one.value)) for one in node.keywords}
        method = len(parts) > 1 and parts[-1] in ("eval", "exec", "load")  # model.eval(), stream.load()
        for name in {".".join(parts[-2:]), parts[-1]} - ({parts[-1]} if method else set()):
            if name in FORBIDDEN and (FORBIDDEN[name] is None or FORBIDDEN[name] not in given):
                found.append(f"{file}:{node.lineno}: {called}")
        found += [f"{file}:{node.lineno}: {key}={value}" for key, value in given & FORBIDDEN_KEYWORDS]
    return [one for one in found if not any(one.startswith(f"{f}:") and one.endswith(f": {c}") for f, c in ALLOWED)]


def test_nothing_runs_what_it_reads() -> None:
    found = [one for file in FILES for one in offences(nodes(file), file.relative_to(HOME).as_posix())]
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "eval(text)", "exec(text)", "importlib.import_module(name)", "os.system('x')", "pickle.load(f)", "yaml.load(f, L)",
        "torch.load(f)", "torch.load(f, weights_only=False)", "numpy.load(f)", "tar.extractall(d)", "tempfile.mktemp()",
        "subprocess.run(c, shell=True)", "requests.get(u, verify=False)", "AutoModel.from_pretrained(d, trust_remote_code=True)",
        "joblib.load(f)", "class A(pickle.Unpickler): pass",
    ],
)  # fmt: skip
def test_the_search_finds_what_it_looks_for(line: str) -> None:
    assert offences(ast.walk(ast.parse(line)))


@pytest.mark.parametrize(
    "line",
    ["model.eval()", "torch.load(f, weights_only=True)", "tar.extractall(d, filter='data')", "ast.literal_eval(x)"],
)
def test_and_nothing_else(line: str) -> None:
    assert not offences(ast.walk(ast.parse(line)))


def test_every_exception_is_still_needed() -> None:
    for file, call in ALLOWED:
        assert call in {name for name, _ in calls(HOME / file)}, f"{file} has no {call} any more"


def test_requests_have_an_end_and_are_not_led_elsewhere() -> None:
    """A time limit; and no redirect where a key or a message goes along."""
    wanted = {"requests.get", "requests.post", "self._session.post", "self._session.get"}
    for file in FILES:
        for called, node in calls(file):
            given = {one.arg for one in node.keywords}
            if called in wanted:
                assert {"timeout", "allow_redirects"} <= given, f"{file}:{node.lineno}"


def test_no_sql_is_made_of_values() -> None:
    """What is put into a statement's text is written in the same file, in capitals or as a condition; values are parameters."""
    harmless = {
        "', '.join(TaskCost._fields)", "columns", "joined", "drawn",  # names of columns, fixed conditions
        "_where(conditions)", "' AND '.join(conditions)",  # each condition is "column = ?"
        "int(BUSY_SECONDS * 1000)", "len(MIGRATIONS)", "-SHARE_ERROR", "1 + SHARE_ERROR",
    }  # fmt: skip
    checked = 0
    for file in sorted((HOME / "recorder").rglob("*.py")):
        for node in nodes(file):
            if not isinstance(node, ast.JoinedStr):
                continue
            text = "".join(part.value for part in node.values if isinstance(part, ast.Constant))
            if not re.match(r"\s*(SELECT|INSERT|UPDATE|DELETE|PRAGMA|CREATE|DROP|WHERE|REPLACE|WITH) ", text):
                continue
            checked += 1
            for part in node.values:
                if isinstance(part, ast.FormattedValue):
                    name = ast.unparse(part.value)
                    assert name in harmless or re.fullmatch("[A-Z_]+", name), f"{file}:{node.lineno}: {name}"
    assert checked > 3


def test_no_file_has_a_name_in_tmp_that_others_could_take() -> None:
    """Temporary files are made with unguessable names, and next to what they become."""
    own_tmp = "autoeval/openicl/sandbox.py"  # the sandbox's own /tmp, which nobody else has
    for file in FILES:
        if file.relative_to(HOME).as_posix() != own_tmp:
            for node in nodes(file):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    assert not re.match(r"/(var/)?tmp\b", node.value), f"{file}:{node.lineno}"


def test_shell_scripts_run_no_text_and_download_no_program() -> None:
    scripts = [
        file for room in ("setup_scripts", "demos", "eval", "thirdparty") for file in (HOME / room).rglob("*.sh")
    ]
    assert len(scripts) > 5
    for script in scripts:
        if "Megatron-LM" in script.parts:
            continue
        lines = script.read_text(encoding="utf-8").splitlines()
        code = "\n".join(line.partition(" #")[0] for line in lines if not line.lstrip().startswith("#"))
        assert not re.search(
            r"(^|[;&|\s])eval\s|\|\s*(sudo\s+)?(ba)?sh\b|curl .*-k\b|--insecure|chmod\s+(-R\s+)?[0-7]?777", code
        ), script


def test_every_loading_says_that_no_remote_code_is_trusted() -> None:
    """Left out, transformers asks at the terminal; the demo that trains asks its own flag."""
    silent = []
    for file in FILES:
        if file.relative_to(HOME).parts[0] not in ("autoeval", "recorder", "eval"):
            continue
        for owner, node in calls(file):
            if owner.split(".")[-1] not in ("from_pretrained", "SentenceTransformer"):
                continue
            if "Peft" in owner or owner == "kind.from_pretrained":
                continue  # PEFT has no such option; ``kind`` is a class of transformers itself
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if given.get("trust_remote_code") != "False" and given.get(None) != "safe":
                silent.append(f"{file.relative_to(HOME)}:{node.lineno}: {owner}")
    assert silent == []
