"""From command line and configuration files to a job: what is read, what is refused, and what is never written."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import run
from autoeval.run.job import Job, parse_options, plain, read_config, read_job
from autoeval.run.secrets import without_secrets
from autoeval.tasks.model_configs import check_model, resolved, with_model_defaults
from tests.pace import Pace
from tests.run.conftest import REPOSITORY, World, make_world

HOME = Path(__file__).resolve().parents[2]
MODEL = {"type": "HuggingFaceBaseModel", "abbr": "m", "path": "gpt2"}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    world = make_world(tmp_path)
    (tmp_path / "gpt2").mkdir()
    monkeypatch.chdir(tmp_path)
    return world


def job(*arguments: str) -> Job:
    return read_job(run.parse_arguments(["--config-dir", "config", *arguments]))


def test_flags_make_one_model(here: World) -> None:
    made = job(
        *("--hf-type", "base", "--hf-path", "gpt2", "--datasets", "small", "wri*", "--max-seq-len", "128"),
        *("--model-kwargs", "torch_dtype=torch.float16", "device_map=cpu", "--batch-size", "4", "--max-out-len", "7"),
        *("--tokenizer-kwargs", "padding_side=left", "use_fast=True", "--pad-token-id", "0"),
    )
    assert made.models == [
        {
            "type": "HuggingFaceBaseModel",
            "abbr": "gpt2_hf",
            "path": "gpt2",
            "model_kwargs": {"torch_dtype": "torch.float16", "device_map": "cpu"},
            "tokenizer_kwargs": {"padding_side": "left", "use_fast": True},
            "max_seq_len": 128,
            "max_out_len": 7,
            "batch_size": 4,
            "pad_token_id": 0,
            "run_cfg": {"num_gpus": 1},
        }
    ]
    assert [one["abbr"] for one in made.datasets] == ["small", "written"]
    assert made.infer.partitioner == {"type": "BalancedPartitioner", "num_worker": 1}
    assert made.infer.runner == {"type": "LocalRunner", "max_num_workers": 1, "retry": 2}
    assert made.work_dir == Path("outputs/default") and made.summarizer["summary_groups"]


def test_flags_go_before_the_configuration(here: World) -> None:
    (here.root / "job.py").write_text(
        "from mmengine.config import read_base\n"
        "from opencompass.models import HuggingFaceBaseModel\n"  # not installed: it stays a name
        "from opencompass.partitioners import SizePartitioner\n"
        "with read_base():\n"
        "    from .config.datasets.small import small_datasets\n"
        "    from .config.datasets.written import written_datasets\n"
        "datasets = [*small_datasets, *written_datasets]\n"
        "models = [dict(type=HuggingFaceBaseModel, abbr='m', path='gpt2')]\n"
        "infer = dict(partitioner=dict(type=SizePartitioner, max_task_size=77),\n"
        "             runner=dict(type='LocalRunner', max_num_workers=3, task=dict(type='OpenICLInferTask')))\n"
        "work_dir = 'elsewhere'\n"
    )
    made = job("job.py")
    assert made.models[0]["type"] == "opencompass.models.HuggingFaceBaseModel"
    assert made.infer.partitioner == {"type": "opencompass.partitioners.SizePartitioner", "max_task_size": 77}
    assert made.infer.runner["max_num_workers"] == 3 and made.work_dir == Path("elsewhere")
    made = job("job.py", "--max-num-workers", "2", "--max-partition-size", "500", "--retry", "0", "-w", "there")
    assert made.infer.partitioner == {"type": "SizePartitioner", "max_task_size": 500, "gen_task_coef": 20}
    assert (made.infer.runner["max_num_workers"], made.infer.runner["retry"], made.work_dir) == (2, 0, Path("there"))
    (here.root / "again.py").write_text(made.dump())  # a run's own configuration gives the same job
    assert job("again.py") == made


def test_a_runs_own_configuration_gives_the_whole_job(here: World) -> None:
    small = ("--hf-type", "base", "--hf-path", "gpt2", "--datasets", "small")
    made = job(*small, "--limit", "2", "--data-dir", "there", "--dump-eval-details", "--allow-code-execution")
    (here.root / "again.py").write_text(made.dump())
    assert job("again.py") == made
    other = job("again.py", "--limit", "1", "--data-dir", "elsewhere")  # flags go before it
    assert (other.limit, other.data_dir.name, other.dump_details) == (1, "elsewhere", True)
    (here.root / "again.py").write_text(made.dump() + "limit = '2'\n")
    with pytest.raises(ValueError, match=r"again\.py: limit is '2', expected a number of at least 1"):
        job("again.py")


def test_flags_without_effect_are_named(here: World, caplog: pytest.LogCaptureFixture) -> None:
    (here.root / "m.py").write_text("models = [dict(type='HuggingFaceBaseModel', abbr='m', path='gpt2')]\n")
    flags = ("--hf-type", "base", "--batch-size", "4", "--max-out-len", "7", "--hf-num-gpus", "1")
    job("--models", "m.py", "--datasets", "small", *flags)
    said = [record.getMessage() for record in caplog.records]
    expected = ("hf-type", "max-out-len", "batch-size", "hf-num-gpus")
    assert said == [f"--{flag} has no effect: --models says which models" for flag in expected]
    caplog.clear()
    job("--hf-path", "gpt2", "--datasets", "written", *flags)
    assert not caplog.records


def test_running_generated_code_is_allowed_before_anything_is_computed(here: World) -> None:
    (here.root / "code.py").write_text((REPOSITORY / "config/datasets/humaneval/humaneval_gen.py").read_text())
    flags = ("--hf-path", "gpt2", "--datasets", str(here.root / "code.py"))
    with pytest.raises(ValueError, match="runs code that the model wrote: allow it with --allow-code-execution"):
        job(*flags)
    assert job(*flags, "--allow-code-execution").allow_code_execution
    assert job(*flags, "-m", "infer").datasets  # nothing is run there


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models = [", "job.py: cannot be read as a configuration: "),
        ("models = []\ndatasets = []", "job.py: there are no models"),
        ("models = [1]\ndatasets = [{}]", "a model is dict"),
        ("models = [dict(type='HuggingFace')]\ndatasets = [{}]", "job.py: model '?': it lacks path"),
        ("models = [dict(type='HugingFace', path='gpt2')]\ndatasets = [{}]", "did you mean 'HuggingFace'"),
        (
            "models = [dict(type='HuggingFace', path='gpt2', max_seqlen=1)]\ndatasets = [{}]",
            "did you mean 'max_seq_len'",
        ),
        ("models = [dict(type='HuggingFace', path='./no/such')]\ndatasets = [{}]", "path './no/such': no such file"),
        (
            "models = [dict(type='HuggingFace', path='no-such-model')]\ndatasets = [{}]",
            "nor a model in the Hugging Face",
        ),
        ("models = [dict(type='OpenAI', path='x')]\ndatasets = [{}]", "it lacks base_url"),
        (
            "models = [dict(type='HuggingFace', path='gpt2', devices=0)]\ndatasets = [{}]",
            "devices is 0, expected auto or a positive number",
        ),
        ("models = [dict(type='HuggingFace', path='gpt2')]\ndatasets = [dict(abbr='x')]", "dataset 'x' lacks type"),
        ("models = 2 * [dict(type='HuggingFace', path='gpt2')]\ndatasets = [{}]", "dataset '.*' lacks"),
    ],
)
def test_a_wrong_configuration_is_named(here: World, text: str, message: str) -> None:
    (here.root / "job.py").write_text(text + "\n")
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        job("job.py")


def test_wrong_choices_are_named(here: World) -> None:
    small = ("--hf-type", "base", "--hf-path", "gpt2", "--datasets", "small")
    with pytest.raises(ValueError, match=r"(?s)Not matched patterns.*smal .*small"):
        job("--hf-path", "gpt2", "--datasets", "smal")
    with pytest.raises(ValueError, match=r"(?s)Ambiguous patterns.*\*.*large.py"):
        job("--hf-path", "gpt2", "--datasets", "*")
    with pytest.raises(ValueError, match="there are no models"):
        job("--datasets", "small")
    with pytest.raises(ValueError, match="there are no datasets"):
        job("--hf-path", "gpt2")
    with pytest.raises(ValueError, match="--model-kwargs dtype: expected KEY=VALUE"):
        job(*small, "--model-kwargs", "dtype")
    with pytest.raises(ValueError, match="unknown key of model_kwargs 'load_in_8bit'"):
        job(*small, "--model-kwargs", "load_in_8bit=True")
    with pytest.raises(ValueError, match=r"none\.py: no such configuration file"):
        job("none.py")
    (here.root / "twice.py").write_text("models = 2 * [dict(type='HuggingFace', abbr='m', path='gpt2')]\n")
    with pytest.raises(ValueError, match="two models are called 'm'"):
        job("--models", "twice.py", "--datasets", "small")
    with pytest.raises(ValueError, match="two datasets are called 'small'"):
        job(*small, str(here.root / "config" / "datasets" / "small.py"), "config/datasets/small.py")
    for runner, message in (("VOLCRunner", "there is no such runner here"), ("DLCRunner", "missing .* .aliyun_cfg.")):
        (here.root / "job.py").write_text(
            "from mmengine.config import read_base\nwith read_base():\n"
            "    from .config.datasets.small import small_datasets as datasets\n"
            "models = [dict(type='HuggingFace', abbr='m', path='gpt2')]\n"
            f"infer = dict(runner=dict(type='{runner}', retry=1))\n"
        )
        with pytest.raises(ValueError, match=f"runner {runner}: .*{message}"):
            job("job.py")


def test_a_chat_server_is_not_asked_to_rank(here: World) -> None:
    (here.root / "chat.py").write_text("models = [dict(type='OpenAI', path='x', base_url='http://127.0.0.1:1/v1')]\n")
    with pytest.raises(ValueError, match=r"'OpenAI_x' only generates, but small, large rank likelihoods"):
        job("--models", "chat.py", "--datasets", "small", "large", "written")
    assert job("--models", "chat.py", "--datasets", "written").models[0]["path"] == "x"


def test_secrets_go_by_the_environment(here: World) -> None:
    (here.root / "served.py").write_text(
        "models = [\n"
        "    dict(type='OpenAI', abbr='a', path='x', base_url='http://127.0.0.1:1/v1', key='sk-one'),\n"
        "    dict(type='OpenAI', abbr='b', path='x', openai_api_base='http://u:sk-two@127.0.0.1:1/v1', key='ENV'),\n"
        "    dict(type='HuggingFaceBaseModel', abbr='c', path='s3://b/m', storage_options=dict(secret='sk-one', key='${K}')),\n"
        "]\n"
    )
    made = job("--models", "served.py", "--datasets", "written")
    assert "sk-" not in made.dump() and "sk-" not in repr(made) and "sk-" not in str(made.keep(Path("d")))
    assert sorted(made.secrets.values()) == ["http://u:sk-two@127.0.0.1:1/v1", "sk-one"]
    names = {value: name for name, value in made.secrets.items()}
    assert made.models[0]["key"] == "${" + names["sk-one"] + "}" == made.models[2]["storage_options"]["secret"]
    assert all(f"# Set {name} in the environment" in made.dump() for name in made.secrets)
    assert made.models[1]["key"] == "ENV" and made.models[2]["storage_options"]["key"] == "${K}"


def test_what_is_a_secret_and_what_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"api_key": "k", "hf_token": "k", "pad_token": "<pad>", "ice_token": "</E>", "path": "http://h/x", "n": 3}
    clean, found = without_secrets([values, {"headers": {"Authorization": "Bearer k2"}}])
    assert list(found.values()) == ["k", "Bearer k2"]
    assert clean[0] == {**values, "api_key": "${AUTOEVAL_SECRET_0}", "hf_token": "${AUTOEVAL_SECRET_0}"}
    monkeypatch.setenv("AUTOEVAL_SECRET_0", "k")
    assert resolved(clean[0]["api_key"]) == "k" and resolved(5) == 5
    with pytest.raises(ValueError, match="AUTOEVAL_SECRET_1 is not set"):
        resolved(clean[1]["headers"]["Authorization"])


def test_where_lark_is_told(here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ("--hf-type", "base", "--hf-path", "gpt2", "--datasets", "small")
    assert job(*flags).lark is None
    with pytest.raises(ValueError, match=r"-l: there is no lark_bot_url"):
        job(*flags, "-l")
    (here.root / "config" / "lark.py").write_text("lark_bot_url = '${HOOK}'\nlark_bot_secret = '${SIGN}'\n")
    monkeypatch.setenv("HOOK", "https://lark/not-shown")
    monkeypatch.setenv("SIGN", "not-shown-2")
    made = job(*flags, "-l")
    assert made.lark is not None and (made.lark.address, made.lark.secret) == ("https://lark/not-shown", "not-shown-2")
    assert "not-shown" not in repr(made) + made.dump()
    monkeypatch.setenv("HOOK", "not-shown")
    with pytest.raises(ValueError, match=r"-l: lark_bot_url: expected the URL of a webhook") as caught:
        job(*flags, "-l")
    assert "not-shown" not in str(caught.value)


def test_the_repositorys_own_lark_file_takes_the_address_from_the_environment(
    here: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = (HOME / "config" / "lark.py").read_text()
    (here.root / "config" / "lark.py").write_text(own)
    flags = ("--hf-type", "base", "--hf-path", "gpt2", "--datasets", "small", "-l")
    monkeypatch.delenv("LARK_WEBHOOK", raising=False)
    with pytest.raises(ValueError, match="the environment variable LARK_WEBHOOK is not set"):
        job(*flags)
    monkeypatch.setenv("LARK_WEBHOOK", "https://open.feishu.cn/open-apis/bot/v2/hook/x")
    made = job(*flags)
    assert made.lark is not None and made.lark.host == "open.feishu.cn" and made.lark.secret is None


def test_a_model_speaks_where_the_dataset_is_silent() -> None:
    model = {
        **MODEL,
        "max_out_len": 9,
        "end_str": "<end>",
        "generation_kwargs": {"temperature": 0.5},
        "pred_postprocessor": {"wri*": {"type": "first-capital"}},
    }
    dataset: dict[str, Any] = {
        "abbr": "written",
        "infer_cfg": {"inferencer": {"type": "GenInferencer", "stop": "\n"}},
        "eval_cfg": {},
    }
    made = with_model_defaults(dataset, model)
    assert made["infer_cfg"]["inferencer"] == {
        "type": "GenInferencer",
        "stop": ["\n", "<end>"],
        "max_out_len": 9,
        "generation_kwargs": {"temperature": 0.5},
    }
    assert made["eval_cfg"] == {"pred_postprocessor": {"type": "first-capital"}} and dataset["eval_cfg"] == {}
    dataset["infer_cfg"]["inferencer"]["max_out_len"] = 3
    assert with_model_defaults(dataset, model)["infer_cfg"]["inferencer"]["max_out_len"] == 3
    ranked = {**dataset, "abbr": "r", "infer_cfg": {"inferencer": {"type": "PPLInferencer"}}}
    assert with_model_defaults(ranked, model) == ranked


def test_values_of_flags_and_classes_of_files() -> None:
    assert parse_options(["a=1", "b=x.y", "c=true", "d=[1, 2]", "e=none", "f=1=2"], "--x") == {
        "a": 1,
        "b": "x.y",
        "c": True,
        "d": [1, 2],
        "e": None,
        "f": "1=2",
    }
    assert plain({"type": Path, "f": len, "t": (1, 2)}) == {"type": "pathlib.Path", "f": "builtins.len", "t": [1, 2]}


@pytest.mark.parametrize("file", sorted((REPOSITORY / "config" / "models").rglob("*.py")), ids=lambda file: file.stem)
def test_our_model_files_are_right(file: Path) -> None:
    for model in read_config(file)["models"]:
        check_model(model, str(file))


def test_our_demo_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = read_job(run.parse_arguments([str(REPOSITORY / "config" / "eval_demo.py"), "-m", "viz"]))
    assert [one["abbr"] for one in made.datasets] == ["hellaswag", "lambada"]
    assert made.summarizer["summary_groups"] and made.eval.runner["max_num_workers"] == 2


def test_help_answers_at_once() -> None:
    def seconds() -> float:
        started = time.monotonic()
        subprocess.run([sys.executable, "run.py", "--help"], cwd=REPOSITORY, capture_output=True, check=True)
        return time.monotonic() - started

    with Pace() as pace:
        taken = min(seconds() for _ in range(5))
    assert taken < pace.takes(0.5)


def test_reading_a_job_loads_nothing_heavy() -> None:
    code = (
        "import sys; import autoeval.run.commands;"
        "print(sorted({'torch','transformers','helm','wandb','plotly','pandas','scipy'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
