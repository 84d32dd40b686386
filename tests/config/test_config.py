"""evaluator.yaml: what is accepted, and what a person is told about what is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoeval.checkpoints import SettleTimes
from autoeval.config import load_config
from autoeval.planning import WatchOptions, make_watcher, write_settings
from autoeval.yaml_file import ConfigError

GOOD = """
auto_eval:
  project_name: demo
  model_name: gpt2-1.3b
  work_dir: out
  megatron:
    checkpoint_path: ckpt
    tokenizer_type: gpt2
    vocab_path: vocab.json
    merge_path: merges.txt
    token_per_iteration: 0.0021
  icl:
    datasets: [hellaswag_ppl, ./mine.py]
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "evaluator.yaml"
    path.write_text(text)
    return path


def complaint(tmp_path: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, text))
    return str(caught.value)


def test_a_good_file_gives_absolute_paths_beside_the_file(tmp_path: Path) -> None:
    (config,) = load_config(write(tmp_path, GOOD))
    assert config.work_dir == tmp_path / "out"
    assert config.megatron is not None and config.megatron.vocab_path == tmp_path / "vocab.json"
    assert config.icl is not None and config.icl.datasets == ["hellaswag_ppl", str(tmp_path / "mine.py")]
    assert config.megatron.token_per_iteration == 0.0021
    assert config.wandb.mode == "offline"


def test_a_path_that_exists_only_below_the_working_directory_is_found_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    (here / "ckpt").mkdir(parents=True)
    monkeypatch.chdir(here)
    (config,) = load_config(write(tmp_path, GOOD))
    assert config.megatron is not None and config.megatron.checkpoint_path == here / "ckpt"


def test_an_unknown_key_names_file_line_key_and_the_nearest_known_one(tmp_path: Path) -> None:
    message = complaint(tmp_path, GOOD.replace("vocab_path", "vocab_pth"))
    assert "evaluator.yaml:9: auto_eval.megatron.vocab_pth: unknown key; did you mean 'vocab_path'?" in message


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    message = complaint(tmp_path, GOOD.replace("  model_name: gpt2-1.3b\n", ""))
    assert "auto_eval.model_name: the key is missing" in message


def test_the_tokenizer_must_have_its_files(tmp_path: Path) -> None:
    message = complaint(tmp_path, GOOD.replace("    merge_path: merges.txt\n", ""))
    assert "auto_eval.megatron: tokenizer_type gpt2 needs merge_path" in message


def test_a_text_to_compare_on_needs_the_log_that_tells_the_loss(tmp_path: Path) -> None:
    message = complaint(tmp_path, GOOD.replace("    token_per", "    validation_text: valid.txt\n    token_per"))
    assert "auto_eval.megatron: validation_text needs log_path" in message


def test_a_wrong_value_is_shown_with_what_was_expected(tmp_path: Path) -> None:
    message = complaint(tmp_path, GOOD.replace("tokenizer_type: gpt2", "tokenizer_type: gpt3"))
    assert "auto_eval.megatron.tokenizer_type" in message and "'sentencepiece'" in message and "'gpt3'" in message


@pytest.mark.parametrize("name", ["../evil", "a/b", ".hidden", ""])
def test_a_model_name_cannot_leave_the_work_directory(tmp_path: Path, name: str) -> None:
    assert "auto_eval.model_name" in complaint(tmp_path, GOOD.replace("gpt2-1.3b", f'"{name}"'))


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    message = complaint(tmp_path, GOOD + "  model_name: other\n")
    assert "model_name: the key stands here twice" in message


def test_variables_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = GOOD.replace("ckpt", "${RUN_DIRECTORY}/ckpt")
    monkeypatch.delenv("RUN_DIRECTORY", raising=False)
    assert "checkpoint_path: the environment variable RUN_DIRECTORY is not set" in complaint(tmp_path, text)
    monkeypatch.setenv("RUN_DIRECTORY", "/runs/7")
    (config,) = load_config(write(tmp_path, text))
    assert config.megatron is not None and config.megatron.checkpoint_path == Path("/runs/7/ckpt")


def test_keys_of_the_published_data_juicer_file_are_named_in_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = GOOD.replace("work_dir", "cache_dir").replace(
        "  megatron:\n", "  gpt_evaluation: {}\n  megatron:\n    megatron_home: /m\n    process_num: 2\n"
    )
    (config,) = load_config(write(tmp_path, text))
    assert config.work_dir == tmp_path / "out"
    (record,) = caplog.records
    for key in ("gpt_evaluation", "megatron.megatron_home", "megatron.process_num"):
        assert key in record.getMessage()


def test_several_runs_in_one_file(tmp_path: Path) -> None:
    entry = "  - " + GOOD.split("auto_eval:\n")[1].lstrip().replace("\n", "\n  ").rstrip() + "\n"
    first, second = load_config(write(tmp_path, "auto_eval:\n" + entry + entry.replace("gpt2-1.3b", "gpt2-7b")))
    assert (first.model_name, second.model_name) == ("gpt2-1.3b", "gpt2-7b")
    assert "share model_name" in complaint(tmp_path, "auto_eval:\n" + entry + entry)


