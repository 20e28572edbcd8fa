"""`llmsys serve` as on a fresh machine: no option but a port, and SmolLM2 answers, on a CPU."""

import pytest

from llmsys.models import generate, load_model
from tests.serving.server.running import in_a_process

openai = pytest.importorskip("openai")


@pytest.mark.slow
def test_smollm2_is_served_on_a_cpu(tmp_path):
    question = "What is 2 + 2?"
    expected = generate(load_model(), question, max_new_tokens=12).text
    with in_a_process(cwd=tmp_path) as (_, address, said):
        assert said.startswith("SmolLM2-135M-Instruct on cpu: 16 answers at a time, room for ")
        with openai.OpenAI(base_url=f"{address}/v1", api_key="any", timeout=120) as client:
            (model,) = client.models.list()
            stream = client.chat.completions.create(
                model=model.id, messages=[{"role": "user", "content": question}], temperature=0, max_tokens=12,
                stream=True,
            )  # fmt: skip
            assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == expected
