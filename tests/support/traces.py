"""Where published traces lie, for tests that read them: beside the checkout, in ../shared/data, if anywhere."""

from pathlib import Path

import pytest

FILES = {
    "azure-code": "AzureLLMInferenceTrace_code.csv",
    "azure-conversation": "AzureLLMInferenceTrace_conv.csv",
    "mooncake-conversation": "mooncake_conversation_trace.jsonl",
    "mooncake-synthetic": "mooncake_synthetic_trace.jsonl",
}


def trace_path(name: str) -> Path:
    """A trace's file; the test is skipped where it is not there."""
    folders = [folder / "shared/data" for folder in Path(__file__).resolve().parents[1].parents]
    path = next((folder / FILES[name] for folder in folders if (folder / FILES[name]).is_file()), None)
    if path is None:
        pytest.skip(f"the trace {FILES[name]} is not beside the checkout, in ../shared/data")
    return path