def test_runs_that_share_a_work_directory_share_what_is_shown(tmp_path: Path) -> None:
    entry = "  - " + GOOD.split("auto_eval:\n")[1].lstrip().replace("\n", "\n  ").rstrip() + "\n"
    other = entry.replace("gpt2-1.3b", "gpt2-7b").replace("project_name: demo", "project_name: other")
    assert "but not project_name" in complaint(tmp_path, "auto_eval:\n" + entry + other)
    load_config(write(tmp_path, "auto_eval:\n" + entry + other.replace("work_dir: out", "work_dir: out2")))


def test_order_backlog_settle_times_and_checks_of_the_conversion(tmp_path: Path) -> None:
    text = GOOD.replace("    token_per", "    settle_seconds: {legacy: 5, abandoned: 600}\n    token_per")
    text += "  order: bisect\n  max_backlog: 4\n  model: {verify: always, converted_disk_gb: 1.5}\n"
    (config,) = load_config(write(tmp_path, text))
    assert (config.order, config.max_backlog) == ("bisect", 4)
    assert (config.model.verify, config.model.converted_disk_gb) == ("always", 1.5)
    settle = make_watcher(config, WatchOptions()).settle
    assert (settle.legacy, settle.abandoned, settle.marks) == (5, 600, SettleTimes().marks)
    assert "auto_eval.order" in complaint(tmp_path, GOOD + "  order: random\n")
    assert "auto_eval.max_backlog" in complaint(tmp_path, GOOD + "  max_backlog: 0\n")
    wrong = text.replace("abandoned: 600", "abandonned: 600")
    assert "settle_seconds.abandonned: unknown key; did you mean 'abandoned'?" in complaint(tmp_path, wrong)


HOOK = "https://open.feishu.cn/open-apis/bot/v2/hook/not-to-be-seen"


def test_messages_are_off_by_default_and_their_addresses_come_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_config(write(tmp_path, GOOD))[0].channels == ()
    sections = "  lark: {webhook: '${LARK_WEBHOOK}', secret: '${LARK_SECRET}', format: post}\n"
    sections += "  slack: {webhook: https://hooks.slack.com/services/T/B/not-to-be-seen}\n"
    sections += "  webhook: {url: http://127.0.0.1:8123/not-to-be-seen}\n"
    monkeypatch.setenv("LARK_WEBHOOK", HOOK)
    monkeypatch.setenv("LARK_SECRET", "not-to-be-seen-either")
    (config,) = load_config(write(tmp_path, GOOD + sections))
    lark, slack, own = config.channels
    assert (lark.name, lark.address, lark.secret, lark.format) == ("lark", HOOK, "not-to-be-seen-either", "post")
    assert (slack.name, slack.secret) == ("slack", None) and own.address == "http://127.0.0.1:8123/not-to-be-seen"
    shown = repr(config) + repr(config.channels) + config.model_dump_json() + write_settings(config).read_text()
    assert "not-to-be-seen" not in shown
    monkeypatch.setenv("LARK_WEBHOOK", "")  # what turns it off without another file
    assert [channel.name for channel in load_config(write(tmp_path, GOOD + sections))[0].channels] == [
        "slack",
        "webhook",
    ]


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ("lark: {webhook: not-to-be-seen}", "auto_eval.lark.webhook: expected the URL of a webhook, https://…"),
        ("lark: {webhook: 'http://open.feishu.cn/not-to-be-seen'}", "expected https://"),
        ("lark: https://open.feishu.cn/not-to-be-seen", "auto_eval.lark"),
        ("lark: {webhok: https://open.feishu.cn/not-to-be-seen}", "lark.webhok: unknown key; did you mean 'webhook'?"),
        ("slack: {webhook: [not-to-be-seen]}", "auto_eval.slack.webhook"),
        ("webhook: {url: 'https://[not-to-be-seen'}", "auto_eval.webhook.url"),
        ("lark: {webhook: 'https://h/x', format: not-to-be-seen}", "auto_eval.lark.format: Input should be 'card'"),
    ],
)
def test_a_wrong_address_is_told_without_showing_it(tmp_path: Path, section: str, expected: str) -> None:
    message = complaint(tmp_path, GOOD + f"  {section}\n")
    assert expected in message and "not-to-be-seen" not in message


def test_a_missing_file_and_broken_yaml_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: cannot be read"):
        load_config(tmp_path / "nowhere.yaml")
    assert "is not valid YAML" in complaint(tmp_path, "auto_eval: [")
    assert "expected a mapping" in complaint(tmp_path, "- 1\n")


def test_all_that_is_wrong_is_told_at_once_each_place_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LARK_WEBHOOK", raising=False)
    text = GOOD.replace("vocab_path", "vocab_pth").replace("token_per_iteration: 0.0021", "token_per_iteration: -1")
    message = complaint(tmp_path, text + "  order: random\n  lark: {webhook: '${LARK_WEBHOOK}'}\n")
    lines = message.splitlines()
    assert len(lines) == 4
    for part in ("LARK_WEBHOOK is not set", "megatron.vocab_pth", "megatron.token_per_iteration", "auto_eval.order"):
        assert sum(part in line for line in lines) == 1, part
