"""How conversations become text for each family of models: chat templates, in the Jinja that tokenizers carry.

A mode's template is saved with the tokenizer, so that whatever evaluates the checkpoint asks it as it was trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ChatFormat:
    """``tokens`` must be single tokens of the tokenizer; ``ends`` is the token that ends an answer (else EOS)."""

    template: str
    tokens: tuple[str, ...] = ()
    ends: str | None = None


# Llama 2: the system message is part of the first question.
_LLAMA2 = (
    "{% set ns = namespace(system='') %}{% for m in messages %}"
    "{% if m.role == 'system' %}{% set ns.system = '<<SYS>>\n' + m.content + '\n<</SYS>>\n\n' %}"
    "{% elif m.role == 'user' %}{{ bos_token + '[INST] ' + ns.system + m.content + ' [/INST]' }}{% set ns.system = '' %}"
    "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
_ROUNDS = (
    "{{% set ns = namespace(round={first}) %}}{{% for m in messages %}}"
    "{{% if m.role == 'system' %}}{{{{ m.content + '{gap}' }}}}"
    "{{% elif m.role == 'user' %}}{{{{ '[Round ' ~ ns.round ~ ']{gap}问：' + m.content + '{gap}答：' }}}}"
    "{{% set ns.round = ns.round + 1 %}}"
    "{{% else %}}{{{{ m.content + eos_token + '{gap}' }}}}{{% endif %}}{{% endfor %}}"
)
FORMATS = {
    "glm": ChatFormat(_ROUNDS.format(first=0, gap="\n")),
    "glm2": ChatFormat(_ROUNDS.format(first=1, gap="\n\n")),
    "glm3": ChatFormat(
        "{% for m in messages %}{{ '<|' + m.role + '|>\n ' + m.content }}"
        "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n ' }}{% endif %}",
        tokens=("<|system|>", "<|user|>", "<|assistant|>"),
    ),
    "baichuan2_13b": ChatFormat(
        "{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}"
        "{% elif m.role == 'user' %}{{ '<reserved_106>' + m.content }}"
        "{% else %}{{ '<reserved_107>' + m.content + eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<reserved_107>' }}{% endif %}",
        tokens=("<reserved_106>", "<reserved_107>"),
    ),
    "qwen1.5": ChatFormat(
        "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou are a helpful assistant<|im_end|>\n' }}{% endif %}"
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        tokens=("<|im_start|>", "<|im_end|>"),
        ends="<|im_end|>",
    ),
}
MODES = ("auto", *FORMATS)


def choose_format(tokenizer: Any, mode: str) -> ChatFormat:
    """The format of ``mode``, set on the tokenizer. ``auto``: the tokenizer's own template, else Llama 2's.

    Raises ``ValueError`` when the tokenizer lacks a token of the format: it belongs to another family.
    """
    if mode == "auto":
        chosen = ChatFormat(tokenizer.chat_template or _LLAMA2)
    else:
        chosen = FORMATS[mode]
    for token in chosen.tokens:
        found = tokenizer.convert_tokens_to_ids(token)
        if found is None or found == tokenizer.unk_token_id:
            raise ValueError(f"--mode {mode}: the tokenizer has no token {token}: is it a model of this family?")
    if tokenizer.eos_token is None:
        raise ValueError(f"{tokenizer.name_or_path}: the tokenizer has no EOS token, so no answer could end")
    tokenizer.chat_template = chosen.template
    return chosen
