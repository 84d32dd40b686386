"""Where run.py -l sends its messages: a custom bot of a Lark (Feishu) group. docs/messages.md says how to make one.

Whoever has this address can write to the group: keep it in the environment, not in this file.
"""

lark_bot_url = "${LARK_WEBHOOK}"
# lark_bot_secret = "${LARK_SECRET}"  # where the bot asks for signatures
