"""A chat model behind a server with /v1/chat/completions. It generates; it does not rank."""

models = [
    dict(
        type="OpenAI",
        abbr="served-chat-model",
        path="my-chat-model",
        base_url="http://127.0.0.1:8000/v1",
        max_out_len=256,
        max_workers=8,
        retry=5,
    )
]
