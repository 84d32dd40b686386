"""A base model behind a server with /v1/completions (vLLM, SGLang, llama.cpp). It also ranks, if it gives logprobs.

The key comes from OPENAI_API_KEY; key="${NAME}" takes another variable. It is never written to a file.
"""

models = [
    dict(
        type="OpenAICompletions",
        abbr="served-model",
        path="my-model",  # the name that the server knows it by
        base_url="http://127.0.0.1:8000/v1",
        # With the model's tokenizer, prompts go out as token ids and are cut to max_seq_len here.
        # tokenizer_path="./outputs/my-project/my-model/iter_0002000/hf",
        # max_seq_len=2048,
        max_out_len=256,
        max_workers=8,
        retry=5,
    )
]
